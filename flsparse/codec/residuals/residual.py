"""Residual payloads of decentralized training: dithered integers or plain float32, with a checksum of the copy.

A residual applies to one copy of the sender's model. The payload therefore carries the checksum of that copy, the
sender and the round: the receiver of the next payload detects a lost, doubled or misdirected one, whatever the relay
did.

Layout (little endian)::

    0  coder and version 1 | CRC-32 of all other bytes 4 | CRC-32 of the copy before 4 | sender, round (varints)
    dense:    the new copy itself, 4 bytes an element
    dithered: L (varint), number of steps (varint), a float32 step each; the integers

Integers are coded group by group, a large array being a group of its own and all small ones one group together:
``fixed`` ceil(log2(2L + 1)) bits each; ``golomb``, see :mod:`flsparse.codec.coders.golomb`; ``rans``, a table for each
group and one stream for all.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from flsparse.codec.coders import bits, golomb, rans, tables
from flsparse.codec.errors import PayloadError, require
from flsparse.codec.residuals.dither import MAX_LEVELS, Dither, Integers, Vector, dequantize
from flsparse.codec.wire import Reader, Writer
from flsparse.ranges import one_of

Coder = Literal["fixed", "golomb", "rans"]
CODERS = get_args(Coder)
_KINDS = ("fixed", "golomb", "rans", "dense")  # a kind's place in this list is its id on the wire
_VERSION = 1
_LARGE = 4096  # elements from which on an array has statistics of its own


def copy_checksum(copy: Vector) -> int:
    """Return the CRC-32 of a copy's bytes."""
    return zlib.crc32(np.ascontiguousarray(copy).data)


@dataclass(frozen=True)
class Stamp:
    """Header of a residual payload.

    Attributes
    ----------
    sender : int
        Partition id.
    round : int
        The round of the payload, from 1.
    base : int
        CRC-32 of the sender's copy before the payload is applied.
    """

    sender: int
    round: int
    base: int


@dataclass(frozen=True)
class ResidualCodec:
    """Turns a residual into bytes.

    Parameters
    ----------
    sizes : sequence of int
        Elements of each array in the flat vector, in order.
    dither : Dither or None
        The quantizer; None sends the new copy whole, at 4 bytes an element.
    whole : bool
        One step for the whole vector, not one for each array.
    coder : {"fixed", "golomb", "rans"}
        How the integers travel.

    Raises
    ------
    ValueError
        The coder is unknown.
    """

    sizes: Sequence[int]
    dither: Dither | None
    whole: bool = False
    coder: str = "rans"

    def __post_init__(self) -> None:
        one_of(CODERS, coder=self.coder)

    def encode(self, x: Vector, copy: Vector, stamp: Stamp, rng: np.random.Generator) -> tuple[bytes, Integers | None]:
        """Code the residual ``x - copy``, quantized.

        Parameters
        ----------
        x, copy : np.ndarray
            Shape (d,), float32.
        stamp : Stamp
            Goes along.
        rng : np.random.Generator
            Draws the dither.

        Returns
        -------
        payload : bytes
        q : np.ndarray or None
            The integers, for statistics; None without a quantizer.

        Raises
        ------
        ValueError
            ``x`` holds NaN or infinity: training has diverged.
        """
        if not np.isfinite(x).all():
            raise ValueError("the model holds NaN or infinity: lower client.lr or strategy.gamma")
        if self.dither is None:
            return _seal("dense", stamp, x.astype("<f4").tobytes()), None
        residual = x - copy
        parts, steps = [], []
        for unit in np.split(residual, np.cumsum(self._units)[:-1]):
            q, step = self.dither.quantize(unit, rng)
            parts.append(q)
            steps.append(step)
        integers = np.concatenate(parts)
        out = Writer()
        out.varint(self.dither.levels)
        out.varint(len(steps))
        out.array(np.array(steps, np.float32))
        out.raw(self._code(integers, self.dither.levels))
        return _seal(self.coder, stamp, out.done()), integers

    @property
    def _units(self) -> Sequence[int]:
        return [sum(self.sizes)] if self.whole else self.sizes

    def _code(self, integers: Integers, levels: int) -> bytes:
        groups = [(integers[at] + levels).astype(np.uint16) for at in _groups(self.sizes)]
        alphabet = 2 * levels + 1
        if self.coder == "fixed":
            return bits.pack(integers.astype(np.int64) + levels, (2 * levels).bit_length())
        if self.coder == "golomb":
            return b"".join(golomb.encode_symbols(group, alphabet) for group in groups)
        out = Writer()
        chosen = []
        for group in groups:
            table = tables.choose(np.bincount(group, minlength=alphabet), signed=True)
            out.raw(table.spec)
            chosen.append(table.frequencies)
        which = np.repeat(np.arange(len(groups), dtype=np.uint32), [group.size for group in groups])
        out.raw(rans.encode(np.concatenate(groups), np.array(chosen), which))
        return out.done()


def read_stamp(payload: bytes) -> Stamp:
    """Return a payload's sender, round and checksum of the copy.

    Raises
    ------
    PayloadError
        It is damaged, or no residual.
    """
    return _open(payload)[1]


def check_stamp(payload: bytes, sender: int, round: int) -> None:
    """Check a payload's checksum, sender and round; the residual is not decoded.

    Raises
    ------
    PayloadError
        It is not.
    """
    stamp = read_stamp(payload)
    said = f"node {stamp.sender} in round {stamp.round}"
    require((stamp.sender, stamp.round) == (sender, round), f"it was made by {said}, not by node {sender} in {round}")


def apply_residual(payload: bytes, copy: Vector, sizes: Sequence[int]) -> Vector:
    """Return the copy after a payload: ``copy + step * q``, in float32, the same bits for every holder.

    Parameters
    ----------
    payload : bytes
    copy : np.ndarray
        Shape (d,), float32; it is not changed.
    sizes : sequence of int
        Elements of each array, d together.

    Raises
    ------
    PayloadError
        The payload is damaged, belongs to another copy than this one, or decodes to NaN or infinity.
    """
    kind, stamp, reader = _open(payload)
    require(stamp.base == copy_checksum(copy), "the payload was made for another copy than the one held here")
    if kind == "dense":
        new = np.array(reader.array("f4", copy.size), np.float32)
    else:
        with np.errstate(over="ignore", invalid="ignore"):  # a stranger's steps; the check below refuses the result
            new = copy + _read_residual(reader, kind, sizes)
    reader.finish("a residual")
    require(bool(np.isfinite(new).all()), "a residual holds NaN or infinity")
    return new


def _read_residual(reader: Reader, kind: str, sizes: Sequence[int]) -> Vector:
    size = sum(sizes)
    levels = reader.varint(MAX_LEVELS)
    require(levels >= 1, "a residual has no levels")
    count = reader.varint(len(sizes))
    require(count in (1, len(sizes)), f"a residual has {count} steps for {len(sizes)} arrays")
    steps = reader.array("f4", count).astype(np.float32)
    require(bool(np.isfinite(steps).all()), "a step is NaN or infinite")
    groups = list(_groups(sizes))
    alphabet = 2 * levels + 1
    q = np.empty(size, np.int64)
    if kind == "fixed":
        q[:] = bits.unpack(reader, size, (2 * levels).bit_length())
        require(int(q.max(initial=0)) < alphabet, "an integer is out of range")
    elif kind == "golomb":
        for at in groups:
            q[at] = golomb.decode_symbols(reader, _length(at, sizes), alphabet)
    else:
        chosen = np.array([tables.read(reader, alphabet, signed=True) for _ in groups])
        lengths = [_length(at, sizes) for at in groups]
        which = np.repeat(np.arange(len(groups), dtype=np.uint32), lengths)
        coded = rans.decode(reader, size, chosen, which)
        for at, part in zip(groups, np.split(coded, np.cumsum(lengths)[:-1]), strict=True):
            q[at] = part
    integers = (q - levels).astype(np.int16)
    if count == 1:
        return dequantize(integers, steps[0])
    per_element = np.repeat(steps, sizes)
    return integers.astype(np.float32) * per_element


def _groups(sizes: Sequence[int]) -> "list[slice | np.ndarray]":
    """Positions of the entropy coder's groups: every large array, and all small ones together."""
    ends = np.cumsum(sizes)
    large = [slice(int(end - size), int(end)) for size, end in zip(sizes, ends, strict=True) if size >= _LARGE]
    small = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True) if 0 < size < _LARGE]
    return [*large, *([np.concatenate(small)] if small else [])]


def _length(at: "slice | np.ndarray", sizes: Sequence[int]) -> int:
    return at.stop - at.start if isinstance(at, slice) else at.size


def _seal(kind: str, stamp: Stamp, body: bytes) -> bytes:
    out = Writer()
    out.raw(stamp.base.to_bytes(4, "little"))
    out.varint(stamp.sender)
    out.varint(stamp.round)
    out.raw(body)
    rest = out.done()
    head = bytes([_KINDS.index(kind) | _VERSION << 4])
    return head + zlib.crc32(rest, zlib.crc32(head)).to_bytes(4, "little") + rest


def _open(payload: bytes) -> tuple[str, Stamp, Reader]:
    if len(payload) < 11:
        raise PayloadError(f"{len(payload)} bytes are too few for a residual")
    kind, version = payload[0] & 0x0F, payload[0] >> 4
    require(version == _VERSION and kind < len(_KINDS), f"unknown kind 0x{payload[0]:02x} of a residual")
    checksum = zlib.crc32(payload[5:], zlib.crc32(payload[:1]))
    require(payload[1:5] == checksum.to_bytes(4, "little"), "checksum mismatch: the residual was damaged on its way")
    reader = Reader(payload)
    reader.raw(5)
    base = int.from_bytes(reader.raw(4), "little")
    return _KINDS[kind], Stamp(reader.varint(2**32), reader.varint(2**32), base), reader
