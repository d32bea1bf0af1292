"""Envelope of coded activations: codec and checksum, verified before the content is decoded.

Layout: magic "FSA" and version 4 bytes, CRC-32 of all other bytes 4, kind and flags 1, bits of a code 1; then the
content, by kind. The tensor's shape does not travel: the receiver knows it.
"""

from dataclasses import dataclass
from math import prod

from flsparse.codec.errors import require
from flsparse.codec.wire import Reader, Writer, checksum

MAGIC = b"FSA\x01"  # the last byte is the format's version
MASKED, UNIFORM, DENSE = range(3)
HALF, CODED, SIGNED = 0x10, 0x20, 0x40  # values are fp16; entropy coded; signs follow
MAX_ELEMENTS = 1 << 28
_FLAGS = {MASKED: HALF | CODED | SIGNED, UNIFORM: CODED, DENSE: HALF}


@dataclass(frozen=True)
class Head:
    """Header of a payload.

    Attributes
    ----------
    kind : int
        MASKED, UNIFORM or DENSE.
    flags : int
        HALF, CODED, SIGNED.
    bits : int
        Of a code, 1..8.
    """

    kind: int
    flags: int
    bits: int


@dataclass(frozen=True)
class Sections:
    """Bytes of one payload by content.

    Attributes
    ----------
    masks : int
        Codes and signs.
    values : int
        Kept values, or all of them in a dense payload.
    header : int
        The rest.
    """

    masks: int
    values: int
    header: int


def start(kind: int, bits: int, flags: int) -> Writer:
    """Start a payload."""
    out = Writer()
    out.raw(MAGIC + bytes(4) + bytes([kind | flags, bits]))
    return out


def finish(out: Writer) -> bytes:
    """Return the payload with its checksum."""
    payload = bytearray(out.done())
    payload[4:8] = checksum(payload)
    return bytes(payload)


def open_payload(payload: bytes, shape: tuple[int, ...]) -> tuple[Head, Reader]:
    """Check a payload's envelope, and return its header and a reader of its content.

    Raises
    ------
    PayloadError
        When it is damaged, of another version, or the tensor would be too large.
    """
    require(len(payload) >= 10 and bytes(payload[:4]) == MAGIC, "these are no coded activations of this version")
    require(bytes(payload[4:8]) == checksum(payload), "checksum mismatch: the payload was damaged on its way")
    require(prod(shape) <= MAX_ELEMENTS, f"{prod(shape)} values are more than {MAX_ELEMENTS}")
    reader = Reader(payload)
    reader.raw(8)
    byte, bits = reader.byte(), reader.byte()
    kind, flags = byte & 0x0F, byte & 0xF0
    known = kind in _FLAGS and not flags & ~_FLAGS[kind]
    require(known and 1 <= bits <= 8, f"unknown kind or flags 0x{byte:02x}, or {bits} bits")
    return Head(kind, flags, bits), reader


def sections_of(payload: bytes) -> Sections:
    """Return the bytes of a payload by content.

    Raises
    ------
    PayloadError
        When its header is damaged.
    """
    head, reader = open_payload(payload, ())
    if head.kind == DENSE:
        return Sections(0, reader.left, reader.at)
    if head.kind == UNIFORM:
        reader.raw(8)  # the range
        return Sections(reader.left, 8, 10)
    masks = reader.varint(reader.left)
    return Sections(masks, reader.left - masks, reader.at)
