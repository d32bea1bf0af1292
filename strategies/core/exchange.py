"""One exchange: messages to nodes, and their replies, each with the node and the broadcast that it answers.

Exchanges are independent of each other: two may be open at a time, and a reply that comes after the deadline can still
be decoded against the broadcast that it answers, as long as somebody holds the exchange.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from flsparse._flwr import wire_size
from flsparse.codec import PayloadError
from flsparse.metering.clock import Back, VirtualClock
from flsparse.metering.ledger import Direction
from flsparse.strategies.core.downlink import Broadcast
from flsparse.wire.folded import fold, is_folded, is_ours, unfold
from flsparse.wire.messages import MISSING_REFERENCE, Scalar, record_of

Asks = Callable[["Node"], Mapping[str, Scalar]]


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
    num_test_examples : int
        Size of the data that it evaluates on; 0: it has none.
    class_counts : tuple of int
        Its training samples of each class, where it tells; else empty.
    seeded : bool
        Whether it builds the run's initial model from its seed, as far as is known.
    """

    node_id: int
    partition: int
    held: str = ""
    num_examples: int = 0
    num_test_examples: int = 0
    class_counts: tuple[int, ...] = ()
    seeded: bool = False


@dataclass(frozen=True)
class Reply:
    """A node's answer; where a strategy gets it, it has content, and errors were dropped before.

    Attributes
    ----------
    message : Message
        As it came.
    node : Node
        The node that was asked: an error that Flower made up names another one.
    broadcast : Broadcast or None
        The model that it answers; None where the question carried none.
    server_round : int
        Round that its bytes are counted under.
    uplink : {"uplink", "evaluation"}
        Direction that its bytes are counted as.
    dense_bytes : int
        Dense bytes that it was counted as when it came.
    version : int
        Round whose model it answers.
    back_s : float
        When it is back by the virtual clock.
    wire_bytes : int
        Bytes of the exchange with the node, both ways.
    """

    message: Message
    node: Node
    broadcast: Broadcast | None
    server_round: int
    uplink: Direction
    dense_bytes: int
    version: int = 0
    back_s: float = 0.0
    wire_bytes: int = 0

    @property
    def content(self) -> RecordDict:
        """Content of the message."""
        return self.message.content

    @property
    def record(self) -> ConfigRecord:
        """Our record in the content; empty where there is none."""
        return record_of(self.message.content)


class Post(Protocol):
    """Interface of the wire to an exchange."""

    counts: Counter[str]
    clock: VirtualClock | None

    def packed(self, message: Message, node: Node, exchange: "Exchange") -> Message:
        """Return the message with its model coded for the node; enter the broadcast into the exchange."""

    def count(
        self,
        direction: Direction,
        server_round: int,
        message: Message,
        broadcast: Broadcast | None,
        wire_bytes: int,
        node: Node,
    ) -> int:
        """Enter a message into the ledger: the broadcast, or the reply to it; return the dense bytes it stands for."""

    def hear(self, reply: Reply) -> None:
        """Note what an answer says of its node."""

    def drop(self, node: Node, reason: str | None, counter: str, server_round: int) -> None:
        """Log and count a node's failure."""

    def take_back_model(self, server_round: int, broadcast: Broadcast) -> None:
        """Take a model that its receiver could not decode out of the ledger's dense bytes."""


@dataclass
class Exchange:
    """Messages on their way to nodes, at most one a node, and their replies.

    Iterating yields the replies in the messages' order, each as soon as its turn has come: a reply that an earlier node
    holds up waits (coded, so it is small) until that one is in or the deadline has passed. Errors are dropped and
    counted, as is a node that did not reply by the deadline; a node that lacks its reference, or builds another initial
    model from the seed, is sent the full model, once. :meth:`arrived` yields replies as they come, without an order and
    without a deadline.

    Attributes
    ----------
    post : Post
        Packs, counts and drops.
    grid : Grid
        Carries the messages.
    asks : Callable[[Node], Mapping[str, int | float | str | bool]]
        Entries of a message's record for each node: its local method and parts.
    server_round : int
        Round to count bytes under.
    timeout_s : float
        Seconds after which iteration waits no longer.
    uplink : {"uplink", "evaluation"}
        Direction that replies are counted as.
    broadcasts : dict[int, Broadcast]
        Each node's broadcast, by node id; of an earlier exchange where this one continues it.
    waits : bool
        Whether the server waits for each reply: its virtual time is then no earlier.
    lost : dict[int, float]
        When nodes are given up that the virtual clock does not hear in time, by node id.
    """

    post: Post
    grid: Grid
    asks: Asks
    server_round: int
    timeout_s: float
    uplink: Direction = "uplink"
    broadcasts: dict[int, Broadcast] = field(default_factory=dict)
    waits: bool = True
    lost: dict[int, float] = field(default_factory=dict)
    _sent_bytes: Counter[int] = field(default_factory=Counter)  # by node id
    _order: list[int] = field(default_factory=list)  # node ids
    _pending: dict[str, Node] = field(default_factory=dict)  # by message id
    _dense: dict[int, Message] = field(default_factory=dict)  # by node id, as the strategy made it, where coded
    _resent: set[int] = field(default_factory=set)  # node ids

    def __post_init__(self) -> None:
        self._deadline, self._version = time.monotonic() + self.timeout_s, self.server_round

    def send(self, messages: Iterable[Message], nodes: Mapping[int, Node]) -> "Exchange":
        """Pack and send messages; nodes are the known ones, by node id."""
        for message in messages:
            node_id = message.metadata.dst_node_id
            node = nodes.get(node_id) or Node(node_id, -1)
            self._order.append(node_id)
            self._push(message, node)
        return self

    @property
    def pending(self) -> list[Node]:
        """Nodes that have not replied yet."""
        return list(self._pending.values())

    @property
    def message_ids(self) -> list[str]:
        """Ids of the messages that have no reply yet."""
        return list(self._pending)

    @property
    def overdue(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() > self._deadline

    @property
    def asked(self) -> int:
        """Number of messages sent."""
        return len(self._order)

    def __iter__(self) -> Iterator[Reply]:
        waiting: dict[int, Reply] = {}
        turn = 0
        for reply in self._incoming():
            waiting[reply.node.node_id] = reply
            while turn < len(self._order) and self._order[turn] in waiting:
                yield from self._valid(waiting.pop(self._order[turn]))
                turn += 1
        self.give_up()
        for node_id in self._order[turn:]:
            if node_id in waiting:
                yield from self._valid(waiting[node_id])

    def arrived(self) -> Iterator[Reply]:
        """Yield the replies that have come by now, also after the deadline; errors are dropped."""
        for reply in self._poll():
            yield from self._valid(reply)

    def give_up(self) -> None:
        """Drop the nodes that have not replied by the deadline."""
        for node in self._pending.values():
            self.post.drop(node, f"did not reply within {self.timeout_s:g} s", "failures", self.server_round)
        self.cancel()

    def cancel(self) -> None:
        """Give up on the nodes that have not replied; in process, nodes that have not run by now never will."""
        if self._pending and (drop_messages := getattr(self.grid, "drop_messages", None)):
            drop_messages(set(self._pending))
        if self.post.clock is not None:
            for message_id, node in self._pending.items():
                self.post.clock.lose(message_id, node.partition)
        self._pending = {}

    def _incoming(self) -> Iterator[Reply]:
        """Yield each reply as it comes, until the deadline."""
        pause = 0.02
        while self._pending and time.monotonic() < self._deadline:
            some = False
            for reply in self._poll():
                some = True
                yield reply
            pause = 0.02 if some else min(1.0, pause * 1.5)
            if not some:
                time.sleep(pause)

    def _poll(self) -> Iterator[Reply]:
        """Count and yield the replies that are there; resend the full model to a node that lacks its reference."""
        if not self._pending:
            return
        for message in self.grid.pull_messages(list(self._pending)):
            node = self._pending.pop(message.metadata.reply_to_message_id, None)
            if node is None:
                stranger = Node(message.metadata.src_node_id, -1)
                self.post.drop(stranger, "sent a reply nobody waited for", "rejected_payloads", self.server_round)
                continue
            broadcast, wire_bytes = self.broadcasts.get(node.node_id), wire_size(message)
            fault = _unfold(message)
            back = self._clocked(message, node, wire_bytes)
            if not back.heard:
                self.lost[node.node_id] = back.at_s
            if not back.sent:
                self.post.drop(node, "dropped out while it trained, as its link says", "failures", self.server_round)
                continue
            dense_bytes = self.post.count(self.uplink, self.server_round, message, broadcast, wire_bytes, node)
            if not back.heard:
                late = "replied over its link after the round had been closed: a higher strategy.round_timeout_s waits"
                self.post.drop(node, late, "failures", self.server_round)
            elif fault is not None:
                self.post.drop(node, fault, "rejected_payloads", self.server_round)
            elif message.has_content() and record_of(message.content).get("status") == MISSING_REFERENCE:
                self._resend(node, back.at_s)
            else:
                both = wire_bytes + self._sent_bytes[node.node_id]
                server_round, version = self.server_round, self._version
                yield Reply(message, node, broadcast, server_round, self.uplink, dense_bytes, version, back.at_s, both)

    def _clocked(self, message: Message, node: Node, wire_bytes: int) -> Back:
        """Return when a reply is back by the virtual clock; at once without one."""
        if (clock := self.post.clock) is None:
            return Back(0.0)
        asked, flops = message.metadata.reply_to_message_id, _flops(message)
        back = clock.receive(asked, _partition(message, node), self._version, wire_bytes, flops)
        if self.waits:
            clock.now_s = max(clock.now_s, back.at_s)
        return back

    def _valid(self, reply: Reply) -> Iterator[Reply]:
        if reply.message.has_error():
            self.post.drop(reply.node, reply.message.error.reason, "failures", self.server_round)
        else:
            self.post.hear(reply)
            yield reply

    def _push(self, message: Message, node: Node, at_s: float = 0.0) -> None:
        packed = self.post.packed(message, node, self)
        if packed is not message:
            self._dense[node.node_id] = message
        sent = _folded(packed)
        broadcast, wire_bytes = self.broadcasts.get(node.node_id), wire_size(sent)
        self.post.count("downlink", self.server_round, packed, broadcast, wire_bytes, node)
        ids = [message_id for message_id in self.grid.push_messages([sent]) if message_id]
        if ids:
            self._pending[ids[0]] = node
            self._sent_bytes[node.node_id] += wire_bytes
            if self.post.clock is not None:
                self.post.clock.send(ids[0], wire_bytes, at_s)
        else:
            self.post.drop(node, "the message could not be delivered", "failures", self.server_round)

    def _resend(self, node: Node, at_s: float) -> None:
        message = self._dense.get(node.node_id)
        if message is not None:
            self.post.take_back_model(self.server_round, self.broadcasts[node.node_id])
        if message is None or node.node_id in self._resent:
            reason = "lacks its reference also after the full model was sent"
            self.post.drop(node, reason, "failures", self.server_round)
            return
        self.post.counts["resent_models"] += 1
        self._resent.add(node.node_id)
        self._push(message, replace(node, held="", seeded=False), at_s)


def _folded(message: Message) -> Message:
    """Return a message with its content folded, where our mod will unfold it."""
    if not is_ours(message.content):
        return message
    about = message.metadata
    return Message(fold(message.content), about.dst_node_id, about.message_type, ttl=about.ttl)


def _unfold(reply: Message) -> str | None:
    """Unfold a reply's content in place; return what keeps it from being read, or None."""
    if reply.has_content() and is_folded(reply.content):
        try:
            reply.content = unfold(reply.content)
        except PayloadError as error:
            return str(error)
    return None


def _partition(reply: Message, node: Node) -> int:
    """Return a node's partition; of one that says hello, the one that it says."""
    said = record_of(reply.content).get("partition-id") if node.partition < 0 and reply.has_content() else None
    return said if isinstance(said, int) else node.partition


def _flops(reply: Message) -> float:
    """Return the floating-point operations that a reply reports: of devices that do not profit from zeros."""
    records = reply.content.metric_records.values() if reply.has_content() else ()
    found = next((record["flops-dense"] for record in records if "flops-dense" in record), 0.0)
    return float(found) if isinstance(found, int | float) and 0 <= found < math.inf else 0.0
