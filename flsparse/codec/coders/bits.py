"""Fields of a few bits each, packed without gaps; low-level helpers of the other sections."""

import numpy as np
from numpy.typing import NDArray

from flsparse.codec import kernel
from flsparse.codec.errors import require
from flsparse.codec.wire import Reader

_CHUNK = 1 << 16
_FAULTS = (  # of a Rice code, by the kernel's status
    "payload ends early: 1 bytes wanted, 0 left",
    "a unary run exceeds its bound",
    "a table entry exceeds its bound",
    "padding bits are not 0",
)


def pack(fields: np.ndarray, width: int) -> bytes:
    """Pack unsigned integers below ``2**width`` into ``ceil(n * width / 8)`` bytes, most significant bit first.

    Parameters
    ----------
    fields : np.ndarray
        Shape (n,), unsigned.
    width : int
        Bits a field, 0..56.
    """
    if width == 0 or fields.size == 0:
        return b""
    if width == 8:
        return fields.astype(np.uint8, copy=False).tobytes()
    shifts = np.arange(width - 1, -1, -1, dtype=np.uint64)
    parts = []
    for at in range(0, fields.size, _CHUNK):  # _CHUNK fields end on a byte, and bound the expanded bits' memory
        chunk = fields[at : at + _CHUNK].astype(np.uint64)
        parts.append(np.packbits((chunk[:, None] >> shifts & np.uint64(1)).astype(np.uint8)).tobytes())
    return b"".join(parts)


def unpack(reader: Reader, count: int, width: int) -> NDArray[np.uint64]:
    """Read ``count`` fields written by :func:`pack`; refuses padding bits that are not 0."""
    if width == 0:
        return np.zeros(count, np.uint64)
    data = np.asarray(reader.array("u1", (count * width + 7) // 8), np.uint8)
    if width == 8:
        return data.astype(np.uint64)
    padding = -count * width % 8
    require(not padding or int(data[-1]) & ((1 << padding) - 1) == 0, "padding bits are not 0")
    weights = np.uint64(1) << np.arange(width - 1, -1, -1, dtype=np.uint64)
    out = np.empty(count, np.uint64)
    step = _CHUNK * width // 8
    for i, at in enumerate(range(0, data.size, step)):
        fields = min(_CHUNK, count - i * _CHUNK)
        flat = np.unpackbits(data[at : at + step], count=fields * width)
        np.matmul(flat.reshape(fields, width), weights, out=out[i * _CHUNK : i * _CHUNK + fields])
    return out


def read_flags(reader: Reader, count: int) -> NDArray[np.bool_]:
    """Read ``count`` bits, most significant first; refuses padding bits that are not 0."""
    return unpack(reader, count, 1).astype(np.bool_)


def rice_bits(values: NDArray[np.int64], k: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of bits that :func:`rice_pack` needs for the last axis of ``values >> k``."""
    bits: NDArray[np.int64] = ((values >> k) + 1 + k).sum(axis=-1, dtype=np.int64)
    return bits


def rice_pack(values: NDArray[np.int64], k: int) -> bytes:
    """Code small non-negative integers: ``v >> k`` ones, a zero, then the low ``k`` bits; padded to a byte."""
    text = "".join("1" * (v >> k) + "0" + (format(v & ((1 << k) - 1), f"0{k}b") if k else "") for v in values.tolist())
    return int(text.ljust(-(-len(text) // 8) * 8, "0") or "0", 2).to_bytes(-(-len(text) // 8), "big")


def rice_unpack(reader: Reader, count: int, k: int, most: int) -> list[int]:
    """Read ``count`` integers of at most ``most``; the unary runs are bounded by it."""
    if kernel.compiled is not None:
        read = np.empty(count, np.int64)
        used = kernel.compiled.rice_unpack(read, reader.data[reader.at :], k, most)
        require(used >= 0, _FAULTS[min(used, -1)])
        reader.raw(used)
        return list(read.tolist())
    values: list[int] = []
    current = left = 0

    def bit() -> int:
        nonlocal current, left
        if not left:
            current, left = reader.byte(), 8
        left -= 1
        return current >> left & 1

    for _ in range(count):
        high = 0
        while bit():
            high += 1
            require(high << k <= most, _FAULTS[-3])
        value = high
        for _ in range(k):
            value = value << 1 | bit()
        require(value <= most, _FAULTS[-2])
        values.append(value)
    require(current & ((1 << left) - 1) == 0, _FAULTS[-1])
    return values
