"""Exact magnitude top-k over many arrays, without sorting and without a copy of them all.

A strided sample gives a threshold that lies safely (six standard deviations) below the wanted one; one pass in blocks
that stay in the cache gathers the values above it; only these few survivors are partitioned. The count of survivors is
checked, so that the result is exact whatever the sample.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_BLOCK = 1 << 16
_SAMPLE = 1 << 15
_GLANCE = 64  # arrays that differ mostly do so in their first values
_BY_CHANCE = 7  # arrays of ones, signs, masks are equal without being copies


def kept_count(size: int, sparsity: float) -> int:
    """Return how many of ``size`` values are kept at a sparsity in [0, 1): the nearest integer, at least one of any.

    Examples
    --------
    >>> kept_count(1000, 0.95), kept_count(10, 0.99), kept_count(0, 0.5)
    (50, 1, 0)
    """
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")
    return min(size, max(1, round((1.0 - sparsity) * size)))


def set_positions(mask: npt.NDArray[np.bool_], bits: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.int64]:
    """Return ``numpy.flatnonzero(mask)`` of a 1-D mask, in less than half its time when few are set.

    ``bits`` is ``numpy.packbits(mask)`` where the caller has it.
    """
    if np.count_nonzero(mask) * 10 > mask.size:
        return np.flatnonzero(mask)
    bits = np.packbits(mask) if bits is None else bits
    occupied = np.flatnonzero(bits != 0)
    inside = np.flatnonzero(np.unpackbits(bits[occupied]).view(np.bool_))
    positions: npt.NDArray[np.int64] = (occupied[inside >> 3] << 3) + (inside & 7)
    return positions


def top_k(arrays: Sequence[Array], k: int) -> list[npt.NDArray[np.int64]]:
    """Return the positions of the ``k`` values of largest magnitude in all arrays together.

    Parameters
    ----------
    arrays : Sequence[ndarray]
        Floating arrays of any shape; they are ranked as one long vector, in the order given.
    k : int
        How many to select, clipped to [0, total size].

    Returns
    -------
    list[ndarray of int64]
        For each array its selected flat indices (C order), strictly increasing: ``min(k, non-zeros)`` in all. A zero
        is never selected. Of equal magnitudes at the border the lowest positions win. Copies of a tied weight (equal
        arrays of more than seven magnitudes) get equal positions: each its share of theirs, rounded down, at least one.

    Raises
    ------
    ValueError
        When a value is NaN.
    """
    flat = [np.ascontiguousarray(array).reshape(-1) for array in arrays]
    k = min(k, sum(array.size for array in flat))
    lower = _sampled_bound(flat, k)
    positions, magnitudes = _gather(flat, lower)
    if lower > 0 and sum(part.size for part in magnitudes) < k:  # the sample misled
        positions, magnitudes = _gather(flat, 0.0)
    if k <= 0:
        return [part[:0] for part in positions]
    everything = np.concatenate(magnitudes) if magnitudes else np.empty(0)
    if everything.size <= k:
        return positions
    threshold = np.partition(everything, everything.size - k)[everything.size - k]
    ties_left = k - int(np.count_nonzero(everything > threshold))
    selected = []
    for part, magnitude in zip(positions, magnitudes, strict=True):
        keep = magnitude > threshold
        ties = np.flatnonzero(magnitude == threshold)[:ties_left]
        keep[ties] = True
        ties_left -= ties.size
        selected.append(part[keep])
    for group in copies(flat):
        if both := sum(selected[i].size for i in group):
            share = top_k([flat[group[0]]], max(1, both // len(group)))[0]
            for i in group:
                selected[i] = share
    return selected


def copies(flat: Sequence[Array]) -> list[list[int]]:
    """Return the places of arrays that are copies of others, in groups."""
    groups: defaultdict[tuple[str, int, bytes], list[list[int]]] = defaultdict(list)
    for i, array in enumerate(flat):
        alike = groups[array.dtype.str, array.size, array[:_GLANCE].tobytes()]
        for group in alike:
            if np.array_equal(flat[group[0]], array):
                group.append(i)
                break
        else:
            alike.append([i])
    found = [group for alike in groups.values() for group in alike if len(group) > 1]
    return [group for group in found if np.unique(np.abs(flat[group[0]])).size > _BY_CHANCE]


def magnitude_threshold(arrays: Sequence[Array], k: int) -> float:
    """Return the ``k``-th largest magnitude of all arrays together; 0 when fewer are not zero, infinity for ``k = 0``.

    Raises
    ------
    ValueError
        When a value is NaN.
    """
    flat = [np.ascontiguousarray(array).reshape(-1) for array in arrays]
    k = min(k, sum(array.size for array in flat))
    lower = _sampled_bound(flat, k)
    magnitudes = np.concatenate([np.empty(0, np.float32), *_gather(flat, lower)[1]])
    if lower > 0 and magnitudes.size < k:
        magnitudes = np.concatenate(_gather(flat, 0.0)[1])
    if k <= 0:
        return float("inf")
    if magnitudes.size < k:
        return 0.0
    return float(np.partition(magnitudes, magnitudes.size - k)[magnitudes.size - k])


def _sampled_bound(flat: Sequence[Array], k: int) -> float:
    """Return a magnitude that at least ``k`` values almost surely exceed; 0 when a sample cannot tell."""
    total = sum(array.size for array in flat)
    if k <= 0:
        return float("inf")
    if total <= 2 * _SAMPLE:
        return 0.0
    stride = total // _SAMPLE | 1  # odd, or the stride would walk along one row of a power-of-two layer
    sample = np.abs(np.concatenate([array[::stride] for array in flat]))
    expected = sample.size * k / total
    rank = int(expected + 6.0 * (expected * (1.0 - k / total)) ** 0.5) + len(flat)
    if rank >= sample.size:
        return 0.0
    bound = float(np.partition(sample, sample.size - rank)[sample.size - rank])
    return bound if np.isfinite(bound) else 0.0


def _gather(flat: Sequence[Array], lower: float) -> tuple[list[npt.NDArray[np.int64]], list[Array]]:
    """Return positions and magnitudes of the values with ``|x| >= lower`` and ``x != 0``, per array."""
    positions, magnitudes = [], []
    for array in flat:
        parts: list[npt.NDArray[np.int64]] = []
        values: list[Array] = []
        for start in range(0, array.size, _BLOCK):
            magnitude = np.abs(array[start : start + _BLOCK])
            if np.isnan(magnitude.max()):
                raise ValueError("cannot rank by magnitude: a value is NaN")
            where = set_positions(magnitude >= lower if lower > 0 else magnitude != 0)
            values.append(magnitude[where])
            where += start
            parts.append(where)
        positions.append(np.concatenate([np.empty(0, np.int64), *parts]))
        magnitudes.append(np.concatenate([np.empty(0, array.dtype), *values]))
    return positions, magnitudes
