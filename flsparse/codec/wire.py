"""The envelope: header, section lengths, checksum, and the bounded reader that every parser goes through.

Layout (little endian)::

    0  magic "FSP"      3 | version 1 to 3     1 | CRC-32 of all other bytes 4
    8  codec and flags  1 | specs fingerprint  4 | reference id 0 or 8
    then varints: number of values, bytes of the sections positions, values, dense; the lossless section is the rest

In version 3, of payloads with a reference, there is no fingerprint, which the reference implies; and no length of the
dense section where, a flag, the lossless one is empty.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flsparse.codec.errors import PayloadError, require

MAGIC = b"FSP"
VERSION = 3
LEAN = 3  # of payloads with a reference; others say 2 where they use a mode that 1 has not
VALUES = ("raw", "fp32", "fp16", "int8", "int4")  # a codec's place in this list is its id on the wire
SECTIONS = ("positions", "values", "dense", "lossless")
REFERENCE_FLAG = 0x10
DENSE_LAST_FLAG = 0x20
REFERENCE_BYTES = 8
_FIXED = 13


class Writer:
    """A growing byte string."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def raw(self, data: bytes) -> None:
        """Append bytes as they are."""
        self.parts.append(data)

    def byte(self, value: int) -> None:
        """Append one byte."""
        self.parts.append(bytes([value]))

    def varint(self, value: int) -> None:
        """Append an unsigned integer, 7 bits a byte, low bits first."""
        if value <= 0x7F:
            return self.byte(value)
        out = bytearray()
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
        self.parts.append(bytes(out))

    def array(self, values: np.ndarray) -> None:
        """Append an array's bytes in little-endian order."""
        self.parts.append(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())

    def done(self) -> bytes:
        """Return all that was written."""
        return b"".join(self.parts)


class Reader:
    """Bounded cursor over a payload's bytes."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = memoryview(data)
        self.at = 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self.data) - self.at

    def raw(self, count: int) -> memoryview:
        """Read ``count`` bytes."""
        require(0 <= count <= self.left, f"payload ends early: {count} bytes wanted, {self.left} left")
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self) -> int:
        """Read one byte."""
        return self.raw(1)[0]

    def varint(self, most: int) -> int:
        """Read an unsigned integer that may not exceed ``most``."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            require(shift < 63, "a varint is longer than 9 bytes")
        require(byte != 0 or shift == 7, "a varint has a needless last byte")
        require(value <= most, f"a count of {value} exceeds its bound {most}")
        return value

    def array(self, dtype: str, count: int) -> np.ndarray:
        """Read ``count`` little-endian elements (a read-only view)."""
        kind = np.dtype(dtype).newbyteorder("<")
        return np.frombuffer(self.raw(count * kind.itemsize), kind, count)

    def skips(self, value: int) -> bool:
        """Read the next byte where it is ``value``, and say whether it was."""
        here = self.left > 0 and self.data[self.at] == value
        self.at += here
        return here

    def finish(self, what: str) -> None:
        """Refuse bytes left over at the end."""
        require(self.left == 0, f"{self.left} bytes too many in {what}")


@dataclass(frozen=True)
class Envelope:
    """A payload taken apart, its checksum verified, its sections not parsed yet.

    Parameters
    ----------
    values : str
        One of ``raw``, ``fp32``, ``fp16``, ``int8``, ``int4``.
    fingerprint : bytes or None
        4 bytes, see :func:`flsparse.codec.specs.fingerprint`; None: that of the reference.
    reference_id : str or None
        First 16 hex characters of the reference's id; None when the payload needs no reference.
    nnz : int
        Values carried: kept positions of sparse arrays plus all elements of the others.
    sections : mapping of str to bytes or memoryview
        ``positions``, ``values``, ``dense``, ``lossless``.
    version : int
        Of the format, 1 to 3.
    """

    values: str
    fingerprint: bytes | None
    reference_id: str | None
    nnz: int
    sections: Mapping[str, bytes | memoryview]
    version: int = 1


def checksum(payload: bytes | bytearray | memoryview) -> bytes:
    """Return the CRC-32 that belongs at bytes 4..8 of ``payload``: over everything else in it."""
    view = memoryview(payload)
    return zlib.crc32(view[8:], zlib.crc32(view[:4])).to_bytes(4, "little")


def seal(envelope: Envelope) -> bytes:
    """Serialize an envelope."""
    out, lean = Writer(), envelope.version >= LEAN
    dense_last = lean and not envelope.sections["lossless"]
    flags = VALUES.index(envelope.values) | (REFERENCE_FLAG if envelope.reference_id else 0)
    flags |= DENSE_LAST_FLAG if dense_last else 0
    out.raw(MAGIC + bytes([envelope.version]) + bytes(4) + bytes([flags]) + (envelope.fingerprint or b""))
    out.raw(bytes.fromhex(envelope.reference_id or ""))
    out.varint(envelope.nnz)
    for name in SECTIONS[: 2 if dense_last else 3]:
        out.varint(len(envelope.sections[name]))
    for name in SECTIONS:
        out.raw(bytes(envelope.sections[name]))
    payload = bytearray(out.done())
    payload[4:8] = checksum(payload)
    return bytes(payload)


def unseal(payload: bytes | memoryview) -> Envelope:
    """Take a payload apart.

    Raises
    ------
    PayloadError
        For a foreign magic, another version, a wrong checksum, unknown flags, or lengths that do not add up.
    """
    view = memoryview(payload).cast("B") if not isinstance(payload, bytes) else memoryview(payload)
    require(len(view) >= _FIXED, f"{len(view)} bytes are too few for a payload")
    require(bytes(view[:3]) == MAGIC, "this is no flsparse payload (wrong magic)")
    require(1 <= view[3] <= VERSION, f"payload version {view[3]} is not one of 1 to {VERSION}")
    require(bytes(view[4:8]) == checksum(view), "checksum mismatch: the payload was damaged on its way")
    reader = Reader(view)
    reader.raw(8)
    flags = reader.byte()
    codec, lean, dense_last = flags & 0x0F, view[3] >= LEAN, flags & DENSE_LAST_FLAG != 0
    known = REFERENCE_FLAG | (DENSE_LAST_FLAG if lean else 0)
    is_known = codec < len(VALUES) and flags & 0xF0 & ~known == 0 and (flags & REFERENCE_FLAG or not lean)
    require(bool(is_known), f"unknown codec or flags 0x{flags:02x}")
    mark = None if lean else bytes(reader.raw(4))
    reference_id = bytes(reader.raw(REFERENCE_BYTES)).hex() if flags & REFERENCE_FLAG else None
    nnz = reader.varint(2**62)
    lengths = [reader.varint(len(view)) for _ in SECTIONS[: 2 if dense_last else 3]]
    parts: list[memoryview] = [reader.raw(length) for length in lengths]
    parts.append(reader.raw(reader.left))
    parts += [memoryview(b"")] * dense_last
    return Envelope(VALUES[codec], mark, reference_id, nnz, dict(zip(SECTIONS, parts, strict=True)), view[3])


@dataclass(frozen=True)
class PayloadInfo:
    """Header of a payload: everything that can be read without the arrays' specs.

    Parameters
    ----------
    version : int
        Of the wire format.
    values : str
        Codec of the values.
    reference_id : str or None
        First 16 hex characters of :attr:`Reference.id`; None when none is needed.
    sections : dict of str to int
        Bytes of ``header``, ``positions``, ``values``, ``dense``, ``lossless``; they add up to ``size``.
    nnz : int
        Values carried: kept positions of sparse arrays plus all elements of the others.
    size : int
        Bytes of the payload.
    """

    version: int
    values: str
    reference_id: str | None
    sections: dict[str, int]
    nnz: int
    size: int


def payload_info(payload: bytes) -> PayloadInfo:
    """Read a payload's header and section sizes.

    Raises
    ------
    PayloadError
        When the envelope is damaged or of another version.
    """
    envelope = unseal(payload)
    sizes = {name: len(part) for name, part in envelope.sections.items()}
    sections = {"header": len(payload) - sum(sizes.values()), **sizes}
    return PayloadInfo(envelope.version, envelope.values, envelope.reference_id, sections, envelope.nnz, len(payload))


__all__ = ["Envelope", "PayloadError", "PayloadInfo", "Reader", "Writer", "payload_info", "seal", "unseal"]
