"""Runs of small integers and of bytes, each coded by whichever of its modes is smallest.

Of many integers zstd's modes may be a little larger than rANS: they are decoded a hundred times as fast.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flsparse.codec import portable
from flsparse.codec.coders import bits, grouped, rans, tables, zstd
from flsparse.codec.errors import require
from flsparse.codec.wire import Reader, Writer

PACKED, RANS, ZSTD, CONSTANT = range(4)
GROUPED = 0x80  # with the reach in the low bits
_MAX_BOUND = 127  # larger integers travel as a symbol and raw low bits
_COARSEN = 8  # from this magnitude on, raw low bits are tried
_MOST_GROUPED = 3  # times that escapes of escapes are grouped
_FEWEST_GROUPED = 256
_ESCAPE = 1.03  # bytes of escapes per byte of their entropy
_SAMPLE = 1 << 15
_BLOCK = 1 << 20
_MANY = 1 << 16  # up to here a saved byte counts for more than a saved millisecond


def encode_integers(q: NDArray[np.int16], depth: int = 0) -> bytes:
    """Code signed integers.

    Parameters
    ----------
    q : np.ndarray
        Shape (n,), int16, |q| < 2^15; n is known to the decoder.
    depth : int
        Times that these integers are escapes of grouped ones.

    Returns
    -------
    bytes
        Nothing for n = 0. Else mode | shift << 2, and the raw low ``shift`` bits of every integer; the rest, within
        -bound..bound, as: PACKED bound and fixed-width fields; RANS bound, table, stream; ZSTD length and bytes;
        CONSTANT (all are 0). Or 0x80 | reach, length and bytes of :mod:`flsparse.codec.coders.grouped`, and the
        escapes.
    """
    coded = smaller_integers(q, float("inf"), depth)
    assert coded is not None
    return coded


def smaller_integers(q: NDArray[np.int16], limit: float, depth: int = 0) -> bytes | None:
    """Return :func:`encode_integers`, or None where another way's ``limit`` bytes are not more."""
    if q.size == 0:
        return b""
    top = _top(q)
    if top == 0:
        return bytes([CONSTANT])
    counts = _histogram(q, top)
    least = 0
    while -(-top >> least) > _MAX_BOUND:
        least += 1
    widest = -(-top >> least)
    plan = _best_plan(counts, range(least, least + (4 if top >= _COARSEN else 1)))
    packed = (q.size * (least + (2 * widest).bit_length()) + 7) // 8
    rival = min(plan.size * (1 + _slack(q.size, depth)), packed, limit)
    squeezed = [each for each in (_zipped(q, least, rival), _grouped(q, rival, depth)) if each is not None]
    if squeezed:
        return min(squeezed, key=len)
    if min(plan.size, packed) >= limit:
        return None
    mode, shift, bound = (RANS, plan.shift, plan.bound) if plan.size <= packed else (PACKED, least, widest)
    out = Writer()
    out.byte(mode | shift << 2)
    out.raw(_low_bits(q, shift))
    symbols = ((q >> shift) + bound).astype(np.uint8)
    out.byte(bound)
    if mode == PACKED:
        out.raw(bits.pack(symbols, (2 * bound).bit_length()))
    else:
        out.raw(plan.table.spec)
        out.raw(rans.encode(symbols, plan.table.frequencies[None]))
    return out.done()


def least(q: NDArray[np.int16]) -> float:
    """Return a number of bytes that integers, at least one, hardly ever come below without contexts: their entropy."""
    return tables.least_bits(_histogram(q, _top(q))) / 8


def _top(q: NDArray[np.int16]) -> int:
    return max(-int(q.min()), int(q.max()))


def _histogram(q: NDArray[np.int16], top: int) -> NDArray[np.int64]:
    """Count the integers -top..top, block by block: they are widened to be counted."""
    counts = np.zeros(2 * top + 1, np.int64)
    for at in range(0, q.size, _BLOCK):
        counts += np.bincount(q[at : at + _BLOCK].astype(np.int64) + top, minlength=2 * top + 1)
    return counts


def _slack(count: int, depth: int) -> float:
    """Return the share of the bytes that rANS must save to be chosen."""
    if depth:
        return 1 / 16 if count > _MANY >> 4 else 0.0
    return 1 / 64 if count > _MANY else 0.0


def _low_bits(q: NDArray[np.int16], shift: int) -> bytes:
    return bits.pack((q & ((1 << shift) - 1)).astype(np.uint16), shift) if shift else b""


def _zipped(q: NDArray[np.int16], shift: int, rival: float) -> bytes | None:
    """Code integers as ZSTD, where that is smaller than ``rival`` bytes."""
    low = _low_bits(q, shift)
    frame = zstd.smallest((q >> shift).astype(np.int8).tobytes(), rival - len(low))
    if frame is None:
        return None
    out = Writer()
    out.byte(ZSTD | shift << 2)
    out.raw(low)
    _write_frame(out, frame)
    return out.done()


def _grouped(q: NDArray[np.int16], rival: float, depth: int) -> bytes | None:
    """Code integers in groups, where that is smaller than ``rival`` bytes; a sample decides on the reach."""
    if depth == _MOST_GROUPED or q.size < _FEWEST_GROUPED:
        return None
    sample = q[:: max(1, q.size // _SAMPLE)]
    reach = _best_reach(sample, 1.05 * rival / q.size)
    if reach is None:
        return None
    groups, escapes = grouped.split(q, reach)
    out = Writer()
    out.byte(GROUPED | reach)
    _write_frame(out, zstd.compress(groups.tobytes()))
    out.raw(encode_integers(escapes, depth + 1))
    section = out.done()
    return section if len(section) < rival else None


def _best_reach(q: NDArray[np.int16], limit: float) -> int | None:
    """Return the reach that needs the fewest bytes, or None where none needs at most ``limit`` bytes an integer."""
    top = _top(q)
    counts = _histogram(q, top)
    best, least = None, float("inf")
    for reach in grouped.REACHES:
        counts[max(0, top - reach) : top + reach + 1] = 0  # what is left are the escapes
        if 2 * int(counts.sum()) > q.size:
            continue
        escapes = _ESCAPE * portable.entropy_bits(counts) / 8
        if escapes / q.size > limit:
            continue
        expected = len(zstd.compress(grouped.split(q, reach)[0].tobytes())) + escapes
        if expected < least and expected / q.size <= limit:
            best, least = reach, expected
    return best


def _write_frame(out: Writer, frame: bytes) -> None:
    out.varint(len(frame))
    out.raw(frame)


def _read_frame(reader: Reader, size: int) -> bytes:
    return zstd.decompress(reader.raw(reader.varint(reader.left)), size)


@dataclass(frozen=True)
class _Plan:
    """Coding integers with some raw low bits: fewer symbols need a smaller table, which few integers repay sooner."""

    shift: int
    bound: int
    table: tables.Table
    size: float


def _best_plan(counts: NDArray[np.int64], shifts: range) -> _Plan:
    """Plan for a histogram over -top..top, shape (2 top + 1,): the first of the smallest."""
    top, n = counts.size // 2, int(counts.sum())
    best = None
    for shift in shifts:
        bound = -(-top >> shift)
        coarse = _coarse(counts, shift, bound)
        fixed = n * shift / 8 + rans.overhead(n)
        if best is None or fixed + tables.least_bits(coarse) / 8 < best.size:
            table = tables.choose(coarse, signed=True)
            if best is None or fixed + table.bits / 8 < best.size:
                best = _Plan(shift, bound, table, fixed + table.bits / 8)
    assert best is not None
    return best


def _coarse(counts: NDArray[np.int64], shift: int, bound: int) -> NDArray[np.int64]:
    """Return the histogram over -bound..bound of the integers of a histogram over -top..top without ``shift`` bits."""
    start = (bound << shift) - counts.size // 2
    padded = np.zeros((2 * bound + 1) << shift, np.int64)
    padded[start : start + counts.size] = counts
    coarse: NDArray[np.int64] = padded.reshape(-1, 1 << shift).sum(axis=1, dtype=np.int64)
    return coarse


def decode_integers(reader: Reader, count: int, depth: int = 0) -> NDArray[np.int16]:
    """Read ``count`` integers written by :func:`encode_integers`."""
    if count == 0:
        return np.empty(0, np.int16)
    head = reader.byte()
    if head & GROUPED:
        return _decode_groups(reader, count, head ^ GROUPED, depth)
    mode, shift = head & 3, head >> 2
    require(shift <= 8 and (mode != CONSTANT or shift == 0), f"unknown flags 0x{head:02x} of an integer section")
    if mode == CONSTANT:
        return np.zeros(count, np.int16)
    low = bits.unpack(reader, count, shift).astype(np.int16) if shift else np.int16(0)
    if mode == ZSTD:
        data = _read_frame(reader, count)
        high = np.frombuffer(data, np.int8).astype(np.int16)
    else:
        bound = reader.byte()
        require(1 <= bound <= _MAX_BOUND, f"an alphabet bound of {bound} is out of range")
        if mode == PACKED:
            symbols = bits.unpack(reader, count, (2 * bound).bit_length()).astype(np.int16)
            require(int(symbols.max()) <= 2 * bound, "a packed integer is out of range")
        else:
            frequencies = tables.read(reader, 2 * bound + 1, signed=True)
            symbols = rans.decode(reader, count, frequencies[None]).astype(np.int16)
        high = symbols - np.int16(bound)
    return high << np.int16(shift) | low


def _decode_groups(reader: Reader, count: int, reach: int, depth: int) -> NDArray[np.int16]:
    require(reach in grouped.REACHES and depth < _MOST_GROUPED, f"unknown or too many groups of reach {reach}")
    data = _read_frame(reader, grouped.group_count(count, reach))
    digits = grouped.digits_of(np.frombuffer(data, np.uint8), count, reach)
    escaped = np.flatnonzero(digits > reach)
    escapes = decode_integers(reader, escaped.size, depth + 1)
    grouped.join(digits, escaped, escapes, reach)
    return digits


def encode_bytes(data: NDArray[np.uint8]) -> bytes:
    """Code bytes, shape (n,), n known to the decoder: a mode byte, then the smallest of raw, rANS, zstd, one byte."""
    if data.size == 0:
        return b""
    counts = np.bincount(data, minlength=256)
    if counts.max() == data.size:
        return bytes([CONSTANT, int(data[0])])
    table = tables.choose(counts, signed=False)
    entropy = table.bits / 8 + rans.overhead(data.size)
    mode, rival = min((PACKED, float(data.size)), (RANS, entropy), key=lambda m: m[1])
    frame = zstd.smallest(data.tobytes(), rival)
    out = Writer()
    out.byte(mode if frame is None else ZSTD)
    if frame is not None:
        _write_frame(out, frame)
    elif mode == PACKED:
        out.raw(data.tobytes())
    else:
        out.raw(table.spec)
        out.raw(rans.encode(data, table.frequencies[None]))
    return out.done()


def decode_bytes(reader: Reader, count: int) -> NDArray[np.uint8]:
    """Read ``count`` bytes written by :func:`encode_bytes`."""
    if count == 0:
        return np.empty(0, np.uint8)
    mode = reader.byte()
    require(mode <= CONSTANT, f"unknown mode {mode} of a byte section")
    if mode == CONSTANT:
        return np.full(count, reader.byte(), np.uint8)
    if mode == PACKED:
        return np.asarray(reader.array("u1", count), np.uint8)
    if mode == ZSTD:
        return np.frombuffer(_read_frame(reader, count), np.uint8)
    frequencies = tables.read(reader, 256, signed=False)
    return rans.decode(reader, count, frequencies[None]).astype(np.uint8)


def encode_words(words: np.ndarray, base: np.ndarray | None) -> bytes:
    """Code unsigned integers losslessly, byte plane by byte plane; folded differences from ``base`` when there is one.

    Parameters
    ----------
    words, base : np.ndarray
        Shape (n,), one unsigned dtype.

    Returns
    -------
    bytes
        Number of planes that are not 0 throughout (1 byte), then these planes, the lowest first.
    """
    if words.size == 0:
        return b""
    if base is not None:
        words = _fold(words - base)
    planes = words.astype(words.dtype.newbyteorder("<"), copy=False).view(np.uint8).reshape(-1, words.itemsize)
    used = (int(words.max()).bit_length() + 7) // 8
    return b"".join([bytes([used]), *(encode_bytes(np.ascontiguousarray(planes[:, i])) for i in range(used))])


def decode_words(reader: Reader, count: int, dtype: np.dtype) -> np.ndarray:
    """Read ``count`` unsigned integers written by :func:`encode_words`, still folded if there was a base."""
    planes = np.zeros((count, dtype.itemsize), np.uint8)
    if count:
        used = reader.byte()
        require(used <= dtype.itemsize, f"{used} byte planes for a {dtype}")
        for i in range(used):
            planes[:, i] = decode_bytes(reader, count)
    return planes.view(dtype.newbyteorder("<"))[:, 0].astype(dtype, copy=False)


def _fold(words: np.ndarray) -> np.ndarray:
    """Zigzag within the word: 0, -1, 1, -2 ... become 0, 1, 2, 3 ..."""
    signed = words.view(np.dtype(f"i{words.itemsize}"))
    return (signed << 1 ^ signed >> 8 * words.itemsize - 1).view(words.dtype)


def unfold(words: np.ndarray) -> np.ndarray:
    """Undo the folding of :func:`encode_words`."""
    one = words.dtype.type(1)
    signs = np.negative(words & one)
    unfolded: np.ndarray = words >> one ^ signs
    return unfolded
