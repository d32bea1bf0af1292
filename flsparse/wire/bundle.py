"""How a step of split learning travels in a Flower message, on both sides.

A round of ``steps`` steps is ``steps + 1`` messages to each node, of type ``query.split``::

    stage "begin"   down: the coded bottom, as any model of ours        up: smashed data of the first batches, labels
    stage "step"    down: gradients of the last batches                 up: smashed data of the next, labels
    stage "end"     down: gradients of the last batches                 up: the coded change of the bottom

With labels kept on the device, a message of stage "head" stands between any two of these: down the activations that the
server's part ends with, up their gradients. All tensors of a message travel as one packed array, a *bundle*.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

from flsparse.codec.activations.envelope import sections_of
from flsparse.codec.errors import require
from flsparse.codec.wire import Reader, Writer, checksum

STYPE = "flsparse.split.v1"
RECORD = "split"
DATA = "bundle"
MESSAGE_TYPE = "query.split"
BEGIN, HEAD, STEP, END = "begin", "head", "step", "end"
ACTIVATIONS, LABELS, GRADIENT = range(3)

_MAGIC = b"FSB\x01"  # the last byte is the format's version
_MAX_PARTS, _MAX_DIMENSIONS, _MAX_SIDE = 4096, 8, 1 << 24
_LABELS = ("u1", "u2", "u4")


@dataclass(frozen=True)
class Part:
    """One tensor of a bundle.

    Attributes
    ----------
    kind : int
        ACTIVATIONS, LABELS or GRADIENT.
    shape : tuple of int
        Of the tensor.
    data : bytes
        As the codec of its kind wrote it.
    """

    kind: int
    shape: tuple[int, ...]
    data: bytes

    @property
    def dense_bytes(self) -> int:
        """Bytes of the tensor as it is: four a value, labels as they travel."""
        return len(self.data) if self.kind == LABELS else 4 * prod(self.shape)


def bundle(parts: Sequence[Part]) -> bytes:
    """Join parts: magic and version 4 bytes, CRC-32 4, then per part kind, dimensions, their sizes, length, data."""
    out = Writer()
    out.raw(_MAGIC + bytes(4))
    out.varint(len(parts))
    for part in parts:
        out.byte(part.kind)
        out.byte(len(part.shape))
        for side in part.shape:
            out.varint(side)
        out.varint(len(part.data))
        out.raw(part.data)
    data = bytearray(out.done())
    data[4:8] = checksum(data)
    return bytes(data)


def unbundle(data: bytes) -> list[Part]:
    """Take a bundle apart; the parts' data are still to be decoded.

    Raises
    ------
    PayloadError
        When it is damaged, hostile or of another version.
    """
    require(len(data) >= 9 and data[:4] == _MAGIC, "this is no bundle of split learning of this version")
    require(data[4:8] == checksum(data), "checksum mismatch: the bundle was damaged on its way")
    reader = Reader(data)
    reader.raw(8)
    parts = []
    for _ in range(reader.varint(_MAX_PARTS)):
        kind, dimensions = reader.byte(), reader.byte()
        require(kind <= GRADIENT and dimensions <= _MAX_DIMENSIONS, f"a part of kind {kind}, {dimensions} dimensions")
        shape = tuple(reader.varint(_MAX_SIDE) for _ in range(dimensions))
        parts.append(Part(kind, shape, bytes(reader.raw(reader.varint(reader.left)))))
    reader.finish("the bundle")
    return parts


def lines_of(data: bytes) -> dict[str, int]:
    """Return a bundle's bytes by kind: masks, values, labels, gradients, framing.

    Raises
    ------
    PayloadError
        When it is damaged.
    """
    lines = {"masks": 0, "values": 0, "labels": 0, "gradients": 0}
    for part in unbundle(data):
        if part.kind == ACTIVATIONS:
            sections = sections_of(part.data)
            lines["masks"] += sections.masks
            lines["values"] += sections.values
        else:
            lines["labels" if part.kind == LABELS else "gradients"] += len(part.data)
    return {**lines, "framing": len(data) - sum(lines.values())}


def encode_labels(labels: np.ndarray) -> bytes:
    """Code class labels as their width and as few bytes each as the largest needs."""
    width = 0 if labels.max(initial=0) < 1 << 8 else 1 if labels.max() < 1 << 16 else 2
    return bytes([width]) + labels.astype(f"<{_LABELS[width]}").tobytes()


def decode_labels(data: bytes, count: int) -> np.ndarray:
    """Decode ``count`` labels, int64.

    Raises
    ------
    PayloadError
        When the bytes are damaged or too many.
    """
    reader = Reader(data)
    width = reader.byte()
    require(width < len(_LABELS), f"unknown width {width} of labels")
    labels = np.asarray(reader.array(_LABELS[width], count)).astype(np.int64)
    reader.finish("the labels")
    return labels


def pack(data: bytes) -> ArrayRecord:
    """Wrap a bundle as the only array of a record."""
    return ArrayRecord({DATA: Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)})


def packed_bundle(content: RecordDict) -> bytes | None:
    """Return the bundle of a message's content, or None where it has none."""
    for record in content.array_records.values():
        if len(content.array_records) == 1 and list(record) == [DATA] and record[DATA].stype == STYPE:
            return record[DATA].data
    return None
