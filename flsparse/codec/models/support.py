"""Positions section: the support of the sparse arrays.

Modes, one byte, of which the smallest is sent:

SAME      the reference's support, unchanged: nothing follows;
GAPS      every array is a group of :mod:`flsparse.codec.coders.gaps`;
BITMAP    one bit an element, all arrays in a row, as coded bytes;
RELATIVE  the elements are sorted by their magnitude in the reference, in steps of 2^(1/2^sub), and each step is a
group: large
          weights are hardly ever dropped, small ones often. The reference's zeros are the last group, so positions
          outside its support cost bits only where there are any. One byte ``sub`` follows;
APART     GAPS with a table for each array and fewer lanes, from format version 2 on, without a reference.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flsparse.codec.coders import gaps, integers
from flsparse.codec.coders.gaps import Positions, Subset
from flsparse.codec.errors import require
from flsparse.codec.specs import Reference
from flsparse.codec.wire import Reader

SAME, GAPS, BITMAP, RELATIVE, APART = range(5)
_FINEST = 3  # the largest ``sub``
_OCTAVES = 12  # below the largest magnitude; all smaller ones share the last step
_BLOCK = 1 << 20  # support elements sorted at once
_TRY_ALL = 1 << 18  # up to this many positions, every resolution of magnitudes is tried, and tables in common


@dataclass(frozen=True)
class Known:
    """The reference's view of the sparse arrays.

    Parameters
    ----------
    reference : Reference
        The model.
    names : list of str
        Its sparse arrays, in order.
    """

    reference: Reference
    names: list[str]

    @property
    def arrays(self) -> Iterator[tuple[np.ndarray, Positions]]:
        """Flat arrays with the positions where they are not zero; one at a time, since a dense one's are large."""
        for name in self.names:
            yield self.reference.flat(name), self.reference.support(name)

    @cached_property
    def nnz(self) -> int:
        """Size of the support."""
        return sum(at.size for _, at in self.arrays)

    @cached_property
    def magnitudes(self) -> NDArray[np.uint16]:
        """Exponent and 3 bits of fraction of the support's elements as float32, all arrays in a row."""
        parts = [np.empty(0, np.uint16)]
        with np.errstate(over="ignore", under="ignore"):
            for array, at in self.arrays:
                single = np.abs(array[at]).astype(np.float32).view(np.uint32)  # bit patterns grow with the magnitude
                parts.append((single >> np.uint32(23 - _FINEST)).astype(np.uint16))
        return np.concatenate(parts)

    def depths(self, sub: int) -> NDArray[np.uint8]:
        """Steps of about 2^(1/2^sub) below the largest magnitude, of the support's elements, all arrays in a row."""
        steps = self.magnitudes >> np.uint16(_FINEST - sub)
        depths: np.ndarray = np.minimum(steps.max(initial=0) - steps, _OCTAVES << sub)
        return depths.astype(np.uint8)

    def by_depth(self, sub: int) -> "ByDepth":
        """Return the support sorted by depth; the reference keeps the order of a sparse model for the next payload."""

        def sort() -> ByDepth:
            depths, levels = self.depths(sub), _levels(sub)
            blocks = _blocks(depths, levels)
            return ByDepth(np.bincount(depths, minlength=levels).tolist(), list(blocks) if few else blocks)

        few = 2 * self.nnz <= sum(self.reference.flat(name).size for name in self.names)
        return self.reference.once((sub, *self.names), sort) if few else sort()


@dataclass(frozen=True)
class Kept:
    """The kept positions of one sparse array.

    Parameters
    ----------
    positions : np.ndarray
        Flat, int64, strictly increasing.
    within : tuple of (np.ndarray, np.ndarray) or None
        The reference's support, where that is sparse and holds all of them, and their places in it.
    """

    positions: Positions
    within: tuple[Positions, Positions] | None = None


Block = tuple[slice, NDArray[np.int32], list[int]]


@dataclass(frozen=True)
class ByDepth:
    """A support sorted by depth.

    Parameters
    ----------
    sizes : list of int
        Elements at each depth.
    blocks : iterable of (slice, np.ndarray, list of int)
        Parts of the support with the order that sorts each by depth, and the number of its elements at each.
    """

    sizes: list[int]
    blocks: Iterable[Block]


def _levels(sub: int) -> int:
    return (_OCTAVES << sub) + 1


def _blocks(depths: NDArray[np.uint8], levels: int) -> Iterator[Block]:
    for start in range(0, depths.size, _BLOCK):
        own = slice(start, start + _BLOCK)
        order = np.argsort(depths[own], kind="stable").astype(np.int32)
        yield own, order, np.bincount(depths[own], minlength=levels).tolist()


def _sorted(inside: NDArray[np.bool_], by_depth: ByDepth) -> NDArray[np.bool_]:
    """Return a mask over the support in the order of depths."""
    if inside.size <= _BLOCK:
        return np.concatenate([inside[:0], *(inside[own].take(order) for own, order, _ in by_depth.blocks)])
    pieces: list[list[NDArray[np.bool_]]] = [[np.empty(0, np.bool_)] for _ in by_depth.sizes]
    for own, order, counts in by_depth.blocks:
        ends = np.cumsum(counts)
        ordered = inside[own].take(order)
        for depth, (end, count) in enumerate(zip(ends, counts, strict=True)):
            pieces[depth].append(ordered[end - count : end])
    return np.concatenate([part for piece in pieces for part in piece])


def _join(parts: list[NDArray[np.bool_]], by_depth: ByDepth) -> NDArray[np.bool_]:
    """Undo :func:`_sorted`, given the part at each depth."""
    inside = np.empty(sum(by_depth.sizes), np.bool_)
    used = [0] * len(parts)
    for own, order, counts in by_depth.blocks:
        pieces = [part[at : at + count] for part, at, count in zip(parts, used, counts, strict=True)]
        inside[own][order.astype(np.intp)] = np.concatenate(pieces)  # twice as fast as NumPy's own conversion
        used = [at + count for at, count in zip(used, counts, strict=True)]
    return inside


def _inside_out(known: Known, kept: list[Positions]) -> tuple[NDArray[np.bool_], Positions, int]:
    """Split kept positions: mask over the reference's support, ranks of the others among its zeros, their number."""
    inside, outside, zeros = [], [], 0
    for (array, at), mine in zip(known.arrays, kept, strict=True):
        mask = np.zeros(array.size, np.bool_)
        mask[mine] = True
        inside.append(mask[at])
        if int(np.count_nonzero(inside[-1])) < mine.size:
            mask[at] = False
            new = np.flatnonzero(mask)
            outside.append(new - np.searchsorted(at, new) + zeros)
        zeros += array.size - at.size
    return np.concatenate(inside), np.concatenate([np.empty(0, np.int64), *outside]), zeros


def _ways(kept: list[Positions], sizes: list[int], known: Known | None) -> Iterator[tuple[bytes, list[Subset]]]:
    """Yield the modes that code gaps: their first bytes, and the subsets."""
    if known is not None:
        inside, outside, zeros = _inside_out(known, kept)
        tail = gaps.sparse_subset(zeros, outside)
        for sub in range(_FINEST + 1) if inside.size <= _TRY_ALL else (2,):
            by_depth = known.by_depth(sub)
            yield bytes([RELATIVE, sub]), [*gaps.subsets(_sorted(inside, by_depth), by_depth.sizes), tail]
    if known is None or 2 * known.nnz < sum(sizes):  # a dense reference always helps
        subsets = [gaps.sparse_subset(size, at) for size, at in zip(sizes, kept, strict=True)]
        if known is not None or sum(at.size for at in kept) <= _TRY_ALL:
            yield bytes([GAPS]), subsets
        if known is None:
            yield bytes([APART]), subsets


def encode(kept: list[Positions], sizes: list[int], known: Known | None) -> bytes:
    """Code the kept positions of every sparse array: the first of the smallest modes.

    Parameters
    ----------
    kept : list of np.ndarray
        Flat positions, int64, strictly increasing, one array of them per sparse array.
    sizes : list of int
        Elements of each sparse array.
    known : Known, optional
        The reference's view of the same arrays.
    """
    if known is not None and all(np.array_equal(mine, at) for mine, (_, at) in zip(kept, known.arrays, strict=True)):
        return bytes([SAME])
    candidates: list[bytes] = []
    for head, subsets in _ways(kept, sizes, known):
        limit = min(map(len, candidates), default=float("inf")) - len(head)
        coded = gaps.encode(subsets, limit, apart=head[0] == APART)
        if coded is not None:
            candidates.append(head + coded)
    total, count = sum(sizes), sum(at.size for at in kept)
    if 16 * count > total:
        mask = np.zeros(total, np.bool_)
        for at, start in zip(kept, np.cumsum([0, *sizes]), strict=False):
            mask[at + start] = True
        candidates.append(bytes([BITMAP]) + integers.encode_bytes(np.packbits(mask)))
    return min(candidates, key=len)


def decode(reader: Reader, sizes: list[int], known: Known | None, version: int) -> list[Kept]:
    """Decode the bytes of :func:`encode`: what is kept of every sparse array, strictly increasing and in range."""
    mode = reader.byte()
    require(mode <= (RELATIVE if version == 1 else APART), f"unknown mode {mode} of the positions section")
    require(known is not None or mode in (GAPS, BITMAP, APART), "the positions need a reference")
    if mode in (GAPS, APART):
        return [Kept(s.positions()) for s in gaps.decode(reader, sizes, apart=mode == APART)]
    if mode == BITMAP:
        packed = integers.decode_bytes(reader, (sum(sizes) + 7) // 8)
        bitmap = np.unpackbits(packed).view(np.bool_)
        require(not bitmap[sum(sizes) :].any(), "padding bits are not 0")
        starts = np.cumsum([0, *sizes])
        return [Kept(np.flatnonzero(bitmap[start : start + size])) for start, size in zip(starts, sizes, strict=False)]
    assert known is not None
    return [Kept(at) for _, at in known.arrays] if mode == SAME else _decode_relative(reader, known)


def _decode_relative(reader: Reader, known: Known) -> list[Kept]:
    sub = reader.byte()
    require(sub <= _FINEST, f"unknown resolution {sub} of magnitudes")
    by_depth = known.by_depth(sub)
    zeros = sum(known.reference.specs[name].size for name in known.names) - sum(by_depth.sizes)
    *parts, tail = gaps.decode(reader, [*by_depth.sizes, zeros])
    return _merge(known, _join([part.mask() for part in parts], by_depth), tail)


def _merge(known: Known, inside: NDArray[np.bool_], tail: Subset) -> list[Kept]:
    """Undo :func:`_inside_out`."""
    ranks = tail.positions()
    kept, at_inside, at_zero = [], 0, 0
    for array, at in known.arrays:
        places = np.flatnonzero(inside[at_inside : at_inside + at.size])
        at_inside += at.size
        mine = Kept(at.take(places), (at, places) if 2 * at.size <= array.size else None)
        zeros = array.size - at.size
        low, high = np.searchsorted(ranks, [at_zero, at_zero + zeros])
        if low < high:
            rank = ranks[low:high] - at_zero
            new = rank + np.searchsorted(at - np.arange(at.size), rank, "right")
            mask = np.zeros(array.size, np.bool_)
            mask[mine.positions] = True
            mask[new] = True
            mine = Kept(np.flatnonzero(mask))
        at_zero += zeros
        kept.append(mine)
    return kept
