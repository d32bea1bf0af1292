"""Integers of several arrays, none of them 0: tables of an array's own where they pay, and signs by their changes.

An integer is a magnitude, and whether its sign is that of the integer before it in the array: neighbors in a kernel
often agree, those within 9 positions more often than others. Three tables make a group, of the magnitudes, of the
near signs and of the far ones. An array is a group by itself, or of the group that the small ones have in common.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flsparse.codec.coders import bits, rans, tables
from flsparse.codec.coders.gaps import Positions
from flsparse.codec.errors import require
from flsparse.codec.wire import Reader, Writer

Integers = NDArray[np.int16]

MARK = 0x40  # no first byte of :mod:`flsparse.codec.coders.integers`
_NEAR = 9
_ROWS = 4096
_SHARE = 256  # a sign's table is a byte, the share of equal signs
_SIGN_BITS = 16  # of both bytes


@dataclass(frozen=True)
class _Counts:
    """Histograms of a group's magnitudes, shape (bound,), and of its near and far signs: equal, changed."""

    magnitudes: NDArray[np.int64]
    signs: NDArray[np.int64]

    def plus(self, other: "_Counts") -> "_Counts":
        return _Counts(self.magnitudes + other.magnitudes, self.signs + other.signs)


@dataclass(frozen=True)
class _Group:
    """A group's tables, the bytes that rebuild them, and the bits of these and of what they were made for."""

    magnitudes: NDArray[np.int64]
    shares: tuple[int, int]
    spec: bytes
    bits: float

    def rows(self) -> NDArray[np.int64]:
        """Return the three tables, one row each."""
        rows = np.zeros((3, max(2, self.magnitudes.size)), np.int64)
        rows[0, : self.magnitudes.size] = self.magnitudes
        rows[1, :2], rows[2, :2] = (_sign_table(share) for share in self.shares)
        return rows


def _sign_table(share: int) -> NDArray[np.int64]:
    equal = (2 * share + 1) * tables.TOTAL // (2 * _SHARE)
    return np.array([equal, tables.TOTAL - equal])


def _far(at: Positions) -> NDArray[np.bool_]:
    """Whether the value before is more than 9 positions away, or there is none."""
    far = np.ones(at.size, np.bool_)
    far[1:] = np.diff(at) > _NEAR
    return far


def _changed(q: Integers) -> NDArray[np.bool_]:
    """Whether the sign is not that of the value before; before the first it is positive."""
    negative = q < 0
    changed = negative.copy()
    changed[1:] ^= negative[:-1]
    return changed


def _counts(q: Integers, at: Positions, bound: int) -> _Counts:
    signs = np.bincount(2 * _far(at) + _changed(q), minlength=4).reshape(2, 2)
    return _Counts(np.bincount(np.abs(q) - 1, minlength=bound), signs)


def _fit(counts: _Counts) -> _Group:
    table = tables.choose(counts.magnitudes, signed=False)
    shares = [min(_SHARE - 1, _SHARE * int(own[0]) // max(1, int(own.sum()))) for own in counts.signs]
    signs = sum(tables.cost_bits(own, _sign_table(share)) for own, share in zip(counts.signs, shares, strict=True))
    return _Group(
        table.frequencies, (shares[0], shares[1]), table.spec + bytes(shares), table.bits + signs + _SIGN_BITS
    )


def _bits_under(group: _Group, counts: _Counts) -> float:
    """Return the bits of an array under a group's tables."""
    signs = zip(counts.signs, group.shares, strict=True)
    return tables.cost_bits(counts.magnitudes, group.magnitudes) + sum(
        tables.cost_bits(own, _sign_table(share)) for own, share in signs
    )


def encode(arrays: list[Integers], at: list[Positions], bound: int) -> bytes:
    """Code the integers of arrays; the decoder knows their positions.

    Parameters
    ----------
    arrays : list of np.ndarray
        Shape (k,) each, int16, within -bound..bound, never 0.
    at : list of np.ndarray
        Shape (k,) each: flat positions, int64, strictly increasing.
    bound : int
        Largest magnitude.

    Returns
    -------
    bytes
        ``MARK``; a bit for each array that is not empty, whether it is a group by itself; of each group, the common one
        first where there is one, the table of its magnitudes and a byte for its near and its far signs; the rANS stream
        of all magnitudes, then of all signs.
    """
    parts = [(q, own) for q, own in zip(arrays, at, strict=True) if q.size]
    counts = [_counts(q, own, bound) for q, own in parts]
    every = counts[0]
    for own in counts[1:]:
        every = every.plus(own)
    common, alone = _fit(every), [_fit(own) for own in counts]
    apart = [group.bits < _bits_under(common, own) for group, own in zip(alone, counts, strict=True)]
    shared = [own for own, is_apart in zip(counts, apart, strict=True) if not is_apart]
    groups = [group for group, is_apart in zip(alone, apart, strict=True) if is_apart]
    if shared:
        every = shared[0]
        for own in shared[1:]:
            every = every.plus(own)
        groups = [_fit(every), *groups]
    out = Writer()
    out.byte(MARK)
    out.raw(bits.pack(np.array(apart, np.uint8), 1))
    out.raw(b"".join(group.spec for group in groups))
    symbols = [(np.abs(q) - 1).astype(np.uint8) for q, _ in parts] + [_changed(q).view(np.uint8) for q, _ in parts]
    which = _which(np.array(apart), [own for _, own in parts])
    frequencies = np.concatenate([group.rows() for group in groups])
    out.raw(rans.encode(np.concatenate(symbols), frequencies, which, _ROWS))
    return out.done()


def _which(apart: NDArray[np.bool_], at: list[Positions]) -> NDArray[np.uint16]:
    """Return the table of each magnitude, then of each sign."""
    first = 0 if apart.all() else 1
    group = 3 * np.where(apart, np.cumsum(apart) - 1 + first, 0).astype(np.uint16)
    of_value = np.repeat(group, [own.size for own in at])
    return np.concatenate([of_value, of_value + np.uint16(1) + np.concatenate([_far(own) for own in at])])


def decode(reader: Reader, at: list[Positions], bound: int) -> list[Integers]:
    """Read the integers of arrays at given positions, written by :func:`encode`, its mark read already."""
    parts = [own for own in at if own.size]
    require(bool(parts), "layered integers without a value")
    apart = bits.read_flags(reader, len(parts))
    frequencies = []
    for _ in range(int(np.count_nonzero(apart)) + (not apart.all())):
        magnitudes = tables.read(reader, bound, signed=False)
        frequencies.append(_Group(magnitudes, (reader.byte(), reader.byte()), b"", 0.0).rows())
    count = sum(own.size for own in parts)
    symbols = rans.decode(reader, 2 * count, np.concatenate(frequencies), _which(apart, parts), _ROWS)
    magnitudes, changed = symbols[:count].view(np.int16) + np.int16(1), symbols[count:].astype(np.bool_)
    out, start = [], 0
    for own in at:
        mine = slice(start, start + own.size)
        start += own.size
        negative = np.bitwise_xor.accumulate(changed[mine]) if own.size else changed[mine]
        out.append(np.where(negative, -magnitudes[mine], magnitudes[mine]))
    return out
