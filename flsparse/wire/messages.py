"""How an update travels in a Flower message, on both sides.

A message of ours carries one packed ``Array`` in place of the arrays of all its records, and one ``ConfigRecord`` named
``flsparse``; what is no tensor stays as it is. On its way all of that is folded into one record
(:mod:`flsparse.wire.folded`). To the node::

    payload     the coded model                        Array, stype "flsparse.v1"
    reference   id of the model it is coded against: one that the node holds, or builds from the run's seed
    hold        whether the node is to keep the decoded model as its next reference
    blueprint   names, shapes, dtypes and which arrays are prunable or exact; only where the node holds none
    records     names of the array records, where there is more than one
    values, rounding   how the node is to code its reply
    seed, round, node  seeds of the randomness; node is the partition id
    method, method.*   the local method and its hyper-parameters
    parts, NAME.*      names of the parts that compose with it, joined by commas, and their settings

From the node: the payload, which names the reference it was coded against, and ``held``, the reference that the node
now keeps, where it is not the broadcast; ``blueprint`` where its arrays are not those that it received, and ``records``
as above. Or ``status = "missing-reference"`` and no payload, upon which the server sends the full model.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from flsparse.codec import ArraySpec, PayloadError, Reference, exact_names
from flsparse.codec.specs import DTYPES, Specs

Scalar = int | float | str | bool  # values of a record

STYPE = "flsparse.v1"
OPAQUE = "flsparse.opaque.v1"  # payloads of methods that hold their own conversation: neither mod nor wire opens them
RECORD = "flsparse"
SURVEY, HOLDINGS, AGREED = "survey", "holdings", "agreed"  # of the hello, where nodes have data of their own
BY_NODE, CLASS_COUNTS = "by-node", "class-counts"  # of the hello and of questions, where nodes measure models
FROZEN = "frozen"  # a hash of the arrays that never train, in the hello and in training's configuration
PAYLOAD = "payload"
MIRROR = "mirror"  # name of a node's mirror in its state
CONTROL = "control/"  # prefix of arrays that travel behind the model and are no part of its state dict
MISSING_REFERENCE = "missing-reference"
_TENSOR = "numpy.ndarray"  # Flower's stype
_EXACT = "exact"  # in a blueprint's row
_OF = ":"  # between a record's name and an array's
_MAX_BLUEPRINT_BYTES = 16 * 1024 * 1024
_MAX_DIMENSIONS = 32
_MAX_ELEMENTS = 1 << 40  # of one array; NumPy makes none of 2**63 bytes, were it empty by another dimension
_MAX_RECORDS = 64


def pack(payload: bytes, stype: str = STYPE) -> ArrayRecord:
    """Wrap a payload as the only array of a record."""
    return ArrayRecord({PAYLOAD: Array(dtype="uint8", shape=(len(payload),), stype=stype, data=payload)})


def packed_payload(content: RecordDict, stype: str = STYPE) -> bytes | None:
    """Return the payload of a message's content, or None where no array record of it is a packed array."""
    key = packed_record(content, stype)
    return None if key is None else content.array_records[key][PAYLOAD].data


def packed_record(content: RecordDict, stype: str = STYPE) -> str | None:
    """Return the name of the array record that is a packed array; None where there is none."""
    packed = (key for key, r in content.array_records.items() if list(r) == [PAYLOAD] and r[PAYLOAD].stype == stype)
    return next(packed, None)


def opaque_payload(content: RecordDict) -> bytes | None:
    """Return the payload that only its method may open, None where the content has none."""
    return packed_payload(content, OPAQUE)


def payload_size(content: RecordDict) -> int:
    """Return the bytes of all arrays of a message's content, packed or plain, without framing."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def arrayrecord_key(content: RecordDict) -> str:
    """Return the name of the one array record of a message's content.

    Raises
    ------
    ValueError
        There is none, or more than one.
    """
    keys = list(content.array_records)
    if len(keys) != 1:
        raise ValueError(f"expected exactly one ArrayRecord in the message, found {len(keys)}: {keys}")
    return keys[0]


def tensor_records(content: RecordDict, first: str = "") -> list[str]:
    """Return the names of the array records that hold tensors and nothing else, the one named `first` in front.

    Parameters
    ----------
    content : RecordDict
        Of a message.
    first : str
        The record whose arrays keep their names (see :func:`joined`).
    """
    names = [key for key, record in content.array_records.items() if all(map(_is_tensor, record.values()))]
    return sorted(names, key=lambda name: name != first)


def _is_tensor(array: Array) -> bool:
    return array.stype == _TENSOR and array.dtype in DTYPES


def records_said(content: RecordDict, key: str) -> list[str]:
    """Return the names of the records that the packed record of this name stands for: its own, and others.

    Raises
    ------
    PayloadError
        ``records`` is not a list of its name and others, each once, that no record of the content has.
    """
    said = record_of(content).get("records") or [key]
    if not isinstance(said, list) or len(said) > _MAX_RECORDS or not all(isinstance(name, str) for name in said):
        raise PayloadError(f"records={said!r} of a message are not up to {_MAX_RECORDS} names")
    names = [str(name) for name in said]
    if names[0] != key or len(set(names)) != len(names) or not set(content).isdisjoint(names[1:]):
        raise PayloadError(f"records={names} of a message are not {key!r} and others that are not there yet, each once")
    return names


def joined(content: RecordDict, records: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the arrays of several records as those of one: names of all but the first have their record's before them.

    Examples
    --------
    >>> one, two = to_record({"w": np.zeros(2)}), to_record({"w": np.ones(2)})
    >>> list(joined(RecordDict({"arrays": one, "control": two}), ["arrays", "control"]))
    ['w', 'control:w']
    """
    arrays = to_numpy(content.array_records[records[0]])
    if doubtful := [name for name in (*arrays, *records) if is_joined(name, records)]:
        others = " or ".join(records[1:])
        raise ValueError(f"{doubtful[0]!r} begins as the name of the record {others} does: rename one")
    for record in records[1:]:
        arrays |= {f"{record}{_OF}{name}": a for name, a in to_numpy(content.array_records[record]).items()}
    return arrays


def parted(arrays: Mapping[str, np.ndarray], records: Sequence[str]) -> dict[str, ArrayRecord]:
    """Return the records that :func:`joined` joined."""
    found: dict[str, dict[str, np.ndarray]] = {record: {} for record in records}
    for name, array in arrays.items():
        record = next((r for r in records[1:] if name.startswith(f"{r}{_OF}")), records[0])
        found[record][name.removeprefix(f"{record}{_OF}") if record != records[0] else name] = array
    return {record: to_record(of) for record, of in found.items()}


def is_joined(name: str, records: Sequence[str]) -> bool:
    """Tell whether an array is of a record beside the first."""
    return any(name.startswith(f"{record}{_OF}") for record in records[1:])


def record_of(content: RecordDict) -> ConfigRecord:
    """Return the ``flsparse`` record of a message's content; an empty one where it has none."""
    return content.config_records.get(RECORD, ConfigRecord())


def config_of(content: RecordDict) -> ConfigRecord:
    """Return the strategy's record, whatever its ``configrecord_key``: the one that is not ours; empty without one."""
    return next((record for key, record in content.config_records.items() if key != RECORD), ConfigRecord())


@dataclass(frozen=True)
class Entries:
    """Typed entries of a record that another side wrote: a wrong type is refused, with ValueError.

    Attributes
    ----------
    record : Mapping[str, Any]
        Entries by key.
    source : str
        Name of the record in errors.

    Examples
    --------
    >>> Entries({"round": 3, "lr": 1}, "a message").integer("round"), Entries({}, "a message").number("lr", 0.5)
    (3, 0.5)
    >>> Entries({"round": "3"}, "a message").integer("round")
    Traceback (most recent call last):
    ValueError: round='3' of a message is not an integer
    """

    record: Mapping[str, Any]
    source: str

    def integer(self, key: str, default: int | None = None) -> int:
        """Return an integer entry; without a default it must be there."""
        value = self.record.get(key, default)
        if not isinstance(value, int):
            raise ValueError(f"{key}={value!r} of {self.source} is not an integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return an integer or floating entry as a float; without a default it must be there."""
        value = self.record.get(key, default)
        if not isinstance(value, int | float):
            raise ValueError(f"{key}={value!r} of {self.source} is not a number")
        return float(value)

    def text(self, key: str, default: str = "") -> str:
        """Return a string entry."""
        value = self.record.get(key, default)
        if not isinstance(value, str):
            raise ValueError(f"{key}={value!r} of {self.source} is not a text")
        return value

    def values(self, key: str) -> list[Any]:
        """Return a list entry; empty where there is none."""
        value = self.record.get(key, [])
        if not isinstance(value, list):
            raise ValueError(f"{key}={value!r} of {self.source} is not a list")
        return value

    def integers(self, key: str) -> list[int]:
        """Return a list of integers; empty where there is none."""
        found = self.values(key)
        if not all(isinstance(value, int) for value in found):
            raise ValueError(f"{key}={found!r} of {self.source} are not integers")
        return found


def to_numpy(record: ArrayRecord) -> dict[str, np.ndarray]:
    """Return an array record's arrays as NumPy arrays, in order."""
    return {name: array.numpy() for name, array in record.items()}


def to_record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Return NumPy arrays as an array record, in order."""
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


@dataclass(frozen=True)
class Blueprint:
    """Structure of a model, which a node needs to decode one.

    Attributes
    ----------
    specs : dict[str, ArraySpec]
        Shape and dtype by state-dict key, in order.
    prunable : list[str]
        Keys of the arrays that may be pruned; no exact ones.
    """

    specs: dict[str, ArraySpec]
    prunable: list[str]

    def to_bytes(self) -> bytes:
        """Serialize, compressed."""
        prunable = set(self.prunable)
        rows = [[n, list(s.shape), _name(s.dtype), _EXACT if s.exact else n in prunable] for n, s in self.specs.items()]
        return zlib.compress(json.dumps(rows, separators=(",", ":")).encode(), 9)

    @classmethod
    def from_bytes(cls, data: object) -> "Blueprint":
        """Parse the bytes of :meth:`to_bytes`.

        Raises
        ------
        PayloadError
            The bytes are no blueprint.
        """
        try:
            if not isinstance(data, bytes):
                raise TypeError(f"it is a {type(data).__name__}")
            inflater = zlib.decompressobj()
            text = inflater.decompress(data, _MAX_BLUEPRINT_BYTES)
            if not inflater.eof or inflater.unused_data:
                raise ValueError("it is cut short, too large, or followed by other bytes")
            rows: Sequence[tuple[str, list[int], str, bool | str]] = json.loads(text)
            specs = {str(n): ArraySpec(_shape(shape), _dtype(dtype), kind == _EXACT) for n, shape, dtype, kind in rows}
            if len(specs) != len(rows):
                raise ValueError(f"{len(rows)} rows name {len(specs)} arrays")
            prunable = [str(name) for name, _, _, kind in rows if kind is True]
        except (zlib.error, ValueError, TypeError, RecursionError) as error:
            raise PayloadError(f"the blueprint of the model cannot be read: {error}") from error
        return cls(specs, prunable)

    @property
    def nbytes(self) -> int:
        """Size of the model as plain arrays, in bytes."""
        return sum(spec.nbytes for spec in self.specs.values())


def initial_reference(arrays: Mapping[str, np.ndarray], specs: Specs) -> Reference | None:
    """Return the initial model as a reference of what is sent: other arrays beside it stand at 0; None without weights.

    Server and node each make it of the model that they built from the run's seed, and compare its id.
    """
    with suppress(ValueError):  # weights that are not finite
        return Reference(arrays, exact_names(specs)).reshaped(specs)
    return None


def misfit(specs: Specs, wanted: Specs) -> str | None:
    """Return how specs differ from the wanted ones, by the first array that does; None where they do not.

    Examples
    --------
    >>> misfit({"b": ArraySpec((5,), np.dtype("f4"))}, {"b": ArraySpec((10,), np.dtype("f4"))})
    "array 'b' is float32 (5,), not float32 (10,)"
    """
    for name in (*wanted, *specs):
        if name not in specs:
            return f"array {name!r}, {_kind(wanted[name])}, is missing"
        if name not in wanted:
            return f"array {name!r}, {_kind(specs[name])}, is unknown"
        if (specs[name].shape, specs[name].dtype) != (wanted[name].shape, wanted[name].dtype):
            return f"array {name!r} is {_kind(specs[name])}, not {_kind(wanted[name])}"
    return None if list(specs) == list(wanted) else "the arrays are in another order"


def _kind(spec: ArraySpec) -> str:
    return f"{spec.dtype} {spec.shape}"


def _name(dtype: np.dtype) -> str:
    return dtype.newbyteorder("<").str


_BY_NAME = {_name(np.dtype(each)): np.dtype(each) for each in DTYPES}


def _dtype(name: str) -> np.dtype:
    if name not in _BY_NAME:
        raise ValueError(f"dtype {name!r} is none of {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    if len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"a shape of {len(shape)} dimensions, more than {_MAX_DIMENSIONS}")
    if any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"shape {shape} is not a list of non-negative integers")
    if prod(max(n, 1) for n in shape) > _MAX_ELEMENTS:
        raise ValueError(f"a shape of {shape} elements, more than {_MAX_ELEMENTS} even without its zeros")
    return tuple(shape)
