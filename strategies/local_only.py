"""No exchange, on the server: each node trains by itself, from the same start; a baseline.

    w_m <- local training of w_m          for each sampled node m, in each round

No model travels: nodes are told when to train, with the sampling, the local epochs and the learning rates of a
federated run, and tell what their models are worth on their test parts. A node gains by joining a federation where its
model does better on that part than this one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from flsparse.clients.core.method import LocalMethod
from flsparse.clients.local_only import LocalOnlyLocal
from flsparse.configs import Fixed, settled
from flsparse.strategies.core.exchange import Node, Reply
from flsparse.strategies.core.measures import weighted_means
from flsparse.strategies.fedavg import FedAvg
from flsparse.wire.messages import RECORD, to_record


@dataclass
class LocalOnlyMemory:
    """What the server knows of the nodes' models.

    Attributes
    ----------
    trained : set[int]
        Partitions whose nodes have trained a model.
    """

    trained: set[int] = field(default_factory=set)


class LocalOnly(FedAvg):
    """Nodes that train by themselves and are measured.

    The run's loss and metrics are those of all nodes' models, each on its node's test part.

    Parameters
    ----------
    fraction_evaluate : float (default: 1.0)
        Fraction of the nodes that evaluate their models in a round; in the last one all do.
    **fedavg
        Parameters of :class:`FedAvg`. Parts are refused: they change what travels, and nothing does.
    """

    name = "local_only"
    previewed_as = "nothing"
    central = False
    by_node = True
    fixed: ClassVar[Fixed] = {
        "server_optimizer": ("none", "no server averages"),
        "server_lr": (1.0, "no server averages"),
        "weighting": ("equal", "no server averages"),
    }

    def __init__(self, *, fraction_evaluate: float = 1.0, **fedavg: Any) -> None:
        super().__init__(fraction_evaluate=fraction_evaluate, **settled(fedavg, self.fixed))
        self.memory: LocalOnlyMemory = LocalOnlyMemory()
        for part in self.parts:
            raise ValueError(f"parts: {part.name!r} has no effect on local_only, which sends no model: leave it out")

    def method(self, server_round: int, node: Node | None = None) -> LocalMethod:
        """Ask for a training of the node's own model."""
        return LocalOnlyLocal(trained=node is not None and node.partition in self.memory.trained)

    def _messages(
        self, nodes: list[Node], server_round: int, arrays: ArrayRecord, config: ConfigRecord, message_type: str
    ) -> Iterable[Message]:
        """Address each node without a model."""
        config = ConfigRecord({**config, "server-round": server_round, "num-rounds": self._num_rounds})
        for node in nodes:
            asked: dict[str, Any] = {
                "seed": self.seed,
                "round": server_round,
                "node": node.partition,
                **self.asks(node, server_round),
            }
            content = RecordDict({self.configrecord_key: config, RECORD: ConfigRecord(asked)})
            yield Message(content, node.node_id, message_type)

    def receive(self, server_round: int, replies: Iterable[Reply]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the metrics; the model is the one that all started from."""
        told = []
        for reply in replies:
            if (weighed := self.weigh(reply)) is not None:
                told.append((1.0, weighed[1]))
                self.memory.trained.add(reply.node.partition)
        self.round_metrics["replies"] = len(told)
        if len(told) < self.min_replies:
            return None, None
        return to_record(self.round.model), MetricRecord(dict(weighted_means(told)))
