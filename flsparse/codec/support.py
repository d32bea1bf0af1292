"""The positions section: which elements of the sparse arrays are kept.

Modes, one byte, of which the smallest is sent:

SAME      the reference's support, unchanged: nothing follows;
GAPS      every array is a group of :mod:`flsparse.codec.gaps`;
BITMAP    one bit an element, all arrays in a row, as coded bytes;
RELATIVE  the elements are sorted by their magnitude in the reference, in steps of 2^(1/2^sub), and each step is a
group: large
          weights are hardly ever dropped, small ones often. The reference's zeros are the last group, so positions
          outside its support cost only what they are worth. One byte ``sub`` follows.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flsparse.codec import gaps, symbols
from flsparse.codec.errors import require
from flsparse.codec.gaps import Positions, Subset
from flsparse.codec.specs import Reference
from flsparse.codec.wire import Reader

SAME, GAPS, BITMAP, RELATIVE = range(4)
_OCTAVES = 12  # below the largest magnitude; all smaller ones share the last step
_TRY_ALL = 1 << 18  # up to this many reference positions, every resolution of magnitudes is tried


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

    @cached_property
    def arrays(self) -> list[np.ndarray]:
        """Return the flat arrays."""
        return [self.reference.flat(name) for name in self.names]

    @cached_property
    def positions(self) -> list[Positions]:
        """Positions that are not zero, array by array."""
        return [self.reference.support(name) for name in self.names]

    @cached_property
    def magnitudes(self) -> NDArray[np.uint32]:
        """Float32 bit patterns of the magnitudes at those positions, all arrays in a row: monotone in the magnitude."""
        with np.errstate(over="ignore", under="ignore"):
            parts = [
                np.abs(array[at]).astype(np.float32).view(np.uint32)
                for array, at in zip(self.arrays, self.positions, strict=True)
            ]
        return np.concatenate(parts)

    def groups(self, sub: int) -> tuple[NDArray[np.intp], list[int]]:
        """Return the order that sorts by magnitude step, largest first, and the size of each step's group."""
        step = self.magnitudes >> np.uint32(23 - sub)
        depth = np.minimum(step.max(initial=0) - step, _OCTAVES << sub).astype(np.uint8)
        sizes = np.bincount(depth, minlength=(_OCTAVES << sub) + 1)
        return np.argsort(depth, kind="stable"), sizes.tolist()


def _inside_out(known: Known, kept: list[Positions]) -> tuple[NDArray[np.bool_], Positions, int]:
    """Split kept positions: mask over the reference's support, ranks of the others among its zeros, their number."""
    inside, outside, zeros = [], [], 0
    for array, at, mine in zip(known.arrays, known.positions, kept, strict=True):
        mask = np.zeros(array.size, np.bool_)
        mask[mine] = True
        inside.append(mask[at])
        if int(np.count_nonzero(inside[-1])) < mine.size:
            mask[at] = False
            new = np.flatnonzero(mask)
            outside.append(new - np.searchsorted(at, new) + zeros)
        zeros += array.size - at.size
    return np.concatenate(inside), np.concatenate([np.empty(0, np.int64), *outside]), zeros


def _encode_relative(known: Known, kept: list[Positions]) -> list[bytes]:
    if all(np.array_equal(mine, at) for mine, at in zip(kept, known.positions, strict=True)):
        return [bytes([SAME])]
    inside, outside, zeros = _inside_out(known, kept)
    tail = gaps.sparse_subset(zeros, outside)
    candidates = []
    for sub in (0, 1, 2, 3) if inside.size <= _TRY_ALL else (2,):
        order, sizes = known.groups(sub)
        sorted_mask = inside[order]
        ends = np.cumsum(sizes)
        parts = [gaps.subset(sorted_mask[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
        candidates.append(bytes([RELATIVE, sub]) + gaps.encode([*parts, tail]))
    return candidates


def encode(kept: list[Positions], sizes: list[int], known: Known | None) -> bytes:
    """Code the kept positions of every sparse array.

    Parameters
    ----------
    kept : list of np.ndarray
        Flat positions, int64, strictly increasing, one array of them per sparse array.
    sizes : list of int
        Elements of each sparse array.
    known : Known, optional
        What the reference holds in the same arrays.
    """
    candidates = _encode_relative(known, kept) if known is not None else []
    if candidates and candidates[0][0] == SAME:
        return candidates[0]
    total, count = sum(sizes), sum(at.size for at in kept)
    if known is None or 2 * known.magnitudes.size < total:  # a dense reference always helps
        subsets = [gaps.sparse_subset(size, at) for size, at in zip(sizes, kept, strict=True)]
        candidates.append(bytes([GAPS]) + gaps.encode(subsets))
    if 16 * count > total:
        mask = np.zeros(total, np.bool_)
        for at, start in zip(kept, np.cumsum([0, *sizes]), strict=False):
            mask[at + start] = True
        candidates.append(bytes([BITMAP]) + symbols.encode_bytes(np.packbits(mask)))
    return min(candidates, key=len)


def decode(reader: Reader, sizes: list[int], known: Known | None) -> list[Positions]:
    """Read what :func:`encode` wrote: flat positions of every sparse array, strictly increasing and in range."""
    mode = reader.byte()
    require(mode <= RELATIVE, f"unknown mode {mode} of the positions section")
    require(known is not None or mode in (GAPS, BITMAP), "the positions need a reference")
    if mode == GAPS:
        return [s.positions() for s in gaps.decode(reader, sizes)]
    if mode == BITMAP:
        packed = symbols.decode_bytes(reader, (sum(sizes) + 7) // 8)
        bitmap = np.unpackbits(packed).view(np.bool_)
        require(not bitmap[sum(sizes) :].any(), "padding bits are not 0")
        starts = np.cumsum([0, *sizes])
        return [np.flatnonzero(bitmap[start : start + size]) for start, size in zip(starts, sizes, strict=False)]
    assert known is not None
    return known.positions if mode == SAME else _decode_relative(reader, known)


def _decode_relative(reader: Reader, known: Known) -> list[Positions]:
    sub = reader.byte()
    require(sub <= 3, f"unknown resolution {sub} of magnitudes")
    order, sizes = known.groups(sub)
    zeros = sum(array.size for array in known.arrays) - order.size
    *parts, tail = gaps.decode(reader, [*sizes, zeros])
    inside = np.empty(order.size, np.bool_)
    inside[order] = np.concatenate([part.mask() for part in parts])
    return _merge(known, inside, tail)


def _merge(known: Known, inside: NDArray[np.bool_], tail: Subset) -> list[Positions]:
    """Undo :func:`_inside_out`."""
    ranks = tail.positions()
    kept, at_inside, at_zero = [], 0, 0
    for array, at in zip(known.arrays, known.positions, strict=True):
        mine = at[inside[at_inside : at_inside + at.size]]
        at_inside += at.size
        zeros = array.size - at.size
        low, high = np.searchsorted(ranks, [at_zero, at_zero + zeros])
        if low < high:
            rank = ranks[low:high] - at_zero
            new = rank + np.searchsorted(at - np.arange(at.size), rank, "right")
            mask = np.zeros(array.size, np.bool_)
            mask[mine] = True
            mask[new] = True
            mine = np.flatnonzero(mask)
        at_zero += zeros
        kept.append(mine)
    return kept
