"""Local SGD on the server (Stich 2019, arXiv 1805.09767): the mean of stateful workers, every few steps.

    x_A <- mean over the sampled of x_m          uniform
    tau <- max(tau_base, floor((b / lr)^2))      local steps of a round by the quadratic synchronization rule   (qsr)

The server remembers the round of each worker's last accepted reply and sends it along: a worker with the state of that
very round goes on, any other one joins from the average (see flsparse.clients.local_sgd). A worker that was asked and
did not deliver is to join, too, so a late one does not go on from weights that nobody averaged.

Models with batch norm: after an exchange the nodes estimate its statistics at the average, and the server pools them.
"""

from collections.abc import Iterable
from logging import INFO
from typing import ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from flsparse._flwr import log
from flsparse.clients.core.method import LocalMethod
from flsparse.clients.local_sgd import LocalSGDLocal
from flsparse.configs import Fixed, settled
from flsparse.ranges import within
from flsparse.schedules import learning_rate, quadratic_synchronization
from flsparse.strategies.core.exchange import Node
from flsparse.strategies.fedavg import FedAvg
from flsparse.strategies.parts.statistics import Statistics
from flsparse.strategies.parts.workers import Workers
from flsparse.wire.messages import Entries


class LocalSGD(FedAvg):
    """The mean of workers that keep their optimizer.

    Parameters
    ----------
    qsr : float (default: 0.0)
        ``b`` of the quadratic synchronization rule, in units of the learning rate; 0: the same local steps every round
        (``client.local_steps``, which the rule takes for ``tau_base``, or ``client.local_epochs``).
    qsr_max_steps : int (default: 100)
        Bound of the rule's local steps, at least 1.
    statistics_every : int (default: 1)
        Rounds between estimates of the average's batch-norm statistics, and always in the last one; 0: never, the mean
        of the workers' running statistics is kept. Models without batch norm ignore it.
    statistics_samples : int (default: 500)
        Examples of each node for such an estimate; 0: all.
    **fedavg
        Parameters of :class:`FedAvg`. The mean is over workers, whatever their examples. ``hello`` is
        True: worker state goes by partition.
    """

    name = "local_sgd"
    measures = ("local_steps",)
    fixed: ClassVar[Fixed] = {
        "hello": (True, "worker state goes by partition"),
        "weighting": ("equal", "the mean is over workers"),
    }

    def __init__(
        self,
        *,
        qsr: float = 0.0,
        qsr_max_steps: int = 100,
        statistics_every: int = 1,
        statistics_samples: int = 500,
        **fedavg: object,
    ) -> None:
        super().__init__(**settled(fedavg, self.fixed))
        within("[0, inf)", qsr=qsr)
        within("[1, inf)", qsr_max_steps=qsr_max_steps)
        self.qsr, self.qsr_max_steps = qsr, qsr_max_steps
        self.worker_rounds = Workers()
        self.parts.add(self.worker_rounds, Statistics(statistics_every, statistics_samples))

    def method(self, server_round: int, node: Node | None = None) -> LocalMethod:
        """Ask for local SGD from the worker's state of its last accepted reply."""
        return LocalSGDLocal(continues=self.worker_rounds.continues(node))

    def summary(self) -> None:
        """Log the configuration."""
        if self.qsr:
            log(INFO, "\t├──> Local steps: (%.3g / lr)^2, at most %d", self.qsr, self.qsr_max_steps)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Set the round's local steps; sample and address as FedAvg does."""
        if self.qsr:
            config = ConfigRecord({**config, "local-steps": self._local_steps(server_round, config)})
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self.worker_rounds.ask([self.nodes[message.metadata.dst_node_id] for message in messages], self.round)
        return messages

    def _local_steps(self, server_round: int, config: ConfigRecord) -> int:
        if "lr" not in config:
            raise ValueError("qsr needs the learning rate: put 'lr' into train_config")
        told = Entries(config, "train_config")
        if (at_least := told.integer("local-steps", 0)) < 1:
            raise ValueError(f"qsr={self.qsr} needs client.local_steps above 0: the fewest that it may choose")
        rate = learning_rate(
            server_round,
            self._num_rounds,
            told.number("lr"),
            told.number("lr-final", 0.0),
            told.text("lr-schedule", "geometric"),
        )
        steps = quadratic_synchronization(rate, self.qsr, at_least, self.qsr_max_steps)
        self.round_metrics["local_steps"] = steps
        return steps
