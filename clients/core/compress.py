"""CompressMod: packed models in, packed updates out, around any Flower train function.

    received = decode(payload, reference held by this node)
    trained  = the app's own train(received)
    payload  = Q(parts(trained) - received)

The update is coded relative to the received model, positions as well as values. On its way out it goes through the
parts that the message asks for (:mod:`flsparse.clients.core.part`): clipping, noise, pruning, sparse updates, mirrors.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from flsparse.clients.core.part import Leaving, Part, Way, asked_parts
from flsparse.clients.core.state import NodeState, is_ours
from flsparse.clients.parts.topk_update import TopKUpdate
from flsparse.codec import Codec, Reference, Specs, decode, exact_names, specs_of
from flsparse.nets.arrays import Arrays
from flsparse.nets.exact import exact_arrays
from flsparse.wire.folded import fold, is_folded, unfold
from flsparse.wire.messages import (
    MISSING_REFERENCE,
    RECORD,
    Blueprint,
    Entries,
    initial_reference,
    joined,
    pack,
    packed_payload,
    packed_record,
    parted,
    payload_size,
    record_of,
    records_said,
    tensor_records,
)


@dataclass(frozen=True)
class Limits:
    """Limits that the owner of a device sets to a server's requests; 0 is no limit.

    Attributes
    ----------
    max_local_epochs : int
        Passes over the local data in one round, also when they are asked for as steps; held by the device application,
        not by the mod, which does not know the data.
    max_payload_bytes : int
        Length of one received payload, in bytes.
    max_memory_bytes : int
        Size of the model as plain arrays, in bytes.
    max_state_bytes : int
        Disk that all nodes on this machine may use, in bytes: no node keeps more by itself, runs that have been idle
        for a day go first, then the oldest broadcasts.
    """

    max_local_epochs: int = 0
    max_payload_bytes: int = 0
    max_memory_bytes: int = 0
    max_state_bytes: int = 1024**3

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            if limit < 0:
                raise ValueError(f"{name}={limit} must be at least 0, which is no limit")

    def check(self, name: str, value: float) -> None:
        """Raise ValueError where a value exceeds the limit of this name."""
        limit = getattr(self, name)
        if limit and not 0 <= value <= limit:  # NaN is refused too
            raise ValueError(f"the server asks for {value}, but this device's owner set {name}={limit}")


class CompressMod:
    """Flower mod that unpacks received models and packs updates.

    Put it first in ``ClientApp(mods=[...])``: the app's own function, and mods after it such as local
    differential privacy, see the message as the server's strategy made it: plain dense arrays, and no record and no
    state of ours. How the update is coded is the server's choice and comes with each message, so a device in the field
    needs no change when the operator changes it. Messages that are not packed (another strategy's) pass untouched.

    An app may return other arrays than it received: a part of them, such as a head, others, or other shapes.

    Parameters
    ----------
    error_feedback : bool (default: False)
        Keep the coding error and add it to the next update (:class:`flsparse.clients.parts.topk_update.TopKUpdate`
        with everything sent); where the codec's own error is small it is not needed.
    limits : Limits, optional
        Bounds set by the device's owner.
    """

    def __init__(self, *, error_feedback: bool = False, limits: Limits | None = None) -> None:
        self.error_feedback = error_feedback
        self.limits = limits or Limits()

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Unpack, call the app, pack."""
        if not message.has_content():
            return call_next(message, context)
        if not is_folded(message.content):
            return self._through(message, context, call_next)
        message.content = unfold(message.content)
        reply = self._through(message, context, call_next)
        if reply.has_content():
            reply.content = fold(reply.content)
        return reply

    def _through(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Call the app, and unpack and pack around it where the message brings a packed model."""
        size = payload_size(message.content)
        self.limits.check("max_payload_bytes", size)
        if packed_payload(message.content) is None:
            self.limits.check("max_memory_bytes", size)
            return call_next(message, context)
        state = NodeState(context, self.limits.max_state_bytes)
        asked = record_of(message.content)
        is_train = message.metadata.message_type.split(".")[0] == MessageType.TRAIN
        try:
            first, received, prunable = self._unpack(message.content, asked, state, context)
        except _MissingReference:
            record = ConfigRecord({"status": MISSING_REFERENCE})
            return Message(RecordDict({RECORD: record}), reply_to=message)
        # read before the training, which a bad question would cost
        answer = self._answer(asked, received, prunable, state) if is_train else None
        with self.hidden(message.content, context):
            reply = call_next(message, context)
        if not reply.has_error():
            said = {} if answer is None else _pack(reply.content, first, answer)
            if state.held != received.id:
                said["held"] = state.held
            if said:
                reply.content[RECORD] = ConfigRecord(said)
        return reply

    @contextmanager
    def hidden(self, content: RecordDict, context: Context) -> Iterator[None]:
        """Keep our record and our state away from the app, which may read and clear all that it finds."""
        content.pop(RECORD, None)
        own = {key: context.state.pop(key) for key in list(context.state) if is_ours(key)}
        try:
            yield
        finally:
            context.state.update(own)

    def parts(self, asked: ConfigRecord) -> list[Part]:
        """Return the parts that the update goes through on its way out; subclasses add theirs."""
        parts = asked_parts(asked)
        has_its_own = {TopKUpdate.name, *TopKUpdate.excludes}  # a mirror sends later changes by itself
        if self.error_feedback and not any(part.name in has_its_own for part in parts):
            parts.append(TopKUpdate(density=1.0, decay=1.0))  # everything is sent: the residual is the coding error
        return parts

    def initial(self, asked: ConfigRecord, context: Context) -> Arrays | None:
        """Return the model that the run starts from, where this node can build it; subclasses do."""
        return None

    def _unpack(
        self, content: RecordDict, asked: ConfigRecord, state: NodeState, context: Context
    ) -> tuple[str, Reference, list[str]]:
        """Replace the packed array by the decoded records; return the first's name, the model, and what is prunable."""
        key, payload = packed_record(content), packed_payload(content)
        assert key is not None
        assert payload is not None
        records, reference, reference_id = records_said(content, key), None, str(asked.get("reference", ""))
        if reference_id and "blueprint" not in asked and "blueprint" not in state.values:
            raise _MissingReference
        described = asked.get("blueprint", state.values.get("blueprint", b""))
        blueprint = Blueprint.from_bytes(described)
        self.limits.check("max_memory_bytes", blueprint.nbytes)
        if reference_id:
            reference = state.reference(reference_id)
            if reference is None and (arrays := self.initial(asked, context)) is not None:
                reference = initial_reference(arrays, blueprint.specs)
            alike = reference is not None and list(reference.specs.items()) == list(blueprint.specs.items())
            if reference is None or not alike or reference.id != reference_id:
                raise _MissingReference
        received = Reference(decode(payload, like=blueprint.specs, reference=reference), exact_names(blueprint.specs))
        state.values["blueprint"] = described
        if asked.get("hold", False):
            state.hold(received)
        content.update(parted(received.arrays, records))
        return key, received, blueprint.prunable

    def _answer(self, asked: ConfigRecord, received: Reference, prunable: list[str], state: NodeState) -> "_Answer":
        """Read how the update is to be coded.

        Raises
        ------
        ValueError
            An entry is missing or of another type, or a part is unknown.
        """
        leaving = Leaving.of(asked, received, prunable, state, {})
        rounding = Entries(asked, "a message").text("rounding", "nearest")
        Codec(values=leaving.values, rounding=rounding)  # refuses unknown names
        return _Answer(self.parts(asked), leaving, rounding)


@dataclass(frozen=True)
class _Answer:
    """How an update is to be coded."""

    parts: list[Part]
    leaving: Leaving
    rounding: str


def _pack(content: RecordDict, first: str, answer: _Answer) -> dict[str, Any]:
    """Replace the trained arrays by one packed array; return what our record is to say of them."""
    said: dict[str, Any] = {}
    if not (records := tensor_records(content, first)):
        return said
    trained, received = joined(content, records), answer.leaving.received
    if trained.keys() == received.arrays.keys():
        trained = {name: trained[name] for name in received.arrays}
    base = received.reshaped(trained_specs(trained, received))
    if base is not received:
        said["blueprint"] = Blueprint(dict(base.specs), []).to_bytes()
    if len(records) > 1:
        said["records"] = records
    kept = [name for name in answer.leaving.prunable if name in base.specs]
    way = Way(answer.parts, replace(answer.leaving, received=base, prunable=kept))
    payload = coded_update(trained, way, answer.rounding, way.leaving.stream("rounding"))
    for record in records:
        del content[record]
    content[records[0]] = pack(payload)
    for metric_record in content.metric_records.values():
        metric_record.update(way.leaving.metrics)
    return said


def trained_specs(trained: Arrays, received: Reference) -> Specs:
    """Return the specs of an update's arrays; those of arrays that were not received by the rule for unknown models.

    Parameters
    ----------
    trained : dict[str, np.ndarray]
        As the app returned them.
    received : Reference
        The broadcast as this node decoded it.
    """
    unknown = {name: array for name, array in trained.items() if name not in received.arrays}
    return specs_of(trained, exact_names(received.specs) | exact_arrays(unknown))


def coded_update(trained: Arrays, way: Way, rounding: str, generator: np.random.Generator) -> bytes:
    """Send trained arrays through the parts and code the update.

    Parameters
    ----------
    trained : dict[str, np.ndarray]
        In state-dict order, names and shapes as in the received model.
    way : Way
        Its parts change the update, and get the arrays as the server decodes them; ``encode-ms`` is reported.
    rounding : str
        Of :class:`flsparse.codec.Codec`.
    generator : np.random.Generator
        Randomness of the rounding.
    """
    sent = way.outgoing(trained)
    started = time.perf_counter()
    payload, reference = encode_update(sent, way.base, way.leaving.values, rounding, generator)
    way.leaving.metrics["encode-ms"] = (time.perf_counter() - started) * 1e3
    if way.reads_back:
        way.coded(decode(payload, like=way.base.specs, reference=reference))
    return payload


def encode_update(
    trained: Arrays, received: Reference | None, values: str, rounding: str, generator: np.random.Generator
) -> tuple[bytes, Reference | None]:
    """Code trained arrays relative to the model received; with ``values="raw"`` by themselves.

    Parameters
    ----------
    trained : dict[str, np.ndarray]
        In state-dict order, names and shapes as in `received`.
    received : Reference, optional
        None: the node has lost it, which "raw" alone can do without.
    values, rounding : str
        Of :class:`flsparse.codec.Codec`.
    generator : np.random.Generator
        Randomness of the rounding.

    Returns
    -------
    tuple[bytes, Reference or None]
        The payload, and the reference that it needs.

    Raises
    ------
    ValueError
        The update needs a reference, and there is none.
    """
    codec = Codec(values=values, rounding=rounding)
    exact = frozenset() if received is None else exact_names(received.specs)
    if codec.values == "raw":
        return codec.encode(trained, reference=None, rng=generator, exact=exact), None
    if received is None:
        raise ValueError(f"this node has lost the model received, which values={values!r} are coded against")
    return codec.encode(trained, reference=received, rng=generator, exact=exact), received


class _MissingReference(Exception):
    """The node does not have the model that the payload was coded against."""
