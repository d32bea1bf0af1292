from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flsparse.sparsity import (
    kept_count,
    mask_iou,
    prune_global,
    prune_lamp,
    prune_per_layer,
    regrowth,
    sparsity_of,
    sparsity_ramp,
    top_k,
)

# Few distinct values, so that ties are the rule
values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.5, 1e-38, 3e38])
shapes = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=6)
arrays = hnp.arrays(np.float32, shapes, elements=values)
models = st.dictionaries(st.sampled_from(["a", "b", "c"]), arrays, min_size=1)
sparsities = st.floats(0, 1, exclude_max=True)


@given(models, sparsities)
def test_global_prune_keeps_exactly_the_largest(model: dict[str, Any], sparsity: float) -> None:
    names = list(model)
    pruned = prune_global(model, sparsity, names)
    before = np.concatenate([model[name].reshape(-1) for name in names])
    after = np.concatenate([pruned[name].reshape(-1) for name in names])
    nonzero = int(np.count_nonzero(before))
    assert np.count_nonzero(after) == min(nonzero, kept_count(before.size, sparsity))
    assert np.array_equal(after[after != 0], before[after != 0])
    dropped = np.abs(before[(after == 0)])
    if (after != 0).any() and dropped.size:
        assert dropped.max() <= np.abs(after[after != 0]).min()
    again = prune_global(pruned, sparsity, names)
    assert all(np.array_equal(again[name], pruned[name]) for name in names)


@given(models, sparsities)
def test_lamp_keeps_as_many_the_largest_of_each_layer_and_empties_none(model: dict[str, Any], sparsity: float) -> None:
    names = list(model)
    pruned = prune_lamp(model, sparsity, names)
    left, kept = ({name: int(np.count_nonzero(arrays[name])) for name in names} for arrays in (model, pruned))
    count = min(sum(left.values()), kept_count(sum(array.size for array in model.values()), sparsity))
    assert sum(kept.values()) == count
    alive = sum(size > 0 for size in left.values())
    assert sum(size > 0 for size in kept.values()) == min(alive, count)
    for name in names:
        alone = top_k([model[name]], kept[name])[0]
        assert np.array_equal(np.flatnonzero(pruned[name]), alone)
        assert np.array_equal(pruned[name].reshape(-1)[alone], model[name].reshape(-1)[alone])
    again = prune_lamp(pruned, sparsity, names)
    assert all(np.array_equal(again[name], pruned[name]) for name in names)


@pytest.mark.parametrize("ranked", [prune_global, prune_lamp])
@given(array=arrays, sparsity=sparsities)
def test_one_layer_is_ranked_by_magnitude(ranked: Any, array: Any, sparsity: float) -> None:
    one = ranked({"a": array}, sparsity, ["a"])["a"]
    other = prune_per_layer({"a": array}, sparsity, ["a"])["a"]
    assert np.array_equal(one, other)


@given(st.lists(arrays, max_size=4), st.integers(0, 100))
def test_top_k_equals_a_stable_sort(parts: list[Any], k: int) -> None:
    flat = np.abs(np.concatenate([np.empty(0, np.float32), *(part.reshape(-1) for part in parts)]))
    order = np.argsort(-flat, kind="stable")[:k]
    expected = np.sort(order[flat[order] > 0])
    starts = np.cumsum([0, *(part.size for part in parts)])
    found = [positions + start for positions, start in zip(top_k(parts, k), starts, strict=False)]
    assert np.array_equal(np.concatenate([np.empty(0, np.int64), *found]), expected)


@given(hnp.arrays(np.float32, (4, 5), elements=values), hnp.arrays(np.float32, (4, 5), elements=values))
def test_measures_agree(left: Any, right: Any) -> None:
    a, b, names = {"w": left}, {"w": right}, ["w"]
    assert mask_iou(a, b, names) == mask_iou(b, a, names)
    assert 0 <= mask_iou(a, b, names) <= 1
    union = np.count_nonzero((left != 0) | (right != 0)) / left.size
    assert regrowth(a, b, names) == pytest.approx(union - (1 - sparsity_of(b, names)))


@given(st.integers(1, 300), st.floats(0, 0.999))
def test_ramp_rises_to_the_target(num_rounds: int, target: float) -> None:
    ramp = [sparsity_ramp(t, num_rounds, target) for t in range(1, num_rounds + 1)]
    assert ramp == sorted(ramp)
    assert ramp[-1] == target
    assert all(0 <= s <= target for s in ramp)
