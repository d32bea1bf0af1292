"""Mirrors: what moves, and that both sides hold the same."""

import numpy as np
import pytest

from flsparse.codec import Codec, Reference, decode
from flsparse.wire.mirror import reference_with, towards


def arrays(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"w": rng.normal(size=(20, 30)).astype("f4"), "b": rng.normal(size=5).astype("f4"), "n": np.array(seed)}


def test_the_largest_differences_move_and_vectors_move_whole() -> None:
    mirror = {"w": np.zeros((2, 2), np.float32), "b": np.zeros(2, np.float32)}
    worker = {"w": np.array([[1, -4], [3, 2]], np.float32), "b": np.array([0.1, 0.2], np.float32)}
    moved = towards(worker, mirror, 0.5)
    np.testing.assert_array_equal(moved["w"], [[0, -4], [3, 0]])
    np.testing.assert_array_equal(moved["b"], worker["b"])
    np.testing.assert_array_equal(towards(worker, mirror, 1.0)["w"], worker["w"])


def test_a_pruned_weight_is_taken_over_as_zero() -> None:
    mirror = {"w": np.array([[5.0, 0.1, 0.0, 9.0]], np.float32)}
    worker = {"w": np.array([[9.0, 0.0, 0.2, 9.0]], np.float32)}
    np.testing.assert_array_equal(towards(worker, mirror, 0.25)["w"], [[9.0, 0.0, 0.0, 9.0]])


@pytest.mark.parametrize("density", [0.0, 1.5, float("nan")])
def test_an_impossible_density_is_refused(density: float) -> None:
    with pytest.raises(ValueError, match="density="):
        towards(arrays(1), arrays(2), density)


def test_a_mirror_comes_to_what_it_mirrors_although_a_tenth_moves_at_a_time() -> None:
    mirror, worker = Reference(arrays(1)), arrays(2)
    distances = []
    for _ in range(14):
        payload = Codec("int8").encode(towards(worker, mirror.arrays, 0.1), reference=mirror)
        mirror = Reference(decode(payload, like=mirror.arrays, reference=mirror))
        distances.append(float(np.abs(mirror.arrays["w"] - worker["w"]).max()))
    assert distances[0] > 1
    assert distances[-1] < 0.02
    assert mirror.arrays["n"] == 2


def test_arrays_beside_the_model_are_coded_against_what_was_received() -> None:
    received = Reference({"w": np.ones(2, "f4"), "control/w": np.full(2, 3, "f4")})
    both = reference_with({"w": np.zeros(2, "f4"), "control/w": np.zeros(2, "f4")}, received)
    assert both.arrays["w"].tolist() == [0, 0]
    assert both.arrays["control/w"].tolist() == [3, 3]
