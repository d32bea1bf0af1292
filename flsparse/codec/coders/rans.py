"""Range asymmetric numeral systems with static tables, many independent lanes stepped together in NumPy.

Symbol i belongs to row i // lanes and lane i % lanes. A lane's state is a 32-bit integer x in [2^16, 2^32); with f the
symbol's frequency, c the sum of the frequencies before it, and M = 2^14::

    encode, last row first:  if x >= f 2^18: emit the low 16 bits, x >>= 16;  x <- floor(x / f) M + x mod f + c
    decode, first row first: s = symbol at x mod M;  x <- f floor(x / M) + x mod M - c;  if x < 2^16: x <- 2^16 x + next
    word

Decoding ends with every state at 2^16, where encoding began: a check that costs nothing. Few symbols go through one
lane in plain Python, which is faster there, over the same bitstream; the compiled kernel takes them one by one.

Duda, "Asymmetric numeral systems", arXiv 1311.2540; Giesen, "Interleaved entropy coders", arXiv 1402.3392.
"""

from collections.abc import Callable
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from flsparse.codec import kernel
from flsparse.codec.coders.tables import BITS, TOTAL
from flsparse.codec.errors import require
from flsparse.codec.wire import Reader, Writer

_LOW = 1 << 16
_ROWS = 1024  # a lane costs about 3 bytes, a row a dozen NumPy calls
ONE_LANE = 1 << 14  # least rows at which up to 196,608 symbols go through one lane
_SCALAR = 12 * 1024
_FEWEST = 12  # lanes, where there are several
_GATHER = 1 << 14  # table look-ups for this many symbols at once
_MAX_LANES = 1 << 13
_LANE_BYTES = 4
_FAULTS = (  # by the kernel's status, less 1
    "an entropy coder's state is out of range",
    "an entropy-coded stream ends early",
    "an entropy-coded stream does not end where it began",
)
_RENORM, _WORD = np.uint32(32 - BITS), np.uint32(16)


def lane_count(symbols: int, rows: int = _ROWS) -> int:
    """Return the number of lanes for a number of symbols and a least number of rows; equal at both ends."""
    return 1 if symbols <= max(_SCALAR, _FEWEST * rows) else min(symbols // rows, _MAX_LANES)


def overhead(symbols: int) -> int:
    """Return about how many bytes a stream costs beyond its symbols' information."""
    return 1 + 3 * lane_count(symbols)


def least(bits: float, symbols: int, rows: int = _ROWS) -> float:
    """Return about how many bytes a stream of ``bits`` of information needs at least.

    A lane ends with 0 to 16 bits of it in its state, and with at most a percent more or less than there were.
    """
    lanes = lane_count(symbols, rows)
    return 1 + _LANE_BYTES * lanes + max(0.0, 0.99 * bits / 8 - 2 * lanes)


Tables = NDArray[np.int64]


def _starts(frequencies: Tables) -> Tables:
    return np.cumsum(frequencies, axis=1) - frequencies


def _contiguous(frequencies: Tables) -> Tables:
    return np.ascontiguousarray(frequencies, np.int64)


def encode(symbols: np.ndarray, frequencies: Tables, which: np.ndarray | None = None, rows: int = _ROWS) -> bytes:
    """Code symbols.

    Parameters
    ----------
    symbols : np.ndarray
        Shape (n,), unsigned, below the alphabet's size, each with a frequency above 0 in its table.
    frequencies : np.ndarray
        Shape (tables, alphabet), int64, each row summing to 2^14.
    which : np.ndarray, optional
        Shape (n,): the table of each symbol; the first by default.
    rows : int
        Fewer are faster, at 3 bytes a lane.

    Returns
    -------
    bytes
        Number of words (varint), final states (4 bytes a lane), words (2 bytes each). Nothing for no symbols.
    """
    n = symbols.size
    if n == 0:
        return b""
    index = symbols.astype(np.int32)
    if which is not None:
        index += which * np.int32(frequencies.shape[1])
    lanes = lane_count(n, rows)
    if kernel.compiled is not None:
        stream: bytes = kernel.compiled.rans_encode(index, _contiguous(frequencies), frequencies.shape[1], lanes)
        return stream
    run = _encode_scalar if lanes == 1 else _encode_lanes
    states, words = run(index, frequencies.ravel(), _starts(frequencies).ravel(), lanes)
    out = Writer()
    out.varint(words.size)
    out.array(states)
    out.array(words)
    return out.done()


def _encode_scalar(
    index: NDArray[np.int32], frequency: Tables, start: Tables, lanes: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    # by symbol: where its words begin, f, M - f, c; the new state is x + floor(x / f) (M - f) + c
    table = [(f << 32 - BITS, f, TOTAL - f, c) for f, c in zip(frequency.tolist(), start.tolist(), strict=True)]
    words: list[int] = []
    x = _LOW
    for s in reversed(index.tolist()):
        full, f, rest, c = table[s]
        if x >= full:
            words.append(x & 0xFFFF)
            x >>= 16
        x += x // f * rest + c
    return np.array([x], np.uint32), np.array(words[::-1], np.uint16)


def _encode_lanes(
    index: NDArray[np.int32], frequency: Tables, start: Tables, lanes: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    f_of = frequency.astype(np.uint32)
    c_of = start.astype(np.uint32)
    rest_of = (TOTAL - frequency).astype(np.uint32)
    inverse_of = 1.0 / np.maximum(frequency, 1)
    states = np.full(lanes, _LOW, np.uint32)
    chunks: list[NDArray[np.uint16]] = []
    block = lanes * max(1, _GATHER // lanes)
    for first in range((index.size - 1) // block * block, -1, -block):
        own = index[first : first + block]
        f, c, rest, inverse = f_of[own], c_of[own], rest_of[own], inverse_of[own]
        for at in range((own.size - 1) // lanes * lanes, -1, -lanes):
            end = min(at + lanes, own.size)
            x = states[: end - at]
            over = x >> _RENORM >= f[at:end]
            chunks.append(x[over].astype(np.uint16))
            x >>= over * _WORD
            # floor(x / f): the half keeps the product at least 2^-15 away from any integer, far above rounding
            quotient = ((x + 0.5) * inverse[at:end]).astype(np.uint32)
            quotient *= rest[at:end]
            x += quotient
            x += c[at:end]
    return states, np.concatenate(chunks[::-1])


def decode(
    reader: Reader, count: int, frequencies: Tables, which: np.ndarray | None = None, rows: int = _ROWS
) -> NDArray[np.uint16]:
    """Read ``count`` symbols written by :func:`encode`.

    Raises
    ------
    PayloadError
        When words are missing or left over, or a lane does not end where encoding began.
    """
    if count == 0:
        return np.empty(0, np.uint16)
    lanes = lane_count(count, rows)
    words_left = max(0, reader.left - _LANE_BYTES * lanes) // 2
    size = reader.varint(min(words_left, count))
    raw_states, raw_words = reader.array("u4", lanes), reader.array("u2", size)
    alphabet = frequencies.shape[1]
    if kernel.compiled is not None:
        symbols = np.empty(count, np.uint16)
        own = None if which is None else which.astype(np.uint16, copy=False)
        tables = _contiguous(frequencies)
        status = kernel.compiled.rans_decode(symbols, raw_states, raw_words, tables, alphabet, own)
        require(status == 0, _FAULTS[status - 1])
        return symbols
    states, words = raw_states.astype(np.uint32), raw_words.astype(np.uint16)
    require(bool((states >= _LOW).all()), _FAULTS[0])
    slots = np.concatenate([np.repeat(np.arange(alphabet, dtype=np.uint16), row) for row in frequencies])
    starts = _starts(frequencies)
    run = _decode_scalar if lanes == 1 else _decode_lanes
    return run(count, states, words, slots, frequencies, starts, which)


def _decode_scalar(
    count: int,
    states: NDArray[np.uint32],
    words: NDArray[np.uint16],
    slots: NDArray[np.uint16],
    frequencies: Tables,
    starts: Tables,
    which: np.ndarray | None,
) -> NDArray[np.uint16]:
    table_at: list[tuple[int, int]] = []  # by slot: the frequency, and the constant to add
    for i, (own, first) in enumerate(zip(frequencies.tolist(), starts.tolist(), strict=True)):
        for f, c in zip(own, first, strict=True):
            table_at += [(f, c + (i << BITS))] * f
    offsets = repeat(0, count) if which is None else (which.astype(np.intp) << BITS).tolist()
    slot_at: list[int] = []
    x, stream = int(states[0]), iter(words.tolist())
    for offset in offsets:
        slot = offset + (x & (TOTAL - 1))
        f, c = table_at[slot]
        x = f * (x >> BITS) + slot - c
        if x < _LOW:
            word = next(stream, -1)
            require(word >= 0, _FAULTS[1])
            x = x << 16 | word
        slot_at.append(slot)
    require(x == _LOW and next(stream, None) is None, _FAULTS[2])
    return slots.take(slot_at)


class OneLane:
    """The stream of one lane, read symbol by symbol: the symbols before may tell a symbol's table.

    Parameters
    ----------
    reader : Reader
        At a stream that :func:`encode` wrote with one lane.
    most : int
        Symbols that it has at most.
    frequencies : np.ndarray
        Shape (tables, alphabet), int64, each row summing to 2^14.

    Attributes
    ----------
    state, words : np.ndarray
        Shape (1,), uint32, and (w,), uint16: the stream for the kernel, which reads it whole; NumPy has ``symbol`` and
        ``finish``.
    """

    def __init__(self, reader: Reader, most: int, frequencies: Tables) -> None:
        size = reader.varint(min(max(0, reader.left - _LANE_BYTES) // 2, most))
        self.state, self.words = reader.array("u4", 1), reader.array("u2", size)
        if kernel.compiled is None:
            self.check(1 if int(self.state[0]) < _LOW else 0)
            self.symbol, self.finish = self._reading(frequencies)

    def _reading(self, frequencies: Tables) -> tuple[Callable[[int], int], Callable[[], None]]:
        """Return what reads the next symbol, of a table, and what refuses an end elsewhere than encoding began."""
        x, words = int(self.state[0]), iter(self.words.tolist())
        rows: list[
            list[tuple[int, int, int]]
        ] = []  # by table and slot: the frequency, the sum of those before, the symbol
        for own, before in zip(frequencies.tolist(), _starts(frequencies).tolist(), strict=True):
            rows.append([step for s, (f, c) in enumerate(zip(own, before, strict=True)) for step in [(f, c, s)] * f])

        def symbol(table: int) -> int:
            nonlocal x
            slot = x & TOTAL - 1
            f, c, found = rows[table][slot]
            x = f * (x >> BITS) + slot - c
            if x < _LOW:
                word = next(words, -1)
                require(word >= 0, _FAULTS[1])
                x = x << 16 | word
            return found

        def finish() -> None:
            require(x == _LOW and next(words, None) is None, _FAULTS[2])

        return symbol, finish

    def check(self, status: int) -> None:
        """Refuse what the kernel found at fault in the stream: 0 is nothing."""
        require(status == 0, _FAULTS[status - 1])


def _decode_lanes(
    count: int,
    states: NDArray[np.uint32],
    words: NDArray[np.uint16],
    slots: NDArray[np.uint16],
    frequencies: Tables,
    starts: Tables,
    which: np.ndarray | None,
) -> NDArray[np.uint16]:
    step_of = np.empty(slots.size, np.uint32)  # one look-up a symbol: f in the upper half, slot - c in the lower
    for i, (f, c) in enumerate(zip(frequencies, starts, strict=True)):
        own = slice(i << BITS, i + 1 << BITS)
        step_of[own] = f[slots[own]] << 16 | np.arange(TOTAL) - c[slots[own]]
    wide, steps, lanes = words.astype(np.uint32), np.empty(states.size, np.uint32), states.size
    symbols, used = np.empty(count, np.uint16), 0
    block = lanes * max(1, _GATHER // lanes)
    for first in range(0, count, block):
        slots_at = np.zeros(min(block, count - first), np.intp)
        if which is not None:
            slots_at += which[first : first + block].astype(np.intp) << BITS
        for at in range(0, slots_at.size, lanes):
            slot = slots_at[at : at + lanes]
            x, step = states[: slot.size], steps[: slot.size]
            slot |= x & np.uint32(TOTAL - 1)
            step_of.take(slot, out=step, mode="clip")
            x >>= np.uint32(BITS)
            x *= step >> _WORD
            step &= np.uint32(0xFFFF)
            x += step
            low = (x < _LOW).nonzero()[0]
            require(used + low.size <= wide.size, _FAULTS[1])
            x[low] = x.take(low) << _WORD | wide[used : used + low.size]
            used += low.size
        symbols[first : first + block] = slots.take(slots_at)
    require(used == words.size and bool((states == _LOW).all()), _FAULTS[2])
    return symbols
