"""Models packed, messages counted, updates decoded: the server's end of the wire, once for all strategies."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from logging import WARNING

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from flsparse._flwr import log
from flsparse.codec import (
    ArraySpec,
    Codec,
    Layer,
    PayloadError,
    Reference,
    Specs,
    decode_layers,
    payload_info,
    specs_of,
)
from flsparse.metering.clock import VirtualClock
from flsparse.metering.ledger import Direction, Ledger
from flsparse.nets.exact import exact_arrays, small, within_reach
from flsparse.sparsity import default_prunable, match_prunable
from flsparse.strategies.core.downlink import Broadcast, Downlink
from flsparse.strategies.core.exchange import Asks, Exchange, Node, Reply
from flsparse.strategies.core.node_table import NodeTable
from flsparse.wire.messages import (
    CONTROL,
    RECORD,
    STYPE,
    Blueprint,
    is_joined,
    joined,
    misfit,
    opaque_payload,
    pack,
    packed_payload,
    payload_size,
    record_of,
    tensor_records,
)
from flsparse.wire.mirror import reference_with

_LONGEST_REASON = 300
_NO_MOD = "The node's app lacks the mod that unpacks the model: ClientApp(mods=[CompressMod()])"
_MOST_MODELS = 1 << 16  # that one opaque payload stands for
_MOST_NEW_BYTES, _MOST_EXPANSION = 1 << 26, 64  # of arrays that a node was not sent, and by byte of its payload


class Wire:
    """Packs a strategy's messages, exchanges them and decodes the replies.

    Parameters
    ----------
    values, rounding : str
        How nodes code their updates (see :class:`flsparse.codec.Codec`).
    downlink : Downlink
        Codes the broadcast.
    prunable_patterns : list[str] or None
        Patterns of the arrays that may be pruned; None: floating arrays of two or more dimensions.
    exact_patterns : Sequence[str]
        Patterns of arrays that travel bit for bit, beside those that are no weights (:mod:`flsparse.nets.exact`).
    seed : int
        Seed of the nodes' stochastic rounding.

    Attributes
    ----------
    buffers : list[str] or None
        Arrays of the model that are no weights; None: the model is not known.
    ledger : Ledger
        Bytes of every message, both ways.
    counts : Counter
        ``failures``, ``rejected_payloads`` and ``resent_models`` of the run.
    clock : VirtualClock or None
        Follows every exchange, where the nodes' links are known.
    problems : list[str]
        Failures of this round, a line each.
    table : NodeTable
        What was seen of each node in this round.
    records : list[str]
        Names of the array records of the model that was sent last.
    """

    def __init__(
        self,
        values: str,
        rounding: str,
        downlink: Downlink,
        prunable_patterns: list[str] | None,
        exact_patterns: Sequence[str],
        seed: int,
    ) -> None:
        Codec(values=values, rounding=rounding)  # refuses unknown names before anything starts
        self.values, self.rounding, self.downlink, self.seed = values, rounding, downlink, seed
        self.ledger = Ledger()
        self.clock: VirtualClock | None = None
        self.counts: Counter[str] = Counter(failures=0, rejected_payloads=0)
        self.problems: list[str] = []
        self.table = NodeTable()
        self.buffers: list[str] | None = None
        self._patterns, self.exact_patterns = prunable_patterns, exact_patterns
        self._exact: dict[str, bool] = {}  # by name, as it was when the array was first sent
        self._blueprint = Blueprint({}, [])
        self.records: list[str] = []
        self._sent: list[ArrayRecord] = []
        self._lacked: set[str] = set()  # what an app without the mod says of records that are folded

    def __str__(self) -> str:
        whole, delta = self.downlink.codec.values, self.downlink.delta_codec.values
        return f"{self.values} ({self.rounding}) up, {whole}{'' if delta == whole else f' (deltas {delta})'} down"

    @property
    def specs(self) -> Specs:
        """Shapes and dtypes of the model that was sent last, by name; empty before the first broadcast."""
        return self._blueprint.specs

    @property
    def prunable(self) -> list[str]:
        """Names of the arrays that may be pruned; empty before the first broadcast."""
        return self._blueprint.prunable

    def exchange(
        self,
        grid: Grid,
        messages: Iterable[Message],
        nodes: Mapping[int, Node],
        asks: Asks,
        server_round: int,
        timeout_s: float,
        uplink: Direction = "uplink",
        broadcasts: dict[int, Broadcast] | None = None,
    ) -> Exchange:
        """Send dense messages packed, at most one a node; iterate over the exchange for the replies.

        Parameters
        ----------
        grid, asks, server_round, timeout_s, uplink, broadcasts
            See :class:`Exchange`.
        messages : Iterable[Message]
            Messages with dense arrays are packed.
        nodes : Mapping[int, Node]
            Known nodes, by node id.
        """
        broadcasts = {} if broadcasts is None else broadcasts
        return Exchange(self, grid, asks, server_round, timeout_s, uplink, broadcasts).send(messages, nodes)

    def count(
        self,
        direction: Direction,
        server_round: int,
        message: Message,
        broadcast: Broadcast | None,
        wire_bytes: int,
        node: Node,
    ) -> int:
        """Enter one message into the ledger, the broadcast or the reply to it; return the dense bytes it stands for."""
        payload_bytes = payload_size(message.content) if message.has_content() else 0
        dense_bytes = self._stands_for(message, broadcast)
        self.enter(direction, server_round, payload_bytes, wire_bytes, dense_bytes, node)
        return dense_bytes

    def enter(
        self,
        direction: Direction,
        server_round: int,
        payload_bytes: int,
        wire_bytes: int,
        dense_bytes: int,
        node: Node,
    ) -> None:
        """Enter one message's sizes into the ledger and the table of nodes."""
        self.ledger.count(
            direction, server_round, payload_bytes=payload_bytes, wire_bytes=wire_bytes, dense_bytes=dense_bytes
        )
        self.table.count(node, direction, payload_bytes, wire_bytes)

    def hear(self, reply: Reply) -> None:
        """Note what an answer says of its node."""
        self.table.hear(reply)

    def _stands_for(self, message: Message, broadcast: Broadcast | None) -> int:
        """Return the dense bytes of a message's payload."""
        if not message.has_content():
            return 0
        content = message.content
        if opaque_payload(content) is not None:
            said = record_of(content).get("models", 1)
            return self._blueprint.nbytes * (said if type(said) is int and 0 <= said <= _MOST_MODELS else 1)
        if (payload := packed_payload(content)) is None or broadcast is None:
            return payload_size(content)
        nbytes = broadcast.reference.nbytes
        if message.metadata.reply_to_message_id and "blueprint" in record_of(content):
            try:
                nbytes = sum(spec.nbytes for spec in _specs_said(content, broadcast).values())
            except PayloadError:
                nbytes = 0
        return nbytes + payload_size(content) - len(payload)

    def refuse(self, reply: Reply, reason: str) -> None:
        """Drop a reply: its bytes count, its model does not."""
        self._take_back(reply.uplink, reply.server_round, reply.dense_bytes)
        self.drop(reply.node, reason, "rejected_payloads", reply.server_round)

    def take_back_model(self, server_round: int, broadcast: Broadcast) -> None:
        """Take a model that its receiver could not decode out of the ledger's dense bytes."""
        self._take_back("downlink", server_round, broadcast.reference.nbytes)

    def _take_back(self, direction: Direction, server_round: int, dense_bytes: int) -> None:
        self.ledger.count(direction, server_round, payload_bytes=0, wire_bytes=0, dense_bytes=-dense_bytes)

    def packed(self, message: Message, node: Node, exchange: Exchange) -> Message:
        """Return the message with its dense arrays packed, coded against the reference that the node holds."""
        content = message.content
        if packed_payload(content) is not None or opaque_payload(content) is not None:
            return message
        if not (records := tensor_records(content)):
            return message
        self._set_model(content, records)
        broadcast = self.downlink.to(node.held, seeded=node.seeded)
        record = ConfigRecord(
            {
                "hold": self.downlink.uses_references,
                "values": self.values,
                "rounding": self.rounding,
                "seed": self.seed,
                "round": exchange.server_round,
                "node": node.partition,
                **exchange.asks(node),
            }
        )
        if broadcast.coded_against:
            record["reference"] = broadcast.coded_against
        if broadcast.coded_against != node.held or not node.held:
            record["blueprint"] = self._blueprint.to_bytes()
        if len(records) > 1:
            record["records"] = records
        exchange.broadcasts[node.node_id] = broadcast
        others = {name: value for name, value in content.items() if name not in records}
        self._lacked |= {f"KeyError: {name!r}" for name in content}
        packed = RecordDict({records[0]: pack(broadcast.payload), **others, RECORD: record})
        return Message(packed, node.node_id, message.metadata.message_type, ttl=message.metadata.ttl)

    def _set_model(self, content: RecordDict, records: list[str]) -> None:
        sent = [content.array_records[record] for record in records]
        if len(sent) == len(self._sent) and all(a is b for a, b in zip(sent, self._sent, strict=True)):
            return
        arrays = joined(content, records)
        self.describe(arrays, records)
        self.downlink.set_model(arrays, self.specs)
        self.records, self._sent = records, sent

    def describe(self, arrays: Mapping[str, np.ndarray], records: Sequence[str] = ()) -> None:
        """Learn the names, shapes and dtypes of a model, and which of its arrays may be pruned or are exact."""
        new = {name: array for name, array in arrays.items() if name not in self._exact}
        exact = self._exact_of(new)
        self._exact |= {name: name in exact for name in new}
        specs = specs_of(arrays, [name for name in arrays if self._exact[name]])
        if specs == self._blueprint.specs:
            return
        weights = {
            name: spec
            for name, spec in specs.items()
            if not (spec.exact or name.startswith(CONTROL) or is_joined(name, records))
        }
        default = self._patterns is None
        prunable = default_prunable(weights) if default else match_prunable(weights, self._patterns or [])
        self._blueprint = Blueprint(specs, prunable)

    def _exact_of(self, new: Mapping[str, np.ndarray]) -> frozenset[str]:
        return exact_arrays(new, buffers=self.buffers, patterns=self.exact_patterns)

    def restore(self, references: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Take the references of a checkpoint, and which arrays were exact: values alone may tell otherwise by now."""
        self.downlink.load_state_dict(references)
        for specs in self.downlink.kept_specs():
            self._exact |= {name: spec.exact for name, spec in specs.items()}

    def cannot_send(self, arrays: Mapping[str, np.ndarray]) -> str | None:
        """Return why a model cannot be broadcast, or None (see :meth:`Downlink.cannot_send`)."""
        new = {name: array for name, array in arrays.items() if name not in self._exact}
        exact = {name for name, is_exact in self._exact.items() if is_exact} | self._exact_of(new)
        return self.downlink.cannot_send(arrays, exact)

    def update(
        self, reply: Reply, mirror: Mapping[str, np.ndarray] | None = None, *, any_arrays: bool = False
    ) -> list[Layer] | None:
        """Check and decode the update of a training reply; None where it is refused, which is logged and counted.

        Parameters
        ----------
        reply : Reply
            Its broadcast is the model that the node had received.
        mirror : Mapping[str, np.ndarray], optional
            The node's mirror, where the server has one: the reply may be coded against it, or against the broadcast.
        any_arrays : bool
            Take other arrays than the node was sent: a part of them, others, or other shapes.

        Returns
        -------
        list[Layer] or None
            The weights the node sent, sparse where they are.
        """
        payload = packed_payload(reply.content)
        if payload is None or reply.broadcast is None:
            reason = "its reply has no packed update: is CompressMod first in mods?"
            self.drop(reply.node, reason, "failures", reply.server_round)
            return None
        reference = reply.broadcast.reference
        try:
            said = specs_of_reply(reply)
            if not any_arrays and (fault := misfit(said, reference.specs)) is not None:
                raise PayloadError(f"{fault} in the model that it was sent: return the whole state_dict")
            base = reference.reshaped(said)
            if mirror is not None:
                base = _named(payload, reference_with(mirror, reference), reference)
            layers = decode_layers(payload, like=said, reference=None if self.values == "raw" else base)
            for layer in layers:
                if (fault := self._fault(layer, said[layer.name], reference)) is not None:
                    raise PayloadError(f"array {layer.name!r} {fault}")
        except PayloadError as error:
            self.refuse(reply, f"its payload was refused: {error}")
            return None
        return layers

    def _fault(self, layer: Layer, spec: ArraySpec, sent: Reference) -> str | None:
        """Return what keeps a decoded array out of any mean, or None."""
        if spec.dtype.kind not in "fc":
            return None
        if not spec.exact:
            limit = self.downlink.largest(spec.dtype) / 2  # their mean, and the rounding given back to it, can be sent
            if not small(layer.values, limit).all():
                return f"has weights beyond {limit:g}: has its training diverged? lower client.lr"
        elif layer.name in sent.specs and sent.specs[layer.name].shape == spec.shape:
            if not within_reach(layer.dense(spec), sent.arrays[layer.name]):
                return "travels exactly, and is NaN, infinite or huge where it was not in the model sent"
        elif np.isnan(layer.values).any():
            return "holds NaN"
        return None

    def drop(self, node: Node, reason: str | None, counter: str, server_round: int) -> None:
        """Log and count a node's failure; the round goes on without it."""
        last_line = ((reason or "").strip() or "no reason given").splitlines()[-1][:_LONGEST_REASON]
        last_line = "".join(c if c.isprintable() else "?" for c in last_line)  # it may be a stranger's words
        signs = (f"Unsupported serialization type for numpy conversion: '{STYPE}'", *self._lacked)
        if last_line.endswith(signs):  # of an app that reads the message as it traveled
            last_line = f"{last_line}. {_NO_MOD}"
        self.counts[counter] += 1
        self.problems.append(f"node {node.node_id}: {last_line}")
        self.table.fail(node, last_line)
        log(WARNING, "Round %d: node %d dropped: %s", server_round, node.node_id, last_line)


def specs_of_reply(reply: Reply) -> Specs:
    """Return the specs of a reply's arrays: those of the broadcast, or others that it names.

    Raises
    ------
    PayloadError
        They cannot be read, or would take far more memory than the broadcast and the payload.
    """
    assert reply.broadcast is not None
    return _specs_said(reply.content, reply.broadcast)


def _specs_said(content: RecordDict, broadcast: Broadcast) -> Specs:
    said, sent = record_of(content).get("blueprint"), broadcast.reference
    if said is None:
        return sent.specs
    specs = Blueprint.from_bytes(said).specs
    new = sum(spec.nbytes for name, spec in specs.items() if sent.specs.get(name) != spec)
    most = _MOST_NEW_BYTES + _MOST_EXPANSION * len(packed_payload(content) or b"")
    if new > most:
        raise PayloadError(f"its arrays are to take {new} bytes that it was not sent, more than {most}")
    for name, spec in specs.items():
        if spec.dtype.kind in "fc" and name in sent.specs and spec.exact != sent.specs[name].exact:
            raise PayloadError(f"array {name!r} travels {'exactly' if spec.exact else 'rounded'} now, unlike before")
    return specs


def _named(payload: bytes, mirrored: Reference, broadcast: Reference) -> Reference:
    """Return the one of two references that a payload names; the broadcast where it names another one."""
    named = payload_info(payload).reference_id
    return mirrored if named is not None and mirrored.id.startswith(named) else broadcast
