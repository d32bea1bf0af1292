"""Changes of matrices and kernels in the contexts of their rows and columns: a gradient is nearly of rank one.

A layer's gradient is a sum of products, of an output's error and an input. So the changes of one output's weights (a
row) are of a size, those of one input's (a column) as well, and a row's mostly have one sign, since inputs behind a
ReLU are positive. What size a change has follows from the changes before it, from the magnitudes' mean in its row, in
its column and in its matrix, each started with some values of the matrix's::

    x = (R + 2 m)/(n_R + 2) (C + 4 m)/(n_C + 4) / m,   m = (M + 1)/(n_M + 2)

with R the sum and n_R the number of the row's magnitudes, C and M those of the column's and the matrix's. The binary
exponent of x is the magnitude's class. The sum S of the signs of the n changes of its row before it that are not 0
guesses its sign; |S|/(n + 2) in steps of 1/8, 5/16, 9/16 is that sign's class. A class of magnitudes has a Laplace or a
Gauss table of one parameter, a class of signs the share of right guesses: a byte each.

Every context hangs on the values before it, so there is one lane, and a limit to how many values go through it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import frexp, prod

import numpy as np
from numpy.typing import NDArray

from flsparse.codec import kernel, portable
from flsparse.codec.coders import rans, tables
from flsparse.codec.coders.gaps import Positions
from flsparse.codec.wire import Reader

Integers = NDArray[np.int16]
Ids = NDArray[np.int32]

MARKS = {tables.LAPLACE: 0x41, tables.GAUSS: 0x42}  # no first bytes of :mod:`flsparse.codec.coders.integers`
MOST = 96 << 10  # values; their magnitudes and signs go through one lane
_MOST_CONTEXTS = 1 << 16  # their ids are 16 bits
_CLASSES = 12
_FIRST = 3  # a mean of 1/16 to 1/8 has exponent -3, and class 0 with all below
_STEPS = (2, 5, 9)  # sixteenths of |S|/(n + 2) from which on the next class of signs begins
_SHARE = 256
_PARAMETERS = 256


@dataclass(frozen=True)
class Places:
    """Where values stand: the matrix, the row and the column of each, numbered from 0 in common.

    Parameters
    ----------
    ids : np.ndarray
        Shape (3, n), int32.
    contexts : int
        Matrices, rows and columns together.
    """

    ids: Ids
    contexts: int


def places(at: Sequence[Positions | range], shapes: list[tuple[int, ...]]) -> Places | None:
    """Return the places of values in arrays, or None where they are none, or too many.

    Parameters
    ----------
    at : sequence of np.ndarray or range
        Flat positions of each array.
    shapes : list of tuple of int
        A row is an index of the first dimension, a column one of the second; vectors are one row of one column.
    """
    sides = [shape[:2] if len(shape) > 1 else (1, 1) for shape in shapes]
    contexts = sum(1 + rows + columns for rows, columns in sides)
    if not 0 < sum(map(len, at)) <= MOST or contexts > _MOST_CONTEXTS:
        return None
    parts, first = [], 0
    for positions, shape, (rows, columns) in zip(at, shapes, sides, strict=True):
        own = np.asarray(positions, np.int64)
        row, within = np.divmod(own, max(1, prod(shape[1:]))) if len(shape) > 1 else (own * 0, own * 0)
        column = within // max(1, prod(shape[2:]))
        parts.append(np.stack([np.full(own.size, first), first + 1 + row, first + 1 + rows + column]).astype(np.int32))
        first += 1 + rows + columns
    return Places(np.concatenate(parts, axis=1), contexts)


def _before(ids: Ids, values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the sum of the values before each one of its id, and their number."""
    order = np.argsort(ids.astype(np.uint16), kind="stable")  # 16 bits are sorted by their digits
    own, grouped = values[order], ids[order]
    starts = np.flatnonzero(np.diff(grouped, prepend=grouped[0] - 1))
    sizes = np.diff(starts, append=own.size)
    sums, counts = np.empty_like(values), np.empty_like(values)
    running = np.cumsum(own) - own
    sums[order] = running - np.repeat(running[starts], sizes)
    counts[order] = np.arange(own.size) - np.repeat(starts, sizes)
    return sums, counts


def classes(q: Integers, at: Places) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """Return the class of each magnitude, and of each sign: of a guess s the class is s class, 1 to 4, or -class.

    Parameters
    ----------
    q : np.ndarray
        Shape (n,), int16.
    """
    if kernel.compiled is not None:
        sizes, signs = np.empty(q.size, np.uint8), np.empty(q.size, np.int8)
        kernel.compiled.rank_one_classes(sizes, signs, np.ascontiguousarray(q), at.ids, at.contexts)
        return sizes, signs
    magnitudes = np.abs(q).astype(np.int64)
    (m, n_m), (r, n_r), (c, n_c) = (_before(ids, magnitudes) for ids in at.ids)
    mean = (m + 1.0) / (n_m + 2.0)
    x = (r + 2.0 * mean) * (c + 4.0 * mean) / ((n_r + 2.0) * (n_c + 4.0) * mean)
    sizes = np.clip(np.frexp(x)[1] + _FIRST, 0, _CLASSES - 1).astype(np.uint8)
    rows = at.ids[1]
    s, _ = _before(rows, (q > 0).astype(np.int64) - (q < 0))
    n, _ = _before(rows, (q != 0).astype(np.int64))
    which = np.full(q.size, 1, np.int8)
    for step in _STEPS:
        which += 16 * np.abs(s) >= step * (n + 2)
    return sizes, np.where(s < 0, -which, which)


@dataclass(frozen=True)
class Coding:
    """How integers are going to be coded.

    Parameters
    ----------
    spec : bytes
        The mark, the classes, and the bytes of their tables.
    frequencies : np.ndarray
        Shape (tables, alphabet), int64.
    symbols, which : np.ndarray
        All magnitudes and then the signs of those that are not 0, and the table of each.
    size : float
        Bytes that all takes, within a few.
    """

    spec: bytes
    frequencies: NDArray[np.int64]
    symbols: NDArray[np.uint16]
    which: NDArray[np.uint8]
    size: float

    def bytes(self) -> bytes:
        """Code."""
        return self.spec + rans.encode(self.symbols, self.frequencies, self.which, rans.ONE_LANE)


@lru_cache(maxsize=4)
def _family(family: int, bound: int) -> NDArray[np.int64]:
    """Return the frequencies of the magnitudes 0..bound under each parameter: both sides of its table in one."""
    both = tables.parametric(family, np.arange(_PARAMETERS), bound)
    folded: NDArray[np.int64] = both[:, bound:].copy()
    folded[:, 1:] += both[:, bound - 1 :: -1]
    return folded


@lru_cache(maxsize=4)
def _costs(family: int, bound: int) -> NDArray[np.int64]:
    """Return the cost of each magnitude under each parameter, in units of 2^-FRACTION bits; shape (bound + 1, 256)."""
    return tables.costs()[_family(family, bound)].T.astype(np.int64)


def _tables(family: int, parameters: list[int], shares: list[int], bound: int) -> NDArray[np.int64]:
    """Return the tables of the classes of magnitudes, then of the classes of signs: right guesses and wrong ones."""
    signs = np.zeros((len(shares), bound + 1), np.int64)
    signs[:, 0] = (2 * np.array(shares) + 1) * tables.TOTAL // (2 * _SHARE)
    signs[:, 1] = tables.TOTAL - signs[:, 0]
    return np.concatenate([_family(family, bound)[parameters], signs])


def plan(q: Integers, at: Places, bound: int) -> Coding:
    """Choose the tables for integers within -bound..bound, n of them, at their places."""
    sizes, signs = classes(q, at)
    low = int(sizes.min())
    sizes -= np.uint8(low)
    count = int(sizes.max()) + 1
    magnitudes = np.abs(q)
    histogram = np.bincount(sizes * np.intp(bound + 1) + magnitudes, minlength=count * (bound + 1)).reshape(count, -1)
    least, family, parameters = min(
        (int(costs.min(axis=1).sum(dtype=np.int64)), family, costs.argmin(axis=1).tolist())
        for family in MARKS
        for costs in [np.matmul(histogram, _costs(family, bound))]
    )
    some = q != 0
    guesses = signs[some]
    wrong = (q[some] > 0) != (guesses > 0)
    which = np.abs(guesses).astype(np.uint8) - np.uint8(1)
    met = np.bincount(2 * which + wrong, minlength=2 * len(_STEPS) + 2).reshape(-1, 2)
    shares = [min(_SHARE - 1, _SHARE * right // max(1, right + others)) for right, others in met.tolist()]
    frequencies = _tables(family, parameters, shares, bound)
    signs_bits = sum(tables.cost_bits(own, table[:2]) for own, table in zip(met, frequencies[count:], strict=True))
    spec = bytes([MARKS[family], low << 4 | count - 1, *parameters, *shares])
    size = len(spec) + (least / (1 << portable.FRACTION) + signs_bits) / 8 + rans.overhead(1)
    return Coding(
        spec,
        frequencies,
        np.concatenate([magnitudes.astype(np.uint16), wrong.astype(np.uint16)]),
        np.concatenate([sizes, which + np.uint8(count)]),
        size,
    )


def decode(reader: Reader, family: int, at: Places, bound: int) -> Integers:
    """Read the integers at places, coded as planned by :func:`plan`, their mark read already.

    Raises
    ------
    PayloadError
        When the bytes are damaged or hostile.
    """
    head = reader.byte()
    low, count = head >> 4, (head & 15) + 1
    spec = reader.raw(count + len(_STEPS) + 1)
    frequencies = _tables(family, list(spec[:count]), list(spec[count:]), bound)
    n = at.ids.shape[1]
    lane = rans.OneLane(reader, 2 * n, frequencies)
    if kernel.compiled is not None:
        q = np.empty(n, np.int16)
        buffers = (q, at.ids, at.contexts, lane.state, lane.words)
        lane.check(kernel.compiled.rank_one_decode(*buffers, frequencies, bound + 1, low))
        return q
    magnitudes = _decode_magnitudes(lane, at, low, count)
    return _decode_signs(lane, at, magnitudes, count)


def _decode_magnitudes(lane: rans.OneLane, at: Places, low: int, count: int) -> list[int]:
    sums, counts, out = [0] * at.contexts, [0] * at.contexts, []
    shift, last, symbol = _FIRST - low, count - 1, lane.symbol
    for m, r, c in zip(*at.ids.tolist(), strict=True):
        mean = (sums[m] + 1.0) / (counts[m] + 2.0)
        x = (sums[r] + 2.0 * mean) * (sums[c] + 4.0 * mean) / ((counts[r] + 2.0) * (counts[c] + 4.0) * mean)
        which = frexp(x)[1] + shift
        size = symbol(0 if which < 0 else which if which < last else last)
        counts[m] += 1
        counts[r] += 1
        counts[c] += 1
        if size:
            sums[m] += size
            sums[r] += size
            sums[c] += size
        out.append(size)
    return out


def _decode_signs(lane: rans.OneLane, at: Places, magnitudes: list[int], count: int) -> Integers:
    sums, counts, out = [0] * at.contexts, [0] * at.contexts, []
    symbol, (first, second, third) = lane.symbol, _STEPS
    for r, size in zip(at.ids[1].tolist(), magnitudes, strict=True):
        if size:
            s, n = sums[r], counts[r] + 2
            share = 16 * abs(s)
            which = (share >= first * n) + (share >= second * n) + (share >= third * n)
            sign = -1 if symbol(count + which) ^ (s < 0) else 1
            sums[r] += sign
            counts[r] += 1
            size *= sign
        out.append(size)
    lane.finish()
    return np.array(out, np.int16)
