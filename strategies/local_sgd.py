"""Local SGD on the server (Stich 2019, arXiv 1805.09767): the mean of stateful workers, every few steps.

    x_A <- mean over the sampled of x_m          uniform
    tau <- max(tau_base, floor((b / lr)^2))      local steps of a round by the quadratic synchronization rule   (qsr)

The server remembers the round of each worker's last accepted reply and sends it along: a worker with the state of that
very round goes on, any other one joins from the average (see flsparse.clients.local_sgd). A worker that was asked and
did not deliver is to join, too, so a late one does not go on from weights that nobody averaged.

Models with batch norm: after an exchange the nodes estimate its statistics at the average, and the server pools them.
"""

from collections.abc import Iterable, Mapping
from logging import INFO
from typing import ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from flsparse._flwr import log
from flsparse.clients.core.method import LocalMethod
from flsparse.clients.local_sgd import LocalSGDLocal
from flsparse.clients.parts.questions import NUM_EXAMPLES, STATISTICS
from flsparse.codec import Layer
from flsparse.configs import Fixed, settled
from flsparse.nets.batch_norm import pooled, statistics_names
from flsparse.ranges import within
from flsparse.schedules import learning_rate, quadratic_synchronization
from flsparse.strategies.core.exchange import Node, Reply
from flsparse.strategies.fedavg import FedAvg
from flsparse.wire.messages import Scalar, to_numpy, to_record


class LocalSGD(FedAvg):
    """The mean of workers that keep their optimizer.

    Parameters
    ----------
    qsr : float (default: 0.0)
        ``b`` of the quadratic synchronization rule, in units of the learning rate; 0: the same local steps every round
        (``client.local_steps``, which the rule takes for ``tau_base``, or ``client.local_epochs``).
    qsr_max_steps : int (default: 100)
        Bound of what the rule asks for, at least 1.
    statistics_every : int (default: 1)
        Rounds between estimates of the average's batch-norm statistics, and always in the last one; 0: never, the mean
        of the workers' running statistics is kept. Models without batch norm have no use for it.
    statistics_samples : int (default: 500)
        Examples of each node for such an estimate; 0: all.
    **fedavg
        Parameters of :class:`FedAvg`. The mean is over workers, whatever their examples. ``hello`` is
        True: what workers keep goes by partition.
    """

    name = "local_sgd"
    weighted = False
    fixed: ClassVar[Fixed] = {"hello": (True, "worker state goes by partition")}

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
        within("[0, inf)", qsr=qsr, statistics_every=statistics_every, statistics_samples=statistics_samples)
        within("[1, inf)", qsr_max_steps=qsr_max_steps)
        self.qsr, self.qsr_max_steps = qsr, qsr_max_steps
        self.statistics_every, self.statistics_samples = statistics_every, statistics_samples
        self._accepted: dict[int, int] = {}  # round of the last accepted reply, by partition
        self._once: set[int] = set()  # partitions that have ever been accepted
        self._asked: list[Node] = []

    def method(self, server_round: int, node: Node | None = None) -> LocalMethod:
        """Tell the worker which state of its to go on from."""
        return LocalSGDLocal(continues=self.continues(node))

    def continues(self, node: Node | None) -> int:
        """Return the round of a worker's last accepted reply; 0: it joins."""
        return 0 if node is None else self._accepted.get(node.partition, 0)

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
        self._asked = [self.nodes[message.metadata.dst_node_id] for message in messages]
        self.round_metrics["rejoined"] = 0
        return messages

    def _local_steps(self, server_round: int, config: ConfigRecord) -> int:
        if "lr" not in config:
            raise ValueError("qsr needs the learning rate: put 'lr' into train_config")
        if int(config.get("local-steps", 0)) < 1:  # type: ignore[arg-type]
            raise ValueError(f"qsr={self.qsr} needs client.local_steps above 0: the fewest that it may choose")
        rate = learning_rate(
            server_round,
            self._num_rounds,
            float(config["lr"]),  # type: ignore[arg-type]
            float(config.get("lr-final", 0.0)),  # type: ignore[arg-type]
            str(config.get("lr-schedule", "geometric")),
        )
        at_least = int(config["local-steps"])  # type: ignore[arg-type]
        steps = quadratic_synchronization(rate, self.qsr, at_least, self.qsr_max_steps)
        self.round_metrics["local_steps"] = steps
        return steps

    def receive(self, server_round: int, replies: Iterable[Reply]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average; who was asked and not accepted joins anew next time."""
        for node in self._asked:
            self._accepted.pop(node.partition, None)
        return super().receive(server_round, replies)

    def accept(self, reply: Reply, layers: list[Layer]) -> None:
        """Note the worker's round; count it where it has joined again."""
        partition = reply.node.partition
        joined = any(record.get("joined", 0) for record in reply.content.metric_records.values())
        self.round_metrics["rejoined"] += int(bool(joined) and partition in self._once)
        self._accepted[partition] = self._next_round
        self._once.add(partition)

    def abandon(self) -> None:
        """Let everybody join anew who was asked: what they trained is in no average."""
        for node in self._asked:
            self._accepted.pop(node.partition, None)

    def conclude(self, grid: Grid, server_round: int, arrays: ArrayRecord, timeout_s: float) -> ArrayRecord:
        """Replace the batch-norm statistics by those that the round's nodes find at the average."""
        names = statistics_names(arrays)
        due = self.statistics_every and (server_round % self.statistics_every == 0 or server_round == self._num_rounds)
        if not names or not due:
            return arrays
        config = ConfigRecord({"samples": self.statistics_samples})
        parts = []
        for reply in self.ask(grid, server_round, f"{MessageType.EVALUATE}.{STATISTICS}", arrays, config, timeout_s):
            if (weighed := self.weigh(reply, NUM_EXAMPLES)) is None:
                continue
            found = _statistics_of(reply, names, to_numpy(arrays))
            if found is not None and self.wire.downlink.cannot_send(found) is None:
                parts.append((weighed[0], found))
            else:
                self.wire.refuse(reply, "its statistics are no use")
        if not parts:
            return arrays
        return to_record({**to_numpy(arrays), **pooled(parts)})

    def ask(
        self,
        grid: Grid,
        server_round: int,
        message_type: str,
        arrays: ArrayRecord,
        config: ConfigRecord,
        timeout_s: float,
        *,
        hold: bool = True,
    ) -> Iterable[Reply]:
        """Ask the round's accepted workers about a model; return their replies.

        With ``hold`` the nodes keep the model as their next reference, so that the next broadcast is small.
        """
        nodes = [self.nodes[n.node_id] for n in self._asked if self._accepted.get(n.partition) == server_round]
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        messages = [Message(content, node.node_id, message_type) for node in nodes]

        def asks(node: Node) -> Mapping[str, Scalar]:
            kept = {} if hold else {"hold": False}
            return {**self.asks(node, server_round), **kept}

        for reply in self.wire.exchange(grid, messages, self.nodes, asks, server_round, timeout_s):
            self.note_held(reply)
            yield reply

    def state_dict(self) -> dict[str, object]:
        """Return FedAvg's state and which state each worker is to go on from."""
        accepted = {str(partition): server_round for partition, server_round in self._accepted.items()}
        return {**super().state_dict(), "accepted": accepted, "once": sorted(self._once)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self._accepted = {int(partition): r for partition, r in state["accepted"].items()}  # type: ignore[attr-defined]
        self._once = set(state["once"])  # type: ignore[call-overload]


def _statistics_of(reply: Reply, names: list[str], model: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """Return the statistics a node found; None where they are not finite, or not of the model's shapes and dtypes."""
    try:
        found = to_numpy(reply.content.array_records.get(STATISTICS, ArrayRecord()))
    except Exception:  # reading a stranger's bytes as arrays may end in anything
        return None
    if sorted(found) != sorted(names) or not all(isinstance(array, np.ndarray) for array in found.values()):
        return None
    sound = all(
        (found[n].shape, found[n].dtype) == (model[n].shape, model[n].dtype)
        and bool(np.isfinite(found[n]).all())
        and (not n.endswith("running_var") or bool((found[n] >= 0).all()))
        for n in names
    )
    return found if sound else None
