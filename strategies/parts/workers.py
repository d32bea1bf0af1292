"""Stateful workers: the round of each worker's state in the average.

The server remembers the round of each worker's last accepted reply and sends it along: a worker with the state of that
very round goes on, any other one joins from the average (:mod:`flsparse.clients.local_sgd`). A worker that was asked
without an accepted reply joins, too: its late weights are in no average.
"""

from dataclasses import dataclass, field

from flsparse.codec import Layer
from flsparse.nets.arrays import Arrays
from flsparse.strategies.core.exchange import Node, Reply
from flsparse.strategies.core.part import Round, RoundPart


@dataclass
class WorkersMemory:
    """Rounds of the workers.

    Attributes
    ----------
    accepted : dict[int, int]
        Round of the last accepted reply, by partition.
    once : set[int]
        Partitions that have ever been accepted.
    """

    accepted: dict[int, int] = field(default_factory=dict)
    once: set[int] = field(default_factory=set)


class Workers(RoundPart):
    """The round of each worker's last accepted reply."""

    name = "workers"
    measures = ("rejoined",)

    def __init__(self) -> None:
        self.memory: WorkersMemory = WorkersMemory()
        self._asked: list[Node] = []

    def continues(self, node: Node | None) -> int:
        """Return the round of a worker's last accepted reply; 0: it joins."""
        return 0 if node is None else self.memory.accepted.get(node.partition, 0)

    def ask(self, nodes: list[Node], round: Round) -> None:
        """Note the workers of a round."""
        self._asked = nodes
        round.metrics["rejoined"] = 0

    def accept(self, reply: Reply, layers: list[Layer], round: Round) -> None:
        """Note the worker's round; count it where it has joined again."""
        partition = reply.node.partition
        joined = any(record.get("joined", 0) for record in reply.content.metric_records.values())
        round.metrics["rejoined"] += int(bool(joined) and partition in self.memory.once)
        self.memory.accepted[partition] = round.number
        self.memory.once.add(partition)

    def abandon(self, round: Round) -> None:
        """Let all workers of the round join again: their training is in no average."""
        for node in self._asked:
            self.memory.accepted.pop(node.partition, None)

    def close(self, arrays: Arrays, round: Round) -> Arrays:
        """Let workers that were asked and not accepted join again: not before, since a model may be sent twice."""
        for node in self._asked:
            if self.continues(node) != round.number:
                self.memory.accepted.pop(node.partition, None)
        return arrays
