"""FedAvg on the server (McMahan et al. 2017, arXiv 1602.05629), over the packed wire.

    x <- sum_m n_m y_m / sum_m n_m           n_m weight of node m (weighting), y_m the weights it sent

Each node m started from its own reference r_m, a rounded copy of x. The rounding is given back to the model:

    x <- sum_m n_m y_m / n + (x - sum_m n_m r_m / n)
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from logging import INFO
from statistics import median
from typing import Any, Literal, Protocol, get_args

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from flsparse import rng
from flsparse._flwr import log
from flsparse.clients.core.method import LocalMethod
from flsparse.clients.fedavg import FedAvgLocal
from flsparse.codec import Accumulator, Reference
from flsparse.kpi import Kpi
from flsparse.nets.arrays import Arrays
from flsparse.ranges import one_of, within
from flsparse.strategies.core.downlink import rounded_names
from flsparse.strategies.core.exchange import Node, Reply
from flsparse.strategies.core.loop import RoundLoop
from flsparse.strategies.core.measures import LARGEST, numbers_of, sums_of, update_norm, weighted_means
from flsparse.strategies.core.pace import discount
from flsparse.strategies.core.part import Round
from flsparse.strategies.core.roster import draw, sample_size
from flsparse.strategies.parts.server_optimizer import Kind, ServerOptimizer
from flsparse.wire.messages import Scalar, to_numpy, to_record

Weighting = Literal["examples", "equal", "clipped"]
_CLIPPED = 2.0  # medians of the nodes' sizes that a node weighs at most
_EVALUATED = 10  # examples that a node evaluates on, at most, for each that it trains on


@dataclass
class Weighted:
    """References of the accepted replies, with the weight behind each."""

    reference: Reference
    weight: float = 0.0


class Pooled(Protocol):
    """Metrics of several nodes as sums; ``flsparse.tasks.metrics.Meter`` is one."""

    examples: float

    def merge(self, sums: Mapping[str, Sequence[float]], most: float) -> None: ...
    def scores(self) -> dict[str, Any]: ...


class FedAvg(RoundLoop):
    """Weighted mean of the sampled nodes' weights.

    Parameters
    ----------
    fraction_train, fraction_evaluate : float (default: 1.0, 0.0)
        Fraction of the nodes that train, or evaluate, in a round, in [0, 1]. Our device application evaluates on the
        data it trains on, and says so: ``evaluate_train_loss``, ``evaluate_train_accuracy``.
    min_train_nodes, min_evaluate_nodes : int (default: 2, 2)
        Smallest number of sampled nodes, where that many are connected.
    min_available_nodes : int (default: 2)
        Nodes without which no round starts; the loop waits for them, as long as ``timeout`` of :meth:`start`.
    weighted_by_key : str (default: "num-examples")
        Metric of a reply that is its weight.
    weighting : {"examples", "equal", "clipped"} (default: "examples")
        A node's size is its word alone: "equal" takes no notice of it, "clipped" takes at most twice the median of what
        the nodes say in the hello, which it needs. Metrics of replies are averaged likewise.
    arrayrecord_key, configrecord_key : str (default: "arrays", "config")
        Names of the records in a message.
    server_optimizer : {"none", "momentum", "adam"} (default: "none")
        Update rule for the pseudo-gradient (:class:`flsparse.strategies.parts.server_optimizer.ServerOptimizer`).
    server_lr : float (default: 1.0)
        Server learning rate, above 0; 1 with "none" is plain averaging, without a server optimizer.
    **wire
        Parameters of :class:`RoundLoop`. ``values="raw", downlink_values="raw"`` is the dense baseline.

    Attributes
    ----------
    meter : callable, optional
        Makes the meter that the sums of nodes' evaluations are put together in. Without one their means are weighted.
    kpi : Kpi, optional
        The metric whose mean over nodes, and worst, are reported where nodes evaluate on test parts.
    evaluate_every : int
        Rounds between federated evaluations; the last round has one.
    """

    name = "fedavg"
    why_sync = ""

    def __init__(
        self,
        *,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 0.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        weighting: Weighting = "examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        server_optimizer: Kind = "none",
        server_lr: float = 1.0,
        **wire: Any,
    ) -> None:
        super().__init__(**wire)
        within("[0, 1]", fraction_train=fraction_train, fraction_evaluate=fraction_evaluate)
        within("[0, inf)", min_train_nodes=min_train_nodes, min_evaluate_nodes=min_evaluate_nodes)
        within("[1, inf)", min_available_nodes=min_available_nodes)
        one_of(get_args(Kind), server_optimizer=server_optimizer)
        within("(0, inf)", server_lr=server_lr)
        one_of(get_args(Weighting), weighting=weighting)
        if weighting == "clipped" and not self.hello:
            raise ValueError("weighting='clipped' goes by the sizes that nodes tell in the hello: say hello=True")
        self.fraction_train = fraction_train
        self.fraction_evaluate = fraction_evaluate
        self.min_train_nodes = min_train_nodes
        self.min_evaluate_nodes = min_evaluate_nodes
        self._min_available_nodes = min_available_nodes
        self.weighted_by_key = weighted_by_key
        self.weighting = weighting
        self.arrayrecord_key = arrayrecord_key
        self.configrecord_key = configrecord_key
        if (server_optimizer, server_lr) != ("none", 1.0):
            self.parts.add(ServerOptimizer(kind=server_optimizer, lr=server_lr))
        self.meter: Callable[[], Pooled] | None = None
        self.kpi: Kpi | None = None
        self.evaluate_every = 1
        self._accepted: list[Node] = []  # of this round

    @property
    def min_available_nodes(self) -> int:
        """Nodes without which no round starts."""
        return self._min_available_nodes

    def method(self, server_round: int, node: Node | None = None) -> LocalMethod:
        """Ask for plain local training."""
        return FedAvgLocal()

    def summary(self) -> None:
        """Log the configuration."""
        log(INFO, "\t├──> Sampling: train %.3g | evaluate %.3g", self.fraction_train, self.fraction_evaluate)
        log(INFO, "\t├──> Codec: %s", self.wire)
        log(INFO, "\t└──> Parts: %s", self.parts)

    def sample(self, fraction: float, at_least: int, server_round: int, purpose: str) -> list[Node]:
        """Sample nodes by partition id, so that every runtime samples the same."""
        nodes, generator = self.roster.in_partition_order(), rng.stream(self.seed, server_round, -1, purpose)
        size = sample_size(len(nodes), fraction, at_least)
        if self.in_flight is not None:
            busy = self.in_flight.busy
            size -= len(busy) if self.in_flight.pace.refill and purpose == "sampling" else 0
            nodes = [node for node in nodes if node.node_id not in busy]
        return draw(nodes, max(0, min(size, len(nodes))), generator)

    @property
    def asked_nodes(self) -> int:
        """Nodes that a round would ask if none were busy."""
        return sample_size(len(self.nodes), self.fraction_train, self.min_train_nodes)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample nodes and address the model to each."""
        nodes, arrays = self.open_round(server_round, arrays, grid)
        return self._messages(nodes, server_round, arrays, config, MessageType.TRAIN)

    def open_round(self, server_round: int, arrays: ArrayRecord, grid: Grid) -> tuple[list[Node], ArrayRecord]:
        """Let the parts begin a round; return the nodes sampled for it, and the model with the parts' arrays behind."""

        def ask(message_type: str, arrays: ArrayRecord, config: ConfigRecord, hold: bool = True) -> Iterable[Reply]:
            return self.ask(grid, message_type, arrays, config, hold=hold)

        self._accepted = []
        self.round = Round(server_round, self._num_rounds, self.nodes, self.wire, self.round_metrics, ask, self.weigh)
        self.parts.open(self.round)
        arrays = self.parts.joined(arrays)
        self.round = replace(self.round, model=to_numpy(arrays))
        return self.sample(self.fraction_train, self.min_train_nodes, server_round, "sampling"), arrays

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample nodes for federated evaluation; by node, the model that the run ends with is measured by all."""
        is_last = server_round == self._num_rounds
        fraction = 1.0 if is_last and self.by_node else self.fraction_evaluate
        if fraction == 0 or (server_round % self.evaluate_every and not is_last):
            return []
        nodes = self.sample(fraction, self.min_evaluate_nodes, server_round, "evaluation")
        return self._messages(nodes, server_round, self.parts.joined(arrays), config, MessageType.EVALUATE)

    def _messages(
        self, nodes: list[Node], server_round: int, arrays: ArrayRecord, config: ConfigRecord, message_type: str
    ) -> Iterable[Message]:
        config = ConfigRecord({**config, "server-round": server_round, "num-rounds": self._num_rounds})
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        return (Message(content, node.node_id, message_type) for node in nodes)

    def receive(self, server_round: int, replies: Iterable[Reply]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add each valid reply into one accumulator, in partition order; None without a quorum."""
        accumulator = Accumulator(self.wire.specs)
        references: dict[str, Weighted] = {}
        accepted: list[tuple[float, dict[str, float]]] = []
        most, whole, late = self._most_weight(), 0.0, False
        for reply in replies:
            layers = self.update(reply, self.parts.mirror(reply.node))
            if layers is None or reply.broadcast is None:
                continue
            if (fault := self.parts.fault(reply, layers, self.round)) is not None:
                self.wire.refuse(reply, fault)
                continue
            if (weighed := self.weigh(reply)) is None:
                continue
            (weight, metrics), reference = weighed, reply.broadcast.reference
            weight = 1.0 if self.weighting == "equal" or self.parts.uniform else min(weight, most)
            if weight == 0:
                self.wire.problems.append(f"node {reply.node.node_id}: {self.weighted_by_key}=0")
                continue
            whole, late = whole + weight, late or reply.version < server_round
            weight *= discount(server_round - reply.version)
            accumulator.add(layers, weight)
            references.setdefault(reference.id, Weighted(reference)).weight += weight
            accepted.append((weight, metrics))
            self._accepted.append(reply.node)
            if self.by_node:
                self.wire.table.moved(reply.node, update_norm(reply, layers))
            self.parts.accept(reply, layers, self.round)
        self.round_metrics["replies"] = len(accepted)
        if len(accepted) < self.min_replies:
            self.parts.abandon(self.round)
            return None, None
        mean = self._give_back_rounding(accumulator.mean(), references, late=late)
        if late:
            mean = self._shortened(mean, accumulator.total_weight / whole)
        return to_record(self.parts.close(mean, self.round)), MetricRecord(dict(weighted_means(accepted)))

    def conclude(self, grid: Grid, server_round: int, arrays: ArrayRecord, timeout_s: float) -> ArrayRecord:
        """Let the parts ask the nodes about the model."""
        return self.parts.conclude(arrays, self.round)

    def ask(
        self, grid: Grid, message_type: str, arrays: ArrayRecord, config: ConfigRecord, *, hold: bool = True
    ) -> Iterable[Reply]:
        """Ask the nodes of this round's accepted updates about a model; yield their replies.

        With ``hold`` the nodes keep the model as their next reference, so that the next broadcast is small.
        """
        content = RecordDict({self.arrayrecord_key: self.parts.joined(arrays), self.configrecord_key: config})
        messages = [Message(content, node.node_id, message_type) for node in self._accepted]
        server_round = self.round.number

        def asks(node: Node) -> Mapping[str, Scalar]:
            kept = {} if hold else {"hold": False}
            return {**self.asks(node, server_round), **kept}

        for reply in self.wire.exchange(grid, messages, self.nodes, asks, server_round, self._exchange_s):
            self.roster.note_held(reply)
            yield reply

    def weigh(self, reply: Reply, key: str = "", *, tested: bool = False) -> tuple[float, dict[str, float]] | None:
        """Return a reply's weight, by ``weighted_by_key`` or a given key, and its other numbers; None if it is bad.

        With `tested` the weight is of the samples that the node evaluated on.
        """
        key = key or self.weighted_by_key
        numbers = numbers_of(reply, key)
        weight = numbers.pop(key, math.nan)
        known = self.nodes.get(reply.node.node_id)
        most = known and ((tested and known.num_test_examples) or known.num_examples)
        if most:
            weight = min(weight, most)  # no node weighs more than it said in the hello
        if not 0 <= weight <= LARGEST:
            self.wire.refuse(reply, f"its metric {key!r} is {weight}, not in [0, {LARGEST:g}]")
            return None
        return weight, numbers

    def _most_weight(self) -> float:
        """Return the bound of a node's weight in a mean."""
        told = [node.num_examples for node in self.nodes.values() if node.num_examples]
        return _CLIPPED * median(told) if told and self.weighting == "clipped" else math.inf

    def _shortened(self, mean: Arrays, share: float) -> Arrays:
        """Go a part of the way from the model to the mean: late replies count less than their weight."""
        went = dict(mean)
        for name in rounded_names(self.wire.specs):
            x = self.round.model[name]
            went[name] = np.asarray(x + np.float32(share) * (mean[name] - x), x.dtype)
        return went

    def _give_back_rounding(self, mean: Arrays, references: dict[str, Weighted], *, late: bool = False) -> Arrays:
        """Add to the mean what the model is beyond the nodes' broadcasts: their rounding, and rounds since then."""
        if not self.wire.downlink.uses_references and not late:
            return mean
        total = sum(r.weight for r in references.values())
        given = dict(mean)
        for name in rounded_names(self.wire.specs):
            x = self.round.model[name]
            received = sum(r.reference.arrays[name] * np.float32(r.weight / total) for r in references.values())
            given[name] = np.asarray(mean[name] + (x - received), x.dtype)
        return self.parts.given_back(mean, given)

    def receive_evaluations(self, server_round: int, replies: Iterable[Reply]) -> MetricRecord | None:
        """Average the nodes' metrics; with a :attr:`meter`, those that it has are of all their data together."""
        accepted, pooled = [], self.meter() if self.meter else None
        for reply in replies:
            if (weighed := self.weigh(reply, tested=True)) is None:
                continue
            if pooled is not None and (sums := sums_of(reply)):
                try:
                    pooled.merge(sums, _EVALUATED * weighed[0])
                except ValueError as error:
                    self.wire.refuse(reply, str(error))
                    continue
            accepted.append(weighed)
            self.roster.note_held(reply)
        found: dict[str, Any] = weighted_means([(weight, numbers) for weight, numbers in accepted if weight > 0])
        if pooled is not None and pooled.examples:
            where = "" if "loss" in found else "train-"  # on the nodes' own test parts, or on what they train on
            scores = {f"{where}{key}": value for key, value in pooled.scores().items()}
            found |= {key: value for key, value in scores.items() if key in found or isinstance(value, list)}
        if self.kpi is not None:
            each = (numbers.get(self.kpi.name) for weight, numbers in accepted if weight > 0)
            found |= self.kpi.of_nodes([score for score in each if score is not None])
        return MetricRecord(found) if accepted else None
