"""Tensors of small symbols, each coded in the context of two neighbors of its channel.

In an image the neighbors are the symbols to the left and above (where one of them is missing, the other twice); in any
other tensor, whose last axis counts features, the symbols of the same feature one and two places before. Symbols are
taken position by position, all channels of a position together: when a row of the entropy coder's lanes is decoded, the
neighbors of all its symbols are known, so lanes step together in NumPy and still see their contexts.
"""

from functools import lru_cache
from math import prod

import numpy as np
from numpy.typing import NDArray

from flsparse.codec.coders import bits, rans, tables
from flsparse.codec.errors import require
from flsparse.codec.portable import entropy_bits
from flsparse.codec.wire import Reader, Writer

PACKED, ORDER0, CONTEXT = range(3)
_LEVELS = 8  # levels that a neighbor's symbol is quantized to
_CACHED = 1 << 20  # symbols up to which the order of a shape is remembered
_LOW, _SLOT, _BITS, _WORD = 1 << 16, np.uint32(tables.TOTAL - 1), np.uint32(tables.BITS), np.uint32(16)
_NOT_AT_ITS_END = "an entropy-coded stream does not end where it began"
_SAME = bytes([tables.GIVEN])

Shape = tuple[int, ...]
Symbols = NDArray[np.uint8]
Index = NDArray[np.int32]


def _order(shape: Shape) -> tuple[Index, Index, int]:
    """Return the positions of the neighbors of each symbol, and the number of symbols of a position.

    Returns
    -------
    near, far : np.ndarray
        Shape (n,), int32: places in coding order plus 1; 0 for none.
    planes : int
        Symbols of one position: neighbors are at least this many places back.
    """
    return _cached_order(shape) if prod(shape) <= _CACHED else _make_order(shape)


def _make_order(shape: Shape) -> tuple[Index, Index, int]:
    if len(shape) >= 4:
        planes, height, width = prod(shape[:-2]), shape[-2], shape[-1]
        place = np.arange(height * width)
        column, row = place % width, place // width
        left = np.where(column > 0, 1, np.where(row > 0, width, 0))
        above = np.where(row > 0, width, np.where(column > 0, 1, 0))
    else:
        planes = shape[-1] if shape else 1
        place = np.arange(prod(shape) // max(1, planes))
        left, above = np.minimum(place, 1), np.minimum(place, 2)
    within = np.arange(planes, dtype=np.int32)[None]

    def places(back: NDArray[np.int64]) -> Index:
        known = (back > 0)[:, None]
        return np.where(known, ((place - back) * planes)[:, None] + within + 1, 0).astype(np.int32).reshape(-1)

    return places(left), places(above), planes


_cached_order = lru_cache(maxsize=8)(_make_order)


def _to_order(symbols: Symbols, shape: Shape) -> Symbols:
    """Bring symbols from memory order into coding order."""
    if len(shape) < 4:
        return symbols.reshape(-1)
    return np.ascontiguousarray(symbols.reshape(-1, shape[-2] * shape[-1]).T).reshape(-1)


def _from_order(symbols: Symbols, shape: Shape) -> Symbols:
    if len(shape) < 4:
        return symbols
    return np.ascontiguousarray(symbols.reshape(shape[-2] * shape[-1], -1).T).reshape(-1)


def _levels(alphabet: int) -> tuple[Symbols, int]:
    """Return the level of each symbol as a neighbor, 0 for the symbol 0 alone, and the number of levels."""
    count = min(alphabet, _LEVELS)
    return (-(-np.arange(alphabet) * (count - 1) // (alphabet - 1))).astype(np.uint8), count


def contexts(symbols: Symbols, shape: Shape, alphabet: int) -> tuple[Symbols, NDArray[np.uint8]]:
    """Return the symbols in coding order and the context of each, in 0..63.

    Parameters
    ----------
    symbols : np.ndarray
        Shape (n,), uint8, below ``alphabet``, in memory order of a tensor of ``shape``.
    """
    ordered = _to_order(symbols, shape)
    near, far, _ = _order(shape)
    level_of, levels = _levels(alphabet)
    padded = np.concatenate([np.zeros(1, np.uint8), level_of[ordered]])
    return ordered, padded[near] * np.uint8(levels) + padded[far]


def conditional_entropy(symbols: Symbols, shape: Shape, alphabet: int) -> float:
    """Return the empirical entropy of a symbol given its two neighbors, in bits: the bound of a coder with these
    contexts.

    Examples
    --------
    >>> conditional_entropy(np.zeros(64, np.uint8), (1, 1, 8, 8), 4)
    0.0
    """
    ordered, which = contexts(symbols, shape, alphabet)
    return sum(entropy_bits(row) for row in _counts(ordered, which, alphabet)) / ordered.size


def _counts(ordered: Symbols, which: NDArray[np.uint8], alphabet: int) -> NDArray[np.int64]:
    _, levels = _levels(alphabet)
    index = which.astype(np.intp) * alphabet + ordered
    return np.bincount(index, minlength=levels * levels * alphabet).reshape(-1, alphabet)


def encode(symbols: Symbols, shape: Shape, width: int, *, entropy: bool = True) -> bytes:
    """Code the symbols of one tensor.

    Parameters
    ----------
    symbols : np.ndarray
        Shape (n,), uint8, below ``2**width``, in memory order.
    shape : tuple of int
        Of the tensor; known to the decoder.
    width : int
        Bits of a symbol, 1..8.
    entropy : bool
        False: pack them, ``width`` bits each.

    Returns
    -------
    bytes
        Nothing for no symbols. Else a mode and, PACKED, the fields; ORDER0, a table and one stream; CONTEXT, a table
        for all, one for each context (by default the table for all), and one stream.
    """
    if symbols.size == 0:
        return b""
    out, alphabet = Writer(), 1 << width
    packed = (symbols.size * width + 7) // 8
    if not entropy:
        out.byte(PACKED)
        out.raw(bits.pack(symbols, width))
        return out.done()
    ordered, which = contexts(symbols, shape, alphabet)
    counts = _counts(ordered, which, alphabet)
    total = counts.sum(axis=0, dtype=np.int64)
    common = tables.choose(total, signed=False)
    own = [
        tables.choose(row, signed=False, given=common.frequencies)
        if row.any()
        else tables.Table(common.frequencies, _SAME, 8.0 * len(_SAME))
        for row in counts
    ]
    overhead = rans.overhead(symbols.size)
    sizes = {
        PACKED: float(packed),
        ORDER0: common.bits / 8 + overhead,
        CONTEXT: len(common.spec) + sum(table.bits for table in own) / 8 + overhead,
    }
    if not _sees_contexts(shape):
        del sizes[CONTEXT]
    mode = min(sizes, key=lambda m: sizes[m])
    out.byte(mode)
    if mode == PACKED:
        out.raw(bits.pack(symbols, width))
        return out.done()
    out.raw(common.spec)
    if mode == ORDER0:
        out.raw(rans.encode(ordered, common.frequencies[None]))
        return out.done()
    for table in own:
        out.raw(table.spec)
    out.raw(rans.encode(ordered, np.array([table.frequencies for table in own]), which))
    return out.done()


def _sees_contexts(shape: Shape) -> bool:
    """Whether the neighbors of a row of lanes are known before that row."""
    planes = prod(shape[:-2]) if len(shape) >= 4 else shape[-1] if shape else 1
    return rans.lane_count(prod(shape)) <= planes


def decode(reader: Reader, shape: Shape, width: int) -> Symbols:
    """Read the symbols of a tensor of ``shape``, in memory order, written by :func:`encode`.

    Raises
    ------
    PayloadError
        When the bytes are damaged or hostile.
    """
    count, alphabet = prod(shape), 1 << width
    if count == 0:
        return np.empty(0, np.uint8)
    mode = reader.byte()
    require(mode <= CONTEXT, f"unknown mode {mode} of a symbol section")
    if mode == PACKED:
        return bits.unpack(reader, count, width).astype(np.uint8)
    common = tables.read(reader, alphabet, signed=False)
    if mode == ORDER0:
        return _from_order(rans.decode(reader, count, common[None]).astype(np.uint8), shape)
    require(_sees_contexts(shape), "contexts where a tensor has too few channels for them")
    level_of, levels = _levels(alphabet)
    own = np.array([tables.read(reader, alphabet, signed=False, given=common) for _ in range(levels * levels)])
    near, far, _ = _order(shape)
    lanes = rans.lane_count(count)
    size = reader.varint(min(max(0, reader.left - 4 * lanes) // 2, count))
    states = np.asarray(reader.array("u4", lanes)).astype(np.uint32)
    words = np.asarray(reader.array("u2", size)).astype(np.uint16)
    require(bool((states >= _LOW).all()), "an entropy coder's state is out of range")
    run = _decode_one_lane if lanes == 1 else _decode_lanes
    return _from_order(run(count, states, words, (near, far), own, level_of, levels), shape)


# The two loops below read the stream of flsparse.codec.coders.rans; they choose each table as they go.


def _decode_lanes(
    count: int,
    states: NDArray[np.uint32],
    words: NDArray[np.uint16],
    neighbors: tuple[Index, Index],
    own: rans.Tables,
    level_of: Symbols,
    levels: int,
) -> Symbols:
    near, far = neighbors
    frequencies, starts = own.astype(np.uint32), (np.cumsum(own, axis=1) - own).astype(np.uint32)
    bounds = np.ascontiguousarray(starts[:, 1:].T)  # a symbol is the number of bounds at or below the slot
    known, out = np.zeros(count + 1, np.uint8), np.empty(count, np.uint8)
    used = 0
    for at in range(0, count, states.size):
        end = min(at + states.size, count)
        which = known[near[at:end]] * np.uint8(levels) + known[far[at:end]]
        x = states[: end - at]
        slot = x & _SLOT
        symbols = (bounds[:, which] <= slot).sum(axis=0, dtype=np.uint8)
        out[at:end] = symbols
        known[at + 1 : end + 1] = level_of[symbols]
        x >>= _BITS
        x *= frequencies[which, symbols]
        x += slot - starts[which, symbols]
        low = np.flatnonzero(x < _LOW)
        require(used + low.size <= words.size, "an entropy-coded stream ends early")
        x[low] = x[low] << _WORD | words[used : used + low.size]
        used += low.size
    require(used == words.size and bool((states == _LOW).all()), _NOT_AT_ITS_END)
    return out


def _decode_one_lane(
    count: int,
    states: NDArray[np.uint32],
    words: NDArray[np.uint16],
    neighbors: tuple[Index, Index],
    own: rans.Tables,
    level_of: Symbols,
    levels: int,
) -> Symbols:
    slots = [np.repeat(np.arange(own.shape[1]), row).tolist() for row in own]
    frequency, start = own.tolist(), (np.cumsum(own, axis=1) - own).tolist()
    level, known, out = level_of.tolist(), [0] * (count + 1), bytearray(count)
    x, stream = int(states[0]), iter(words.tolist())
    for i, (near, far) in enumerate(zip(*(each.tolist() for each in neighbors), strict=True)):
        which = known[near] * levels + known[far]
        slot = x & (tables.TOTAL - 1)
        symbol = slots[which][slot]
        x = frequency[which][symbol] * (x >> tables.BITS) + slot - start[which][symbol]
        if x < _LOW:
            word = next(stream, None)
            require(word is not None, "an entropy-coded stream ends early")
            x = x << 16 | word
        out[i] = symbol
        known[i + 1] = level[symbol]
    require(x == _LOW and next(stream, None) is None, _NOT_AT_ITS_END)
    return np.frombuffer(bytes(out), np.uint8)
