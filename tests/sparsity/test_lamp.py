import numpy as np
import pytest

from flsparse.sparsity import kept_count, layer_sparsity, prune_global, prune_lamp
from flsparse.sparsity.lamp import lamp_positions


def reference(arrays: list[np.ndarray], k: int) -> list[list[int]]:
    """Score every weight by the definition, with a full sort of each layer, and sort all scores."""
    scored = []
    for layer, array in enumerate(arrays):
        squares = array.reshape(-1).astype(np.float64) ** 2
        total = 0.0
        for position in np.argsort(-squares, kind="stable"):
            if squares[position] == 0:
                break
            total += squares[position]
            scored.append((-squares[position] / total, layer, int(position)))
    best = sorted(scored)[:k]
    return [sorted(position for _, i, position in best if i == layer) for layer in range(len(arrays))]


def test_scores_by_hand() -> None:
    """The scores are 1, 16/41, 9/50, 9/59 and 1, 1/5: the narrow layer's second comes before the wide one's third."""
    arrays = {"wide": np.array([[3.0, -5.0], [4.0, -3.0]]), "narrow": np.array([[0.2, -0.1]]), "bias": np.ones(2)}
    pruned = prune_lamp(arrays, 0.5, ["wide", "narrow"])
    assert pruned["wide"].tolist() == [[0, -5], [4, 0]]
    assert pruned["narrow"].tolist() == [[0.2, 0]]
    assert prune_lamp(arrays, 1 / 3, ["wide", "narrow"])["narrow"].tolist() == [[0.2, -0.1]]
    assert pruned["bias"] is arrays["bias"]
    assert arrays["narrow"][0, 1] == -0.1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("k", [0, 1, 3, 50, 3000, 10**9])
def test_equals_the_definition(dtype: type, k: int) -> None:
    rng = np.random.default_rng(0)
    layers = (((40, 30), 1.0), ((9,), 9.0), ((0, 3), 1.0), ((50, 60), 0.01), ((5,), 0.0))
    arrays: list[np.ndarray] = [(rng.standard_normal(shape) * scale).astype(dtype) for shape, scale in layers]
    arrays[0][rng.random((40, 30)) < 0.5] = 0
    assert [found.tolist() for found in lamp_positions(arrays, k)] == reference(arrays, k)


def test_where_nothing_may_be_pruned_nothing_is() -> None:
    arrays = {"bias": np.ones(2)}
    assert lamp_positions([], 3) == []
    assert prune_lamp(arrays, 0.5, [])["bias"] is arrays["bias"]


def test_a_layer_may_keep_many_times_its_share() -> None:
    """Of equal magnitudes the i-th has a score of 1 / i; where each is half of the one before, of 3 / 4^i."""
    even, steep = np.ones(500) - 1e-6 * np.arange(500), 2.0 ** -np.arange(1000)
    for k in (10, 100, 400, 600):
        found = [each.tolist() for each in lamp_positions([even, steep], k)]
        assert found == reference([even, steep], k)
        assert len(found[0]) > 2 * k * even.size // 1500 or k == 600


def test_a_layer_of_small_weights_is_not_emptied() -> None:
    """A wide hidden layer starts with weights of 1/8, the one behind it with 1/32."""
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.uniform(-1, 1, shape).astype(np.float32) / np.sqrt(np.float32(shape[1]))
        for name, shape in (("hidden", (1024, 64)), ("out", (10, 1024)))
    }
    assert layer_sparsity(prune_global(arrays, 0.95, list(arrays)), ["out"])["out"] == 1.0
    kept = layer_sparsity(prune_lamp(arrays, 0.95, list(arrays)), ["out", "hidden"])
    assert kept["out"] < 0.95
    assert 0.95 < kept["hidden"] < 1.0


def test_ties_between_layers_go_to_the_first_and_copies_are_alike() -> None:
    assert [found.tolist() for found in lamp_positions([np.array([2.0]), np.array([3.0]), np.array([4.0])], 2)] == [
        [0],
        [0],
        [],
    ]
    tied = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    first, between, second = lamp_positions([tied, np.arange(1.0, 9.0), tied.copy()], 20)
    assert first.tolist() == second.tolist()
    assert 19 <= 2 * first.size + between.size <= 20


def test_nan_is_refused_and_the_extremes_are_ranked() -> None:
    with pytest.raises(ValueError, match="NaN"):
        prune_lamp({"w": np.array([[np.nan, 1.0]])}, 0.5, ["w"])
    huge = np.array([np.inf, -1e300, 1e-300, 5e-324, 0.0])
    assert [lamp_positions([huge], k)[0].size for k in (1, 2, 3, 4, 5)] == [1, 2, 3, 4, 4]
    assert lamp_positions([huge], 1)[0].tolist() == [0]


def test_as_many_are_kept_as_by_magnitude() -> None:
    rng = np.random.default_rng(1)
    arrays = {"a": rng.standard_normal((30, 20)), "b": rng.standard_normal((7, 3))}
    for sparsity in (0.0, 0.3, 0.95, 0.999):
        pruned = prune_lamp(arrays, sparsity, ["a", "b"])
        assert sum(int(np.count_nonzero(array)) for array in pruned.values()) == kept_count(621, sparsity)
