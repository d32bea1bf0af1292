"""Messages out, replies in: what travels is packed, counted, waited for and checked here, once for all strategies."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from logging import WARNING

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from flsparse._flwr import log, wire_size
from flsparse.codec import ArraySpec, Codec, Layer, PayloadError, Reference, decode_layers, payload_info, specs_of
from flsparse.metering.ledger import Direction, Ledger
from flsparse.sparsity import default_prunable, match_prunable
from flsparse.strategies.core.downlink import LARGEST_WEIGHT, Broadcast, Downlink
from flsparse.wire.messages import (
    CONTROL,
    MISSING_REFERENCE,
    RECORD,
    Blueprint,
    arrayrecord_key,
    opaque_payload,
    pack,
    packed_payload,
    payload_size,
    record_of,
    to_numpy,
)
from flsparse.wire.mirror import reference_with

Value = int | float | str | bool
_LONGEST_REASON = 300
_MOST_MODELS = 1 << 16  # that one opaque payload stands for


@dataclass(frozen=True)
class Node:
    """A node as the server knows it.

    Attributes
    ----------
    node_id : int
        Flower's id, random.
    partition : int
        Partition id; where the node's app answers no hello, its place among the sorted node ids.
    held : str
        Id of the reference it reported last; empty: none.
    num_examples : int
        Size of its training data; 0: unknown.
    """

    node_id: int
    partition: int
    held: str = ""
    num_examples: int = 0


@dataclass
class _Exchange:
    """What is under way in one exchange of messages."""

    server_round: int = 0
    uplink: Direction = "uplink"
    sent: dict[str, Node] = field(default_factory=dict)  # by message id
    pending: set[str] = field(default_factory=set)  # message ids
    dense: dict[int, Message] = field(default_factory=dict)  # by node id, as the strategy made it
    broadcasts: dict[int, Broadcast] = field(default_factory=dict)  # by node id
    retried: set[int] = field(default_factory=set)  # node ids


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
    seed : int
        Seed of the nodes' stochastic rounding.

    Attributes
    ----------
    ledger : Ledger
        Bytes of every message, both ways.
    counts : Counter
        ``failures``, ``rejected_payloads`` and ``resent_models`` of the run.
    problems : list[str]
        What went wrong in this round, a line each.
    """

    def __init__(
        self, values: str, rounding: str, downlink: Downlink, prunable_patterns: list[str] | None, seed: int
    ) -> None:
        Codec(values=values, rounding=rounding)  # refuses what does not exist, before anything starts
        self.values, self.rounding, self.downlink, self.seed = values, rounding, downlink, seed
        self.ledger = Ledger()
        self.counts: Counter[str] = Counter(failures=0, rejected_payloads=0)
        self.problems: list[str] = []
        self._patterns = prunable_patterns
        self._blueprint = Blueprint({}, [])
        self._model_record: ArrayRecord | None = None
        self._exchange = _Exchange()

    def __str__(self) -> str:
        whole, delta = self.downlink.codec.values, self.downlink.delta_codec.values
        return f"{self.values} ({self.rounding}) up, {whole}{'' if delta == whole else f' (deltas {delta})'} down"

    @property
    def specs(self) -> dict[str, ArraySpec]:
        """Shapes and dtypes of the global model's arrays, by name; empty before the first broadcast."""
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
        method: Callable[[Node], Mapping[str, Value]],
        server_round: int,
        timeout_s: float,
        uplink: Direction = "uplink",
    ) -> Iterator[Message]:
        """Send dense messages packed, and return the replies in the messages' order, each as soon as its turn has come.

        A reply that an earlier node holds up waits (coded, so it is small) until that one is in or the deadline has
        passed. Replies with an error are yielded too.

        Parameters
        ----------
        grid : Grid
            Takes the messages.
        messages : Iterable[Message]
            At most one a node; those with dense arrays are packed.
        nodes : Mapping[int, Node]
            Known nodes, by node id.
        method : Callable[[Node], Mapping[str, int | float | str | bool]]
            The local method each is asked to run.
        server_round : int
            The round to count bytes under.
        timeout_s : float
            Seconds after which replies are no longer waited for.
        uplink : {"uplink", "evaluation"}
            What the replies are counted as.
        """
        self._exchange = _Exchange(server_round, uplink)
        self._method = method
        deadline = time.monotonic() + timeout_s
        order: list[int] = []
        for message in messages:
            node_id = message.metadata.dst_node_id
            node = nodes.get(node_id) or Node(node_id, -1)
            order.append(node.node_id)
            self._push(grid, self._packed(message, node), node)
        return self._in_order(self._until(grid, deadline), order, timeout_s)

    def _until(self, grid: Grid, deadline: float) -> Iterator[Message]:
        yield from self._pull(grid, deadline)
        if self._exchange.pending and (drop_messages := getattr(grid, "drop_messages", None)):
            drop_messages(self._exchange.pending)  # in process, what was not run by now never should be

    def _in_order(self, replies: Iterable[Message], order: list[int], timeout_s: float) -> Iterator[Message]:
        waiting: dict[int, Message] = {}
        turn = 0
        for reply in replies:
            waiting[self.sender(reply).node_id] = reply
            while turn < len(order) and order[turn] in waiting:
                yield waiting.pop(order[turn])
                turn += 1
        for message_id in self._exchange.pending:
            self.drop(self._exchange.sent[message_id].node_id, f"did not reply within {timeout_s:g} s", "failures")
        yield from (waiting[node_id] for node_id in order[turn:] if node_id in waiting)

    def _push(self, grid: Grid, message: Message, node: Node) -> None:
        self.count("downlink", message)
        ids = [message_id for message_id in grid.push_messages([message]) if message_id]
        if ids:
            self._exchange.sent[ids[0]] = node
            self._exchange.pending.add(ids[0])
        else:
            self.drop(node.node_id, "the message could not be delivered", "failures")

    def _pull(self, grid: Grid, deadline: float) -> Iterator[Message]:
        """Yield each reply as it comes; a node that lacks its reference is sent the full model, once."""
        pause = 0.02
        while self._exchange.pending and time.monotonic() < deadline:
            replies = list(grid.pull_messages(list(self._exchange.pending)))
            pause = 0.02 if replies else min(1.0, pause * 1.5)
            for reply in replies:
                if (message_id := reply.metadata.reply_to_message_id) not in self._exchange.pending:
                    self.drop(reply.metadata.src_node_id, "sent a reply nobody waited for", "rejected_payloads")
                    continue
                self._exchange.pending.discard(message_id)
                node = self.sender(reply)
                self.count(self._exchange.uplink, reply)
                if reply.has_content() and record_of(reply.content).get("status") == MISSING_REFERENCE:
                    self._send_full(grid, node)
                    continue
                yield reply
            if not replies:
                time.sleep(pause)

    def count(self, direction: Direction, message: Message) -> None:
        """Enter one message into the ledger."""
        self.ledger.count(
            direction,
            self._exchange.server_round,
            payload_bytes=payload_size(message.content) if message.has_content() else 0,
            wire_bytes=wire_size(message),
            dense_bytes=self._stands_for(message),
        )

    def _stands_for(self, message: Message) -> int:
        """Return the dense bytes of what a message's payload says it is."""
        if not message.has_content():
            return 0
        content = message.content
        if opaque_payload(content) is not None:
            said = record_of(content).get("models", 1)
            return self._blueprint.nbytes * (said if type(said) is int and 0 <= said <= _MOST_MODELS else 1)
        return self._blueprint.nbytes if packed_payload(content) is not None else payload_size(content)

    def refuse(self, reply: Message, reason: str) -> None:
        """Drop a reply that is no use: its bytes were sent, but are no model."""
        self._take_back(self._exchange.uplink, self._stands_for(reply))
        self.drop(self.sender(reply).node_id, reason, "rejected_payloads")

    def _take_back(self, direction: Direction, dense_bytes: int) -> None:
        self.ledger.count(
            direction, self._exchange.server_round, payload_bytes=0, wire_bytes=0, dense_bytes=-dense_bytes
        )

    def sender(self, reply: Message) -> Node:
        """Return the node a reply of this exchange comes from: an error that Flower made up names another."""
        return self._exchange.sent[reply.metadata.reply_to_message_id]

    def _send_full(self, grid: Grid, node: Node) -> None:
        message = self._exchange.dense.get(node.node_id)
        if message is not None:  # what it was sent it could not decode
            self._take_back("downlink", self._blueprint.nbytes)
        if message is None or node.node_id in self._exchange.retried:
            self.drop(node.node_id, "lacks its reference also after the full model was sent", "failures")
            return
        self._exchange.retried.add(node.node_id)
        self.counts["resent_models"] += 1
        without = replace(node, held="")
        self._push(grid, self._packed(message, without), without)

    def _packed(self, message: Message, node: Node) -> Message:
        """Return the message with its dense arrays packed, coded for what the node holds."""
        content = message.content
        if not content.array_records or packed_payload(content) is not None or opaque_payload(content) is not None:
            return message
        key = arrayrecord_key(content)
        self._set_model(content.array_records[key])
        broadcast = self.downlink.to(node.held)
        record = ConfigRecord(
            {
                "reference": broadcast.coded_against,
                "hold": self.downlink.uses_references,
                "values": self.values,
                "rounding": self.rounding,
                "seed": self.seed,
                "round": self._exchange.server_round,
                "node": node.partition,
                **self._method(node),
            }
        )
        if not broadcast.coded_against:
            record["blueprint"] = self._blueprint.to_bytes()
        self._exchange.dense[node.node_id] = message
        self._exchange.broadcasts[node.node_id] = broadcast
        others = {name: value for name, value in content.items() if name != key}
        packed = RecordDict({key: pack(broadcast.payload), **others, RECORD: record})
        return Message(packed, node.node_id, message.metadata.message_type, ttl=message.metadata.ttl)

    def _set_model(self, record: ArrayRecord) -> None:
        if record is self._model_record:
            return
        self._model_record = record
        arrays = to_numpy(record)
        self.downlink.set_model(arrays)
        self.describe(arrays)

    def describe(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Learn the names, shapes and dtypes of the model, once, and which of its arrays may be pruned."""
        if not self._blueprint.specs:
            model = {name: array for name, array in arrays.items() if not name.startswith(CONTROL)}
            default = self._patterns is None
            prunable = default_prunable(model) if default else match_prunable(model, self._patterns or [])
            self._blueprint = Blueprint(specs_of(arrays), prunable)

    def update(
        self, reply: Message, mirror: Mapping[str, np.ndarray] | None = None
    ) -> tuple[list[Layer], Reference] | None:
        """Check and decode one training reply; None where it is no use, which is logged and counted.

        Parameters
        ----------
        reply : Message
            Of this exchange.
        mirror : Mapping[str, np.ndarray], optional
            The node's mirror, where the server has one: the reply may be coded against it, or against the broadcast.

        Returns
        -------
        layers : list[Layer]
            The weights the node sent, sparse where they are.
        reference : Reference
            The model that this node had received.
        """
        node = self.sender(reply)
        if reply.has_error():
            self.drop(node.node_id, reply.error.reason, "failures")
            return None
        payload = packed_payload(reply.content)
        if payload is None:
            self.drop(node.node_id, "its reply has no packed update: is CompressMod first in mods?", "failures")
            return None
        reference = self.broadcast_to(reply).reference
        try:
            base = reference if mirror is None else _named(payload, reference_with(mirror, reference), reference)
            layers = decode_layers(payload, like=self.specs, reference=None if self.values == "raw" else base)
            for layer in layers:
                if layer.values.dtype.kind == "f" and np.abs(layer.values).max(initial=0) > LARGEST_WEIGHT:
                    raise PayloadError(f"array {layer.name!r} has weights beyond {LARGEST_WEIGHT:g}")
        except PayloadError as error:
            self.refuse(reply, f"its payload was refused: {error}")
            return None
        return layers, reference

    def broadcast_to(self, reply: Message) -> Broadcast:
        """Return what the node that a reply comes from was sent in this exchange."""
        return self._exchange.broadcasts[self.sender(reply).node_id]

    def drop(self, node_id: int, reason: str | None, counter: str) -> None:
        """Log and count a node's failure; the round goes on without it."""
        last_line = ((reason or "").strip() or "no reason given").splitlines()[-1][:_LONGEST_REASON]
        last_line = "".join(c if c.isprintable() else "?" for c in last_line)  # it may be a stranger's words
        self.counts[counter] += 1
        self.problems.append(f"node {node_id}: {last_line}")
        log(WARNING, "Round %d: node %d dropped: %s", self._exchange.server_round, node_id, last_line)


def _named(payload: bytes, mirrored: Reference, broadcast: Reference) -> Reference:
    """Return the one of two references that a payload names; the broadcast where it names another one."""
    named = payload_info(payload).reference_id
    return mirrored if named is not None and mirrored.id.startswith(named) else broadcast
