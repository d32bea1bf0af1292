import numpy as np
import pytest

from flsparse.sparsity import (
    default_prunable,
    layer_sparsity,
    mask_iou,
    match_prunable,
    prune_global,
    prune_per_layer,
    regrowth,
    sparsity_of,
    sparsity_ramp,
)

ARRAYS: dict[str, np.ndarray] = {
    "a": np.array([[1.0, -4.0], [3.0, 0.5]], np.float32),
    "bias": np.array([9.0, 9.0], np.float32),
    "b": np.array([[-2.0, 5.0]], np.float32),
    "steps": np.array([[7]], np.int64),
}


def test_global_prune_by_hand() -> None:
    pruned = prune_global(ARRAYS, 0.5, ["a", "b"])
    assert pruned["a"].tolist() == [[0, -4], [3, 0]]
    assert pruned["b"].tolist() == [[0, 5]]
    assert pruned["bias"] is ARRAYS["bias"]
    assert list(pruned) == list(ARRAYS)
    assert pruned["a"].dtype == np.float32
    assert layer_sparsity(pruned, ["a", "b"]) == {"a": 0.5, "b": 0.5}
    assert sparsity_of(pruned, ["a", "b"]) == 0.5
    assert ARRAYS["a"][0, 0] == 1.0


def test_per_layer_prune_by_hand() -> None:
    pruned = prune_per_layer(ARRAYS, {"a": 0.75, "b": 0.0}, ["a", "b"])
    assert pruned["a"].tolist() == [[0, -4], [0, 0]]
    assert pruned["b"].tolist() == [[-2, 5]]
    assert prune_per_layer(ARRAYS, 0.5, ["b"])["b"].tolist() == [[0, 5]]


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1\.2"):
        prune_global(ARRAYS, 1.2, ["a"])
    with pytest.raises(ValueError, match="NaN"):
        prune_global({"a": np.array([[np.nan, 1.0]])}, 0.5, ["a"])


def test_names() -> None:
    assert default_prunable(ARRAYS) == ["a", "b"]
    names = ["conv1.weight", "fc.weight", "fc.bias"]
    assert match_prunable(names, ["fc.*", "*.weight"]) == names
    assert match_prunable(names, ["*.bias"]) == ["fc.bias"]
    with pytest.raises(ValueError, match=r"'fx\.\*' matches none of"):
        match_prunable(names, ["fx.*"])


def test_measures_by_hand() -> None:
    left = {"w": np.array([1.0, 2.0, 0.0, 0.0])}
    right = {"w": np.array([-1.0, 0.0, 3.0, 0.0])}
    assert mask_iou(left, right, ["w"]) == pytest.approx(1 / 3)
    assert mask_iou(left, left, ["w"]) == 1.0
    assert mask_iou({"w": np.zeros(3)}, {"w": np.zeros(3)}, ["w"]) == 1.0
    assert regrowth(right, left, ["w"]) == 0.25
    assert regrowth(left, left, ["w"]) == 0.0
    assert regrowth(left, right, []) == sparsity_of(left, []) == 0.0


def test_ramp() -> None:
    ramp = [sparsity_ramp(t, 30, 0.95) for t in range(1, 31)]
    assert ramp[0] == pytest.approx(0.95 * (1 - 0.9**3))
    assert ramp == sorted(ramp)
    assert ramp[9:] == [0.95] * 21
    assert sparsity_ramp(1, 1, 0.9) == 0.9
    for arguments in ((0, 10, 0.5), (1, 0, 0.5), (1, 10, 1.0)):
        with pytest.raises(ValueError, match="must be"):
            sparsity_ramp(*arguments)
