"""Pace: which replies a round waits for, and what becomes of those that are late.

One loop of pushing and pulling serves all. A round asks nodes that are not busy, takes replies in the order in which
they are back, and leaves the rest in flight::

    sync        all of them                                      no reply is late
    quorum      K of C, and who comes within a grace period      late replies count less, 1 / sqrt(1 + s)
    overselect  K of C                                           late replies are waste
    fedbuff     K, whoever they are of the C that are in flight  late replies count less

``s``, the staleness, is how many models have been made since the one that a reply answers. FedBuff is of Nguyen et al.
2022 (arXiv 2106.06639).
"""

import heapq
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from flsparse import _flwr
from flsparse.codec import Reference
from flsparse.metering.clock import VirtualClock
from flsparse.nets.arrays import Arrays
from flsparse.ranges import within
from flsparse.strategies.core.downlink import Broadcast
from flsparse.strategies.core.exchange import Exchange, Node, Reply
from flsparse.strategies.core.part import RoundPart

T = TypeVar("T")
Numbers = dict[str, float]
_PAUSE_S = 0.1  # between two looks at a grid whose nodes run by themselves


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What a round waits for.

    Attributes
    ----------
    name : str
    replies : float
        Fraction of the nodes that a round would ask, in (0, 1], whose replies it waits for; 1 with ``sync``.
    grace : float
        Time that it waits further, as a multiple of the time that these took.
    staleness_max : int
        Staleness beyond which a reply is waste.
    refill : bool
        Ask as many nodes as have come back, so that as many are in flight all the time, rather than as many each round.
    """

    name: str
    replies: float = 1.0
    grace: float = 0.0
    staleness_max: int = 0
    refill: bool = False

    def __post_init__(self) -> None:
        within("(0, 1]", "the fraction of the asked nodes that a round waits for", replies=self.replies)
        within("[0, inf)", grace=self.grace, staleness_max=self.staleness_max)


def sync() -> Pace:
    """Wait for every node that was asked."""
    return Pace(name="sync")


def quorum(*, replies: float = 0.7, grace: float = 0.25, staleness_max: int = 10) -> Pace:
    """Wait for a part of the nodes and a grace period; late replies join a later round."""
    return Pace(name="quorum", replies=replies, grace=grace, staleness_max=staleness_max)


def overselect(*, replies: float = 0.7) -> Pace:
    """Ask more nodes than are waited for; late replies are waste."""
    return Pace(name="overselect", replies=replies)


def fedbuff(*, replies: float = 0.3, staleness_max: int = 10) -> Pace:
    """Make a model of each so many replies, and ask as many nodes anew."""
    return Pace(name="fedbuff", replies=replies, staleness_max=staleness_max, refill=True)


PACES: dict[str, Callable[..., Pace]] = {"sync": sync, "quorum": quorum, "overselect": overselect, "fedbuff": fedbuff}


def in_flight(pace: Pace, name: str, why_sync: str, parts: Iterable[RoundPart]) -> "InFlight | None":
    """Return the room for replies in flight of a method; None with ``sync``, which has none.

    Raises
    ------
    ValueError
        The method cannot use late replies, for the reason given, or one of its parts cannot.
    """
    if pace.name == "sync":
        return None
    if why_sync:
        raise ValueError(f"pace={pace.name} does not go with strategy={name}, {why_sync}: leave it out")
    if part := next((part for part in parts if not part.paced), None):
        raise ValueError(f"pace={pace.name} does not go with parts.{part.name}, which knows one model a round")
    return InFlight(pace)


def discount(staleness: int) -> float:
    """Return how much a late reply counts, ``1 / sqrt(1 + s)`` (FedBuff, section 3).

    >>> discount(0), discount(3)
    (1.0, 0.5)
    """
    return 1 / math.sqrt(1 + staleness)


def taken(
    pace: Pace,
    wanted: int,
    started_s: float,
    following: Callable[[float], tuple[float, T] | None],
    staleness: Callable[[T], int],
) -> tuple[list[T], list[T], float]:
    """Return what a round takes of what comes back, and what comes too late for any, each in order; and its deadline.

    Parameters
    ----------
    pace : Pace
    wanted : int
        Replies that the round waits for.
    started_s : float
        When it began.
    following : Callable[[float], tuple[float, T] or None]
        When the next reply is back, and the reply; None where none is by the given time.
    staleness : Callable[[T], int]
        Of a reply.

    Returns
    -------
    tuple[list[T], list[T], float]
        The deadline is the end of the grace period; infinite where there is none.
    """
    took: list[T] = []
    wasted: list[T] = []
    until = math.inf
    while (came := following(until)) is not None:
        back_s, reply = came
        if staleness(reply) > pace.staleness_max:
            wasted.append(reply)
            continue
        took.append(reply)
        if len(took) == wanted:
            if not pace.grace:
                break
            until = max(started_s, back_s) + pace.grace * max(0.0, back_s - started_s)
    return took, wasted, until


@dataclass
class Late:
    """A reply in flight, as a checkpoint holds it: what :class:`Reply` and its node say, and Flower's objects."""

    node_id: int
    partition: int
    num_examples: int
    num_test_examples: int
    version: int
    back_s: float
    wire_bytes: int
    dense_bytes: int
    reference: str
    message_id: str
    objects: dict[str, bytes]


@dataclass
class InFlightMemory:
    """What is in flight between two rounds, where nodes run in this process.

    Attributes
    ----------
    now_s, cost : float
        Of the virtual clock.
    late : dict[int, Late]
        Replies that are on their way, by node id.
    references : dict[str, dict[str, np.ndarray]]
        The broadcasts that they answer, by id, exact arrays marked.
    lost : dict[int, float]
        When nodes that have dropped out are given up, by node id; until then they count as busy.
    """

    now_s: float = 0.0
    cost: float = 0.0
    late: dict[int, Late] = field(default_factory=dict)
    references: dict[str, Arrays] = field(default_factory=dict)
    lost: dict[int, float] = field(default_factory=dict)


class InFlight:
    """Exchanges that are open, and replies in the order in which they are back.

    With a virtual clock, in process, nodes have run when their replies are still on their way.

    Parameters
    ----------
    pace : Pace

    Attributes
    ----------
    memory : InFlightMemory
        As of the last :meth:`pack`.
    """

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.memory = InFlightMemory()
        self._open: list[Exchange] = []
        self._back: list[tuple[float, int, Reply]] = []  # a heap: when, partition
        self._came = 0

    @property
    def busy(self) -> set[int]:
        """Ids of the nodes that are at work, or whose reply is on its way."""
        pending = {node.node_id for exchange in self._open for node in exchange.pending}
        return pending | {reply.node.node_id for _, _, reply in self._back} | self.memory.lost.keys()

    @property
    def references(self) -> set[str]:
        """Ids of the broadcasts that replies in flight answer: what their nodes hold by then."""
        sent = [reply.broadcast for _, _, reply in self._back]
        sent += [exchange.broadcasts.get(node.node_id) for exchange in self._open for node in exchange.pending]
        return {broadcast.reference.id for broadcast in sent if broadcast is not None}

    def take(
        self, exchange: Exchange, server_round: int, asked: int, note: Callable[[Reply], None], *, is_last: bool
    ) -> tuple[list[Reply], Numbers]:
        """Add this round's exchange and return the replies that the round goes on with, and numbers of the pace.

        Parameters
        ----------
        exchange : Exchange
            Its messages are sent.
        server_round : int
            This round: bytes that come count under it.
        asked : int
            Nodes of a round; the pace's fraction of them is waited for.
        note : Callable[[Reply], None]
            Is told of replies that are waste, whose nodes hold the models that they answer.
        is_last : bool
            What is in flight after it is waste.
        """
        clock = exchange.post.clock
        virtual = clock if getattr(exchange.grid, "runs_on_pull", False) else None
        self._open.append(exchange)
        self._came = 0
        for each in self._open:
            each.server_round, each.waits = server_round, False
        wanted = max(1, math.ceil(self.pace.replies * asked))
        started_s = time.monotonic() if virtual is None else virtual.now_s
        took, late, until = taken(
            self.pace,
            wanted,
            started_s,
            lambda until: self._next(virtual, until),
            lambda reply: server_round - reply.version,
        )
        for reply in late:
            note(reply)
        if clock is not None:
            clock.now_s = max([clock.now_s, *(reply.back_s for reply in (*took, *late))])
        if virtual is not None:
            if until < math.inf and self._back:
                virtual.now_s = max(virtual.now_s, until)
            if len(took) < wanted:  # it waited for nodes that had dropped out, until it gave them up
                virtual.now_s = max(virtual.now_s, *self.memory.lost.values(), 0.0)
            self.memory.lost = {node: at_s for node, at_s in self.memory.lost.items() if at_s > virtual.now_s}
        wasted = sum(reply.wire_bytes for reply in late) + (self.close() if is_last else 0)
        took.sort(key=lambda reply: (reply.version, reply.node.partition))
        staleness = [server_round - reply.version for reply in took]
        numbers: Numbers = {
            "staleness": sum(staleness) / max(1, len(took)),
            "late_replies": sum(map(bool, staleness)),
            "in_flight": len(self.busy),
            "wasted_bytes": wasted,
            "asked": exchange.asked,
            "received": self._came,
        }
        return took, numbers

    def _next(self, clock: VirtualClock | None, until: float) -> tuple[float, Reply] | None:
        """Return when the next reply is back, and the reply; None where there is none by some time."""
        while True:
            self._pull(clock)
            if self._back and self._back[0][0] <= until:
                back_s, _, reply = heapq.heappop(self._back)
                return back_s, reply
            if clock is not None or not self._open or time.monotonic() > until:
                return None
            time.sleep(_PAUSE_S)

    def _pull(self, clock: VirtualClock | None) -> None:
        """Take in what has come: with a virtual clock all that will come."""
        for exchange in self._open:
            while exchange.pending:
                for reply in exchange.arrived():
                    when = time.monotonic() if clock is None else reply.back_s
                    heapq.heappush(self._back, (when, reply.node.partition, reply))
                    self._came += 1
                self.memory.lost |= exchange.lost if clock is not None else {}
                if exchange.overdue:
                    exchange.give_up()
                if clock is None:
                    break
        self._open = [exchange for exchange in self._open if exchange.pending]

    def close(self) -> int:
        """Give up on all that is in flight; return the bytes of what had come."""
        for exchange in self._open:
            exchange.cancel()
        wasted = sum(reply.wire_bytes for _, _, reply in self._back)
        self._open, self._back = [], []
        return wasted

    # -- state ------------------------------------------------------------------------------------------------------

    def pack(self, clock: VirtualClock | None) -> None:
        """Write what is on its way into the memory; nodes that run by themselves are forgotten by a checkpoint."""
        self.memory = InFlightMemory(lost=self.memory.lost)
        if clock is not None:
            self.memory.now_s, self.memory.cost = clock.now_s, clock.cost
        for back_s, _, reply in self._back:
            assert reply.broadcast is not None
            node, reference = reply.node, reply.broadcast.reference
            message_id, objects = _flwr.deflate(reply.message)
            self.memory.references[reference.id] = reference.marked()
            self.memory.late[node.node_id] = Late(
                node.node_id,
                node.partition,
                node.num_examples,
                node.num_test_examples,
                reply.version,
                back_s,
                reply.wire_bytes,
                reply.dense_bytes,
                reference.id,
                message_id,
                objects,
            )

    def unpack(self, clock: VirtualClock | None) -> None:
        """Put what the memory holds on its way again."""
        references = {name: Reference.of_marked(arrays) for name, arrays in self.memory.references.items()}
        self._open, self._back = [], []
        for late in self.memory.late.values():
            node = Node(late.node_id, late.partition, "", late.num_examples, late.num_test_examples)
            broadcast = Broadcast(b"", "", references[late.reference], {})
            reply = Reply(
                _flwr.inflate(late.message_id, late.objects),
                node,
                broadcast,
                late.version,
                "uplink",
                late.dense_bytes,
                late.version,
                late.back_s,
                late.wire_bytes,
            )
            heapq.heappush(self._back, (late.back_s, late.partition, reply))
        if clock is not None:
            clock.now_s, clock.cost = self.memory.now_s, self.memory.cost
