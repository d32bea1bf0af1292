"""The roster: nodes that are connected, greeted and known to the server."""

import time
from collections.abc import Sequence
from dataclasses import replace
from logging import INFO, WARNING

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from flsparse._flwr import log
from flsparse.codec.wire import VERSION
from flsparse.strategies.core.courier import Wire
from flsparse.strategies.core.exchange import Node, Reply
from flsparse.strategies.core.frozen import FrozenBase
from flsparse.wire.messages import CLASS_COUNTS, FROZEN, RECORD, Scalar

_HELLO_TIMEOUT_S = 120.0
_MOST_CLASSES = 10_000


class RoundFailed(RuntimeError):
    """A round had too few valid replies."""


def no_quorum(server_round: int, min_replies: int, problems: Sequence[str]) -> RoundFailed:
    """Return the error of a round with too few valid replies, with the first reasons."""
    reasons = "; ".join(_each_once(problems)[:3]) or "no reply came before the deadline"
    return RoundFailed(f"round {server_round} had fewer than min_replies={min_replies} valid replies: {reasons}")


def _each_once(problems: Sequence[str]) -> list[str]:
    """Return each problem once, behind the node or the number of nodes that had it.

    >>> _each_once(["node 7: it is full", "node 8: no reply", "node 9: it is full"])
    ['2 nodes: it is full', 'node 8: no reply']
    """
    nodes: dict[str, list[str]] = {}
    for problem in problems:
        node, _, reason = problem.partition(": ")
        nodes.setdefault(reason, []).append(node)
    return [f"{had[0] if len(had) == 1 else f'{len(had)} nodes'}: {reason}" for reason, had in nodes.items()]


def sample_size(nodes: int, fraction: float, at_least: int) -> int:
    """Return the number of nodes in a sample: a fraction of them, rounded down, at least so many, at most all.

    >>> sample_size(100, 0.29, 2), sample_size(10, 0.0, 2), sample_size(1, 0.5, 2)
    (29, 2, 1)
    """
    return min(nodes, max(int(fraction * nodes + 1e-9), at_least))


def sample(nodes: Sequence[Node], fraction: float, at_least: int, generator: np.random.Generator) -> list[Node]:
    """Sample nodes without replacement; they stay in order (see :func:`sample_size`)."""
    chosen = generator.choice(len(nodes), sample_size(len(nodes), fraction, at_least), replace=False)
    return [nodes[i] for i in sorted(chosen)]


class Roster:
    """Nodes by node id.

    Parameters
    ----------
    hello : bool
        Ask each node for its partition id and its reference before it takes part; False: nodes go by node id.

    Attributes
    ----------
    nodes : dict[int, Node]
        Known nodes, by node id.
    says : dict[str, Scalar]
        What the hello tells a node, beside asking it.
    base : FrozenBase or None
        The frozen arrays that a node needs; one that says it has others is sent them when it is greeted.
    """

    def __init__(self, hello: bool) -> None:
        self.hello = hello
        self.says: dict[str, Scalar] = {}
        self.nodes: dict[int, Node] = {}
        self.base: FrozenBase | None = None
        self._mute: set[int] = set()  # node ids that did not answer the hello

    def in_partition_order(self) -> list[Node]:
        """Return the known nodes by partition id."""
        return sorted(self.nodes.values(), key=lambda node: node.partition)

    def note_held(self, reply: Reply) -> None:
        """Note the reference that a node keeps: the broadcast, if it names no other."""
        node_id, said = reply.node.node_id, reply.record
        if node_id not in self.nodes:
            return
        if "held" in said:
            self.nodes[node_id] = replace(self.nodes[node_id], held=held_by(said))
        elif reply.broadcast is not None:
            self.nodes[node_id] = replace(self.nodes[node_id], held=reply.broadcast.reference.id)

    def greet(
        self,
        grid: Grid,
        wire: Wire,
        server_round: int,
        timeout_s: float,
        *,
        needed: int,
        wanted: int,
        method: str | None,
    ) -> None:
        """Wait for the nodes that a round needs and greet the new ones, late joiners included.

        Parameters
        ----------
        grid, wire, server_round
            Carry, count and date the hello.
        timeout_s : float
            Seconds to wait for nodes.
        needed, wanted : int
            Nodes without which the round fails, and nodes that it would ask.
        method : str, optional
            Local method that a node has to know; None: its app decides.

        Raises
        ------
        RoundFailed
            Too few nodes are connected after ``timeout_s`` seconds, or none answered the hello.
        """
        started = time.monotonic()
        while len(present := sorted(grid.get_node_ids())) < needed:
            waited = time.monotonic() - started
            if waited > timeout_s:
                raise RoundFailed(f"only {len(present)} of {needed} nodes were connected after {timeout_s:g} s")
            if int(waited) % 10 == 0:
                log(INFO, "Waiting for nodes: %d here, %d needed", len(present), needed)
            time.sleep(1)
        if not self.hello:
            known = self.nodes
            self.nodes = {i: replace(known.get(i, Node(i, 0)), partition=n) for n, i in enumerate(present)}
            return
        here = set(present)
        self.nodes = {i: node for i, node in self.nodes.items() if i in here}
        self._mute &= here  # a node that did not answer is asked again when it has been away, or is wanted
        if len(self.nodes) + len(here - self.nodes.keys() - self._mute) < wanted:
            self._mute.clear()
        new = [i for i in present if i not in self.nodes and i not in self._mute]
        messages = [Message(RecordDict({RECORD: ConfigRecord(dict(self.says))}), i, MessageType.QUERY) for i in new]
        self._mute |= set(new)
        exchange = wire.exchange(grid, messages, {}, lambda _: {}, server_round, min(timeout_s, _HELLO_TIMEOUT_S))
        lacking = []
        for reply in exchange:
            if (fault := self._welcome(reply.node.node_id, reply.record, method)) is not None:
                wire.drop(reply.node, fault, "failures", server_round)
            elif self.base is not None and reply.record.get(FROZEN) != self.base.digest:
                lacking.append(reply.node.node_id)
        if self.base is not None and lacking:
            self._mute |= set(lacking) - self.base.deliver(grid, wire, server_round, timeout_s, lacking)
            self.nodes = {i: node for i, node in self.nodes.items() if i not in self._mute}
        if not self.nodes:
            raise RoundFailed(f"none of {len(present)} nodes answered the hello: {'; '.join(wire.problems[:3])}")
        if len(self.nodes) < wanted:
            log(WARNING, "Round %d: only %d nodes are there, %d wanted", server_round, len(self.nodes), wanted)

    def _welcome(self, node_id: int, said: ConfigRecord, method: str | None) -> str | None:
        """Take in a node that said hello, or return why it cannot take part."""
        partition, methods = said.get("partition-id"), said.get("methods")
        if type(partition) is not int or not 0 <= partition < 2**31:
            return f"says its partition id is {partition!r}"
        if said.get("codec-version") != VERSION:
            return f"codes payloads in version {said.get('codec-version')!r}, not {VERSION}: update it"
        if isinstance(methods, list) and methods and method is not None and method not in methods:
            return f"does not know the method {method!r}, only {', '.join(map(str, methods))}: update it"
        self._mute.discard(node_id)
        if partition in (taken := {n.partition: n.node_id for n in self.nodes.values()}):
            # a restarted node counts twice until its old connection is gone: it is asked again
            return f"says it is partition {partition}, as does node {taken[partition]}"
        sizes = [said.get(key) for key in ("num-examples", "num-test-examples")]
        trained, tested = (size if type(size) is int and 0 < size < 2**31 else 0 for size in sizes)
        counts = _counts_of(said)
        self.nodes[node_id] = Node(node_id, partition, held_by(said), trained, tested, counts, seeded=True)
        return None


def _counts_of(said: ConfigRecord) -> tuple[int, ...]:
    """Return the samples of each class that a node tells; nothing where these are no counts."""
    told = said.get(CLASS_COUNTS)
    sound = (
        isinstance(told, list) and len(told) <= _MOST_CLASSES and all(type(n) is int and 0 <= n < 2**40 for n in told)
    )
    return tuple(told) if sound else ()  # type: ignore[arg-type]


def held_by(said: ConfigRecord) -> str:
    """Return the reference id that a node says it holds; the empty string where that is no id."""
    held = said.get("held")
    return held if isinstance(held, str) and len(held) <= 64 and held.isalnum() else ""
