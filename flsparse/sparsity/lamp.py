"""Layer-adaptive magnitude pruning (LAMP; Lee et al., ICLR 2021, arXiv 2010.07611).

    score(w_i) = w_i^2 / sum of w_j^2 over the |w_j| >= |w_i| of the same layer

One ranking of the scores over all layers together. The largest weight of a layer has a score of 1, so that no layer is
emptied while there is one weight for each, and a layer's scale does not matter: only how its weights compare.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flsparse.sparsity.topk import Array, copies, top_k


def lamp_positions(arrays: Sequence[Array], k: int) -> list[npt.NDArray[np.int64]]:
    """Return the positions of the ``k`` values of largest LAMP score in all arrays together.

    Parameters
    ----------
    arrays : Sequence[ndarray]
        Floating arrays of any shape, each a layer.
    k : int
        How many to select, clipped to [0, total size].

    Returns
    -------
    list[ndarray of int64]
        For each array its selected flat indices (C order), strictly increasing: ``min(k, non-zeros)`` in all, of each
        array its largest magnitudes. A zero is never selected. Ties are decided as in `top_k`; so are copies of a tied
        weight, which get equal positions and may be a value short.

    Raises
    ------
    ValueError
        When a value is NaN.

    Examples
    --------
    >>> wide, narrow = np.array([5.0, 4.0, 3.0, 3.0]), np.array([0.2, 0.1])
    >>> [found.tolist() for found in lamp_positions([wide, narrow], 3)]
    [[0, 1], [0]]
    """
    flat = [np.ascontiguousarray(array).reshape(-1) for array in arrays]
    share = k / max(1, sum(array.size for array in flat))
    limits = [1 + int(1.25 * share * array.size) for array in flat]  # so many of each layer are looked at first
    candidates, scores = [np.empty(0, np.int64)] * len(flat), [np.empty(0)] * len(flat)
    short = list(range(len(flat)))
    counts: list[int] = []
    while short:
        for i in short:
            candidates[i] = top_k([flat[i]], min(k, limits[i]))[0]
            scores[i] = _scores(np.abs(flat[i][candidates[i]]))
        counts = _largest(scores, k)
        # A layer of which all that was looked at is kept may have more to give
        short = [i for i in short if counts[i] == candidates[i].size == limits[i] < flat[i].size]
        for i in short:
            limits[i] *= 4
    for group in copies(flat):
        if both := sum(counts[i] for i in group):
            for i in group:
                counts[i] = min(candidates[i].size, max(1, both // len(group)))
    return [
        where[top_k([array[where]], count)[0]] for where, array, count in zip(candidates, flat, counts, strict=True)
    ]


def _scores(magnitudes: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the LAMP scores of one layer's magnitudes, all above 0: in (0, 1], or 0 by underflow, falling."""
    if not magnitudes.size:
        return np.empty(0)
    falling = np.minimum(np.sort(magnitudes)[::-1].astype(np.float64), np.finfo(np.float64).max)
    squares = (falling / falling[0]) ** 2
    scores: npt.NDArray[np.float64] = squares / np.cumsum(squares)
    return scores


def _largest(scores: Sequence[npt.NDArray[np.float64]], k: int) -> list[int]:
    """Return how many of each array's scores are among the ``k`` largest of all; ties go to the first arrays."""
    everything = np.concatenate([np.empty(0), *scores])
    if everything.size <= k:
        return [each.size for each in scores]
    if k <= 0:
        return [0] * len(scores)
    threshold = np.partition(everything, everything.size - k)[everything.size - k]
    counts = [int(np.count_nonzero(each > threshold)) for each in scores]
    left = k - sum(counts)
    for i, each in enumerate(scores):
        ties = min(left, int(np.count_nonzero(each == threshold)))
        counts[i] += ties
        left -= ties
    return counts
