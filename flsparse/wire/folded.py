"""Messages folded into one record: what is small travels in one piece, without Flower's framing of each part of it.

Flower ships a message as a tree of objects, and asks for each by itself: a packed array, its record, a record of
settings, a record of metrics. Of 2.2 kB of a broadcast with 0.7 kB of payload, 1.5 kB were such framing. Folded, all of
it is one entry of one record::

    {"flsparse": ConfigRecord({"1": deflate(rows) + data})}

    rows    JSON: name, kind and entries of every record, the payloads and byte strings replaced by their lengths
    data    these payloads and byte strings, one after the other

The deflation starts from :data:`DICTIONARY`, the words that our own messages are made of. Arrays that are no payload,
and payloads together larger than :data:`LARGEST`, stay records beside it: Flower ships those in chunks.
"""

import json
import zlib
from collections.abc import Iterator
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from flsparse.codec import PayloadError
from flsparse.wire.messages import RECORD

LARGEST = 1 << 20  # bytes of payloads in one piece
VERSION = "1"  # of the rows and the dictionary
_MAX_ROWS_BYTES = 1 << 22  # inflated: settings and metrics, no models
_OURS = "flsparse."  # begins the stypes of payloads
_KINDS: dict[str, type] = {"a": ArrayRecord, "c": ConfigRecord, "m": MetricRecord}
_BYTES = "b"

# Deflation finds words in it, those at its end at the least cost.
DICTIONARY = (
    b'[["mail","a",{"payload":["flsparse.opaque.v1",["flsparse","c",{"status":"ok","applied":,"size":,"models":1'
    b'["split","c",{"kind":"forward","status":"missing-reference","held":"","applied":,"epoch":,"first":,"last":,'
    b'"accepted":["neighbours":["weights":["senders":["rounds":["sizes":["initial-id":"","initial-size":'
    b'"methods":["choco_sgd","d_psgd","dppf","fedavg","fedprox","local_sgd","malcom_psgd","scaffold","sparsyfed",'
    b'"split_ms","topk"],"codec-version":1,"initial":"","partition-id":,"num-examples":'
    b'["metrics","m",{"train-loss":0.,"train-accuracy":0.,"num-examples":0.0,"steps":1.0,"step-seconds":0.00,'
    b'"peak-memory-bytes":3.0,"flops-dense":0.0,"flops-sparse":0.0,"regrowth":0.0,"encode-ms":'
    b'"parts":"clip,masks,noise,topk_update","topk_update.density":0.,"topk_update.decay":0.,"mu":0.,"alpha":0.,'
    b'["arrays","a",{"payload":["flsparse.v1",'
    b'["config","c",{"lr":0.,"lr-final":0.00,"lr-schedule":"geometric","batch-size":32,"local-epochs":1,"local-steps":0,'
    b'"momentum":0.0,"weight-decay":0.0,"clip-grad":0.0,"server-round":1,"num-rounds":30}],'
    b'["flsparse","c",{"hold":true,"values":"int4","rounding":"nearest","seed":0,"round":1,"node":1,'
    b'"method":"sparsyfed","method.sparsity":0.95,"method.scope":"global","method.beta":1.25,'
    b'"method.activation_pruning":false,"method.activation_threshold":"frozen","blueprint":{"b":,"reference":"'
)


def is_ours(content: RecordDict) -> bool:
    """Tell whether a message's content has our record or a payload: the other side will unfold it."""
    return RECORD in content or any(map(_is_packed, content.array_records.values()))


def is_folded(content: RecordDict) -> bool:
    """Tell whether a message's content has been folded, by this version or another."""
    record = content.config_records.get(RECORD)
    return record is not None and len(record) == 1 and next(iter(record)).isdigit()


def fold(content: RecordDict) -> RecordDict:
    """Return a message's content with its payloads, settings and metrics folded into one record.

    Parameters
    ----------
    content : RecordDict
        Records of any names.

    Returns
    -------
    RecordDict
        The one record, and behind it the array records that are not folded; the content itself where its settings and
        metrics take more than 4 MiB of text.
    """
    data: list[bytes] = []
    packed = {name for name, record in content.array_records.items() if _is_packed(record)}
    if sum(len(array.data) for name in packed for array in content.array_records[name].values()) > LARGEST:
        packed = set()
    rows = [
        [name, kind, {key: _folded(value, data) for key, value in record.items()}]
        for name, record in content.items()
        if (kind := _kind(record)) != "a" or name in packed
    ]
    others = {n: record for n, record in content.array_records.items() if n not in packed}
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > _MAX_ROWS_BYTES:
        return content
    deflater = zlib.compressobj(9, wbits=-15, memLevel=9, zdict=DICTIONARY)
    head = deflater.compress(text) + deflater.flush()
    return RecordDict({RECORD: ConfigRecord({VERSION: b"".join([head, *data])}), **others})


def unfold(content: RecordDict) -> RecordDict:
    """Return the content that :func:`fold` folded.

    Raises
    ------
    PayloadError
        The record is of another version, cut short, or nothing that :func:`fold` writes.
    """
    record = content.config_records[RECORD]
    blob = record.get(VERSION)
    if not isinstance(blob, bytes):
        raise PayloadError(f"a message is folded in version {next(iter(record))!r}, not {VERSION!r}: update flsparse")
    try:
        inflater = zlib.decompressobj(wbits=-15, zdict=DICTIONARY)
        text = inflater.decompress(blob, _MAX_ROWS_BYTES)
        if not inflater.eof:
            raise ValueError("its rows are cut short or too large")
        data = _Data(inflater.unused_data)
        records = dict(_records(json.loads(text), data))
        if data.left:
            raise ValueError(f"{data.left} bytes are left over")
    except (zlib.error, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise PayloadError(f"a folded message cannot be read: {error}") from error
    others = {name: record for name, record in content.items() if name != RECORD}
    if twice := records.keys() & others.keys():
        raise PayloadError(f"a folded message has the record {min(twice)!r} twice")
    return RecordDict({**records, **others})


def _kind(record: object) -> str:
    return next(kind for kind, of in _KINDS.items() if isinstance(record, of))


def _is_packed(record: ArrayRecord) -> bool:
    """Tell whether a record's arrays are payloads of ours, and not tensors."""
    return bool(record) and all(a.stype.startswith(_OURS) and a.shape == (len(a.data),) for a in record.values())


def _folded(value: Any, data: list[bytes]) -> Any:
    if isinstance(value, Array):
        data.append(value.data)
        return [value.stype, len(value.data)]
    if isinstance(value, bytes):
        data.append(value)
        return {_BYTES: len(value)}
    return [_folded(each, data) for each in value] if isinstance(value, list) else value


def _records(rows: list[Any], data: "_Data") -> Iterator[tuple[str, ArrayRecord | ConfigRecord | MetricRecord]]:
    for name, kind, entries in rows:
        make = _array if kind == "a" else _value
        yield _text(name), _KINDS[kind]({_text(key): make(value, data) for key, value in entries.items()})


def _array(value: Any, data: "_Data") -> Array:
    stype, size = value
    if not _text(stype).startswith(_OURS):
        raise ValueError(f"an array of type {stype!r} is no payload")
    payload = data.take(size)
    return Array(dtype="uint8", shape=(len(payload),), stype=stype, data=payload)


def _value(value: Any, data: "_Data") -> Any:
    if isinstance(value, dict):
        return data.take(value[_BYTES])
    if isinstance(value, list):
        return [_value(each, data) for each in value]
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    text.encode()  # half a surrogate pair is no text, and Flower could not write it
    return text


class _Data:
    """Takes byte strings from the data behind the rows."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        if type(size) is not int or not 0 <= size <= self.left:
            raise ValueError(f"it ends before {size!r} bytes of a payload")
        self._at += size
        return self._data[self._at - size : self._at]
