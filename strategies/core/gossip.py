"""The server's side of decentralized training: rounds of relayed gossip, and a look at the nodes now and then.

A training message brings a node its neighbors' residuals, the reply carries its own, which the server hands on unopened
(:mod:`flsparse.strategies.core.relay`). The nodes' models, and the consensus model with them
(:mod:`flsparse.strategies.core.consensus`), are known from evaluation messages, which are counted apart.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from logging import INFO, WARNING
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from torch import nn

from flsparse import rng
from flsparse._flwr import log
from flsparse.codec import Codec, PayloadError, Reference, decode
from flsparse.configs import Fixed, settled
from flsparse.kpi import ACCURACY
from flsparse.nets.arrays import Arrays
from flsparse.ranges import within
from flsparse.strategies.core.consensus import consensus_error, mean_model, mean_sparsity, node_scores
from flsparse.strategies.core.exchange import Node, Reply
from flsparse.strategies.core.loop import RoundLoop
from flsparse.strategies.core.measures import numbers_of, weighted_means
from flsparse.strategies.core.part import OnDevice
from flsparse.strategies.core.relay import Relay
from flsparse.strategies.core.roster import sample, sample_size
from flsparse.topology import Topology, make_topology
from flsparse.wire.mail import NO_INITIAL, OK, Answer, Mail
from flsparse.wire.messages import to_numpy, to_record

_OWN = "residuals have a coding of their own"
_TABLES = 64 * 1024  # bytes, generously: a coder's overhead on a small model


@dataclass
class GossipMemory:
    """State of the server across rounds, without the relay's.

    Attributes
    ----------
    initial : dict[str, np.ndarray]
        The model that all copies started from.
    """

    initial: Arrays = field(default_factory=dict)


class Gossip(RoundLoop):
    """Base of the decentralized strategies on the server.

    Parameters
    ----------
    topology : Mapping or Topology
        Configuration of a graph (see :func:`flsparse.topology.make_topology`), or one that is built.
    num_nodes : int, optional
        Nodes of the graph, partition ids 0..num_nodes - 1; needed where ``topology`` is a configuration.
    gamma : float (default: 1.0)
        Consensus rate, above 0.
    decay_rounds : float (default: 0)
        Both rates fall as ``1 / sqrt(1 + (t - 1) / decay_rounds)``; 0 keeps them constant.
    evaluate_every : int (default: 1)
        Rounds between two looks at the nodes' models; the last round always has one.
    max_backlog : int (default: 16)
        Rounds that are kept for a node that is away, where all nodes take part in each; of rounds with a part of the
        nodes, more in inverse proportion. Away for longer, a node is given new copies.
    fraction_train : float (default: 1.0)
        Fraction of the nodes that take part in a round, in (0, 1]; holders of copies that one of them
        lacks join them.
    min_train_nodes : int (default: 1)
        Smallest number of nodes in a round, where that many are connected.
    min_available_nodes : int (default: 2)
        Nodes without which no round starts; the others may leave and come back.
    **wire
        Parameters of :class:`RoundLoop`, without ``values``, ``rounding`` and ``downlink_values``: residuals have their
        own coding. ``hello`` is True: neighbors are partition ids.
    """

    name = "gossip"
    previewed_as = "graph"
    measures = (
        *("links", "link_bytes", "graph_bytes", "resync_bytes", "resynchronized", "consensus_error"),
        *("node_sparsity", "mean_node_accuracy", "worst_node_accuracy"),
    )
    fixed: ClassVar[Fixed] = {
        "values": ("raw", _OWN),
        "rounding": ("nearest", _OWN),
        "downlink_values": ("raw", _OWN),
        "hello": (True, "neighbors are partition ids"),
    }

    def __init__(
        self,
        *,
        topology: Mapping[str, Any] | Topology,
        num_nodes: int | None = None,
        gamma: float = 1.0,
        decay_rounds: float = 0.0,
        evaluate_every: int = 1,
        max_backlog: int = 16,
        fraction_train: float = 1.0,
        min_train_nodes: int = 1,
        min_available_nodes: int = 2,
        **wire: object,
    ) -> None:
        super().__init__(**settled(wire, self.fixed))
        self.kpi = ACCURACY  # of the nodes' models
        if not isinstance(topology, Topology):
            if num_nodes is None:
                raise ValueError("num_nodes must be set: a topology's configuration does not say how many nodes it has")
            topology = make_topology(topology, num_nodes, self.seed)
        within("(0, inf)", gamma=gamma)
        within("[0, inf)", decay_rounds=decay_rounds)
        within("[1, inf)", evaluate_every=evaluate_every, max_backlog=max_backlog)
        within("[1, inf)", min_available_nodes=min_available_nodes)
        within("(0, 1]", fraction_train=fraction_train)
        self.topology = topology
        self.gamma, self.decay_rounds = gamma, decay_rounds
        self.evaluate_every = evaluate_every
        self.fraction_train, self.min_train_nodes = fraction_train, min_train_nodes
        self._at_least = max(1, min_train_nodes)
        self._min_available_nodes = min_available_nodes
        # a node that is not drawn is away, too; of fewer nodes a round, more rounds are as many payloads
        drawn = sample_size(topology.nodes, fraction_train, self._at_least)
        self.relay = Relay(topology, math.ceil(max_backlog * topology.nodes / drawn))
        self.wire.counts["resynchronized"] = 0
        self.memory: GossipMemory = GossipMemory()
        self._initial_id = ""
        self._names: list[str] = []  # of the model's parameters; empty: all floating arrays
        self._asked: dict[int, Node] = {}  # nodes of the round, by partition
        self._told: set[int] = set()  # nodes that got this round's mail and are in step

        for part in self.parts:
            if not isinstance(part, OnDevice) or part.part.reads_back:
                raise ValueError(
                    f"parts: {part.name!r} is for averaging methods: here no server averages, and a residual keeps "
                    "what was not sent"
                )

    def memories(self) -> list[tuple[str, Any]]:
        """Return the data classes that outlive a round: the relay's too."""
        return [*super().memories(), ("relay", self.relay.memory)]

    @property
    def min_available_nodes(self) -> int:
        """Nodes without which no round starts."""
        return self._min_available_nodes

    def bind(self, model: nn.Module) -> None:
        """Learn the parameters' names: buffers do not gossip."""
        super().bind(model)
        self._names = [name for name, _ in model.named_parameters()]

    def summary(self) -> None:
        """Log the configuration."""
        graph = self.topology
        edges = int(graph.adjacency.sum()) // 2
        log(INFO, "\t├──> Graph: %s, %d nodes, %d links, gap %.3g", graph.name, graph.nodes, edges, graph.gap)
        log(INFO, "\t└──> gamma %.3g, evaluation every %d rounds", self.gamma, self.evaluate_every)

    def open(self, initial_arrays: ArrayRecord) -> None:
        """Take the common initialization; a resumed run has its own."""
        self._set_initial(to_numpy(initial_arrays) if self._next_round == 1 else self.memory.initial)

    def _set_initial(self, arrays: Arrays) -> None:
        self.memory.initial, self._initial_id = arrays, Reference(arrays).id
        self.wire.describe(arrays)

    # -- a round ----------------------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address its mail to each node of the round, and ask it to train."""
        self._grid, self._arrays, self._asked, self._told = grid, arrays, {}, set()
        self.round_metrics["resync_bytes"] = 0
        self._config = ConfigRecord({**config, "server-round": server_round, "num-rounds": self._num_rounds})
        self.relay.open(server_round)
        return self._ask(server_round, self._sample(server_round))

    def _ask(self, server_round: int, nodes: list[Node]) -> list[Message]:
        """Address the nodes in step, and the holders of copies that the others need."""
        self._asked |= {node.partition: node for node in nodes}
        waiting = self._waiting(server_round)
        holders = [n for n in self._present() if n.partition not in self._asked] if waiting else []
        ready = [node for node in nodes if node.partition not in waiting]
        free = [node for node in holders if not self.relay.waits(node.partition, server_round)]
        wanted = self.relay.wanted(waiting, [node.partition for node in (*ready, *free)])
        ready += [node for node in free if node.partition in wanted]
        self._asked |= {node.partition: node for node in ready}
        return self._mails(server_round, ready, wanted)

    def _mails(
        self, server_round: int, nodes: list[Node], wanted: Mapping[int, list[int]], *, with_initial: bool = False
    ) -> list[Message]:
        mails = [(node, self.relay.mail(node.partition, server_round)) for node in nodes]
        self._told |= {node.partition for node, mail in mails if mail}
        return [
            self._message(node, mail, wanted.get(node.partition, []), MessageType.TRAIN, with_initial=with_initial)
            for node, mail in mails
            if mail
        ]

    def _waiting(self, server_round: int) -> list[int]:
        """Return the nodes of the round that others have to give copies first."""
        return [partition for partition in self._asked if self.relay.waits(partition, server_round)]

    def _present(self) -> list[Node]:
        return [node for node in self.roster.in_partition_order() if node.partition < self.topology.nodes]

    def _sample(self, server_round: int) -> list[Node]:
        generator = rng.stream(self.seed, server_round, -1, "sampling")
        return sample(self._present(), self.fraction_train, self._at_least, generator)

    def _message(
        self, node: Node, mail: Mail, wanted: list[int], message_type: str, *, with_initial: bool = False
    ) -> Message:
        """Return a mail as a message; the common initialization goes along only where a node asked for it."""
        if mail.starts:
            initial = Codec(values="fp32").encode(self.memory.initial) if with_initial else b""
            mail = replace(mail, initial_id=self._initial_id, initial=initial)
        self.round_metrics["resync_bytes"] += sum(len(copy) for copy in mail.copies.values())
        if mail.starts or mail.copies:
            mail = replace(mail, prunable=self.wire.prunable)
        mail = replace(mail, wanted=wanted)
        content = mail.to_content({"seed": self.seed, **self.asks(node, mail.round)})
        if message_type == MessageType.TRAIN:
            content["config"] = self._config
        return Message(content, node.node_id, message_type)

    def receive(self, server_round: int, replies: Iterable[Reply]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the residuals in, unopened; None without a quorum. The model is the last evaluation's."""
        rows: list[dict[str, float]] = []
        again = self._take_in(server_round, replies, rows)
        if len(rows) + len(again) < self.min_replies and self._waiting(server_round):
            # too few nodes are in step: all others are asked, which may hold copies, or lack them as well
            others = [node for node in self._present() if node.partition not in self._asked]
            messages = self._ask(server_round, others)
            again += self._take_in(server_round, self.exchange(self._grid, messages), rows)
        if self.relay.must_restart:
            log(WARNING, "Round %d: copies are lost; all nodes start again from the last known model", server_round)
            self._restart(server_round)
            rows, again = [], self._sample(server_round)
        again += [n for p, n in self._asked.items() if p not in self._told and self.relay.returns(p, server_round)]
        if again:
            messages = self._mails(server_round, again, {}, with_initial=True)
            self._hear(server_round, self.exchange(self._grid, messages), rows)
        if waiting := self._waiting(server_round):
            self.wire.problems.append(f"nodes {waiting} wait for copies of models, from nodes that hold them")
        self.relay.close(server_round)
        self.round_metrics |= {"replies": len(rows), "links": int(self.topology.adjacency.sum())}
        if len(rows) < self.min_replies:
            return None, None
        return self._arrays, MetricRecord(dict(weighted_means([(1.0, row) for row in rows])))

    def _take_in(self, server_round: int, replies: Iterable[Reply], rows: list[dict[str, float]]) -> list[Node]:
        """Take in answers; return the nodes to mail again: they lack the initialization, or got a misfit."""
        answers = self._hear(server_round, replies, rows)
        freed = self.relay.settle()
        return [node for node, answer in answers if answer.status == NO_INITIAL or node.partition in freed]

    def _restart(self, server_round: int) -> None:
        self._set_initial(to_numpy(self._arrays))
        self.relay.restart(server_round - 1)
        self.relay.open(server_round)

    def _hear(
        self, server_round: int, replies: Iterable[Reply], rows: list[dict[str, float]], *, training: bool = True
    ) -> list[tuple[Node, Answer]]:
        """Take in the valid answers; add the metrics of residuals that count to ``rows``."""
        answers = []
        carried, parameters = 0, sum(array.size for array in self._parameters.values())
        for reply in replies:
            node = reply.node
            try:
                answer = Answer.of(reply.content)
                if training:
                    self._check_sizes(answer)
                counts = self.relay.hear(node.partition, server_round, answer, training=training)
            except ValueError as error:
                self.wire.refuse(reply, f"its answer was refused: {error}")
                continue
            answers.append((node, answer))
            if answer.status not in (OK, NO_INITIAL):
                self.wire.counts["resynchronized"] += 1
                self._told.discard(node.partition)
                log(WARNING, "Round %d: node %d is out of step", server_round, node.node_id)
            if counts:
                rows.append(numbers_of(reply))
                degree = len(self.topology.neighbors(node.partition))
                carried += degree * len(answer.payload)
                rows[-1]["bits-per-parameter"] = 8 * len(answer.payload) / parameters
        if training:
            self.round_metrics["graph_bytes"] = self.round_metrics.get("graph_bytes", 0) + carried
        return answers

    def _check_sizes(self, answer: Answer) -> None:
        """Refuse an answer larger than this model allows: nothing of it is to be kept or handed on."""
        most = _TABLES + 2 * sum(array.nbytes for array in self.memory.initial.values())
        if len(answer.payload) > most:
            raise ValueError(f"its residual has {len(answer.payload)} bytes, of this model {most} at most")
        # a copy holds the parameters, in float32; running statistics, which it does not, look the same from here
        most = 4 * sum(array.size for array in self.memory.initial.values() if array.dtype.kind == "f")
        for copy in answer.copies.values():
            if len(copy) > most:
                raise ValueError(f"a copy that it hands over has {len(copy)} bytes, of this model {most} at most")

    @property
    def _parameters(self) -> Arrays:
        """The gossiping arrays of the common initialization."""
        names = self._names or [name for name, array in self.memory.initial.items() if array.dtype.kind == "f"]
        return {name: self.memory.initial[name] for name in names}

    # -- a look at the nodes ----------------------------------------------------------------------------------------

    def conclude(self, grid: Grid, server_round: int, arrays: ArrayRecord, timeout_s: float) -> ArrayRecord:
        """Every ``evaluate_every`` rounds, fetch the nodes' models and return their mean."""
        if server_round % self.evaluate_every and server_round != self._num_rounds:
            return arrays
        mails = [(node, self.relay.mail(node.partition, server_round + 1)) for node in self._present()]
        messages = [self._message(node, mail, [], MessageType.EVALUATE) for node, mail in mails if mail]
        replies = self.wire.exchange(
            grid, messages, self.nodes, lambda _: {}, server_round, timeout_s, uplink="evaluation"
        )
        models = self._models(server_round, self._hear(server_round, replies, [], training=False))
        if not models:
            return arrays
        self.node_models, mean = models, mean_model(models)
        self.round_metrics |= self._metrics(server_round, models, mean)
        return to_record(mean)

    def _models(self, server_round: int, answers: list[tuple[Node, Answer]]) -> dict[int, Arrays]:
        models = {}
        for node, answer in answers:
            if answer.status != OK:
                continue
            try:
                model = decode(answer.payload, like=self.memory.initial)
                if (fault := self.wire.cannot_send(model)) is not None:
                    raise PayloadError(f"it {fault}")
                models[node.partition] = model
            except PayloadError as error:
                self.wire.drop(node, f"its model was refused: {error}", "rejected_payloads", server_round)
        return models

    def _metrics(self, server_round: int, models: Mapping[int, Arrays], mean: Arrays) -> dict[str, Any]:
        def evaluate(arrays: Arrays) -> MetricRecord | None:
            return self._evaluate_fn(server_round, to_record(arrays)) if self._evaluate_fn else None

        return {
            "consensus_error": consensus_error(models, mean, list(self._parameters)),
            "node_sparsity": mean_sparsity(models, self.wire.prunable),
            "evaluation_bytes": self.ledger.of_round("evaluation", server_round).payload_bytes,
            "link_bytes": {f"{i}-{j}": count for (i, j), count in sorted(self.relay.memory.link_bytes.items())},
            **node_scores(models, evaluate, self.kpi),
        }

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send nothing: see :meth:`conclude`."""
        return []

    def receive_evaluations(self, server_round: int, replies: Iterable[Reply]) -> MetricRecord | None:
        """Return nothing: see :meth:`conclude`."""
        return None

    def nodes_are_new(self) -> None:
        """Let all start again: nobody has copies."""
        self.relay.lose_all()
