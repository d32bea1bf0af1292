import itertools

import numpy as np
import pytest

from flsparse.sparsity import kept_count, magnitude_threshold, top_k


def reference(arrays: list[np.ndarray], k: int) -> list[list[int]]:
    flat = np.abs(np.concatenate([a.reshape(-1) for a in arrays]))
    best = [i for i in np.argsort(-flat, kind="stable")[:k] if flat[i] > 0]
    starts = np.cumsum([0, *(a.size for a in arrays)])
    chosen = sorted(int(i) for i in best)
    return [[i - lo for i in chosen if lo <= i < hi] for lo, hi in itertools.pairwise(starts)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("k", [0, 1, 7, 500, 90_000, 10**9])
def test_equals_a_stable_sort(dtype: type, k: int) -> None:
    rng = np.random.default_rng(0)
    arrays: list[np.ndarray]
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in [(100, 300), (7,), (0, 3), (300, 200), ()]]
    arrays[3][rng.random(arrays[3].shape) < 0.7] = 0
    assert [found.tolist() for found in top_k(arrays, k)] == reference(arrays, k)


def test_ties_go_to_the_lowest_positions() -> None:
    arrays = [np.array([1.0, -2.0, 2.0]), np.array([2.0, 3.0, -2.0])]
    assert [found.tolist() for found in top_k(arrays, 3)] == [[1, 2], [1]]


def test_many_ties_beyond_the_sampling_size() -> None:
    array = np.sign(np.random.default_rng(0).standard_normal(200_000)).astype(np.float32)
    assert top_k([array], 1234)[0].tolist() == list(range(1234))


@pytest.mark.parametrize("k", [1, 7, 71, 102, 700])
@pytest.mark.parametrize("ties", [False, True])
def test_copies_get_equal_positions(k: int, ties: bool) -> None:
    rng = np.random.default_rng(0)
    tied, other = rng.standard_normal((51, 7)).astype(np.float32), rng.standard_normal(100).astype(np.float32)
    if ties:
        tied = np.round(tied * 3)
    first, between, second, third = top_k([tied, other, tied.copy(), tied], k)
    assert first.tolist() == second.tolist() == third.tolist()
    kept = first.size * 3 + between.size
    assert kept <= max(k, 3)
    assert kept >= k - 2
    assert np.abs(tied.ravel()[first]).min(initial=np.inf) >= np.abs(np.delete(tied.ravel(), first)).max(initial=0)


def test_equal_beginnings_and_arrays_of_few_values_are_no_copies() -> None:
    a = np.arange(200, dtype=np.float32)
    b = a.copy()
    b[-1] = 0
    assert [found.tolist() for found in top_k([a, b], 2)] == [[198, 199], []]
    ones = np.ones((3, 4))
    assert [found.tolist() for found in top_k([ones, ones], 3)] == [[0, 1, 2], []]


def test_a_sample_that_misleads_does_not_matter() -> None:
    array = np.zeros(1 << 20, np.float32)
    stride = array.size // (1 << 15) | 1
    array[::stride] = 100.0  # the sample sees nothing but these
    array[1::stride] = 1.0
    k = 2 * len(range(0, array.size, stride)) - 5
    assert top_k([array], k)[0].size == k
    assert magnitude_threshold([array], k) == 1.0


def test_zeros_are_never_selected() -> None:
    assert top_k([np.zeros(10), np.array([-0.0, 5.0])], 4)[1].tolist() == [1]
    assert magnitude_threshold([np.zeros(10)], 4) == 0.0


def test_threshold() -> None:
    values = np.array([3.0, -1.0, 2.0])
    assert [magnitude_threshold([values], k) for k in range(5)] == [np.inf, 3.0, 2.0, 1.0, 1.0]


@pytest.mark.parametrize("size", [10, 300_000])
def test_nan_is_refused_and_infinity_is_large(size: int) -> None:
    array = np.ones(size, np.float32)
    array[size // 2] = -np.inf
    assert top_k([array], 1)[0].tolist() == [size // 2]
    array[-1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        top_k([array], 3)


def test_kept_count() -> None:
    assert kept_count(100, 0.95) == 5
    assert kept_count(89_616, 0.95) == 4481
    for sparsity in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="sparsity"):
            kept_count(10, sparsity)
