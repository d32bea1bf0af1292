"""The server's round loop: greet, send, receive, aggregate, evaluate, report.

Subclasses define a round in Flower's own four methods; the loop, the hello, the quorum, the deadline and the report
are here, the packing of messages is in :mod:`flsparse.strategies.core.courier`.
"""

import math
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import INFO
from typing import Any, ClassVar, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from flsparse._flwr import log
from flsparse.clients.core.method import LocalMethod, written
from flsparse.clients.core.part import Part
from flsparse.codec import Codec, Layer
from flsparse.configs import Fixed
from flsparse.metering.ledger import Ledger
from flsparse.nets.arrays import Arrays, state_arrays
from flsparse.nets.exact import exact_buffers
from flsparse.ranges import within
from flsparse.strategies.core.chain import Chain
from flsparse.strategies.core.courier import Wire
from flsparse.strategies.core.downlink import Broadcast, Downlink
from flsparse.strategies.core.exchange import Exchange, Node, Reply
from flsparse.strategies.core.loop_memory import LoopMemory
from flsparse.strategies.core.measures import SERVERS_OWN, RoundReport, from_nodes, in_a_line, measures_of, sizes_of
from flsparse.strategies.core.memory import lacking, restore_memories, saved_memories
from flsparse.strategies.core.pace import InFlight
from flsparse.strategies.core.part import RoundPart
from flsparse.strategies.core.roster import Roster, RoundFailed, no_quorum
from flsparse.wire.messages import BY_NODE, Scalar, to_numpy, to_record

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class RoundLoop(Strategy):
    """A Flower strategy over the packed wire; base of all of ours.

    Parameters
    ----------
    values : {"raw", "fp32", "fp16", "int8", "int4"} (default: "int4")
        How nodes code their updates; "raw" is dense, 4 bytes a parameter.
    rounding : {"nearest", "stochastic"} (default: "nearest")
        How nodes round; stochastic is unbiased and has about twice the squared error.
    downlink_values, downlink_density : str (default: "int8"), float or None (default: None)
        How the broadcast is coded, same choices; fraction of the weights that it changes (:class:`Downlink`).
    prunable : list[str], optional
        Patterns (``fnmatch``) of the arrays that may be pruned; default: floating ones of two or more dimensions.
    exact : Sequence[str]
        Patterns of arrays that travel bit for bit, beside the model's buffers (:mod:`flsparse.nets.exact`).
    min_replies : int (default: 1)
        Valid replies without which a round fails.
    round_timeout_s : float, optional
        Deadline of each exchange of a round in seconds; the shorter of it and the ``timeout`` of :meth:`start` holds.
    max_reference_bytes : int (default: 1 GiB)
        Memory for the broadcasts that the server keeps, to send deltas against, in bytes.
    hello : bool (default: False)
        Ask each node for its partition id and reference first: our device application answers, our mod alone does not.
    seed : int (default: 0)
        Seed of sampling and of stochastic rounding.
    parts : Sequence[Part or RoundPart]
        Parts added to the method, of the device, such as ``Clip(max_norm=1)``, or of the server.

    Attributes
    ----------
    memory : object
        Data class of the strategy's own state across rounds, saved by its fields; None: nothing.
    """

    name = "base"
    previewed_as: ClassVar[str] = "exchange"  # or "graph", "cut", "nothing": view of a dry run
    central: ClassVar[bool] = True  # there is one model, which the server can evaluate
    measures: ClassVar[tuple[str, ...]] = ()  # metrics that the server alone reports; its parts have their own
    memory: Any = None
    by_node: bool = False  # nodes measure models on their test parts
    fixed: ClassVar[Fixed] = {}  # arguments of the base class, and parts, that a method does not leave open
    why_sync: ClassVar[str] = "whose rounds build on each other"  # why no late reply can join one; "": it can
    min_train_nodes: int = 1  # nodes asked in a round, where that many are connected

    def __init__(
        self,
        *,
        values: str = "int4",
        rounding: str = "nearest",
        downlink_values: str = "int8",
        downlink_density: float | None = None,
        prunable: list[str] | None = None,
        exact: Sequence[str] = (),
        min_replies: int = 1,
        round_timeout_s: float | None = None,
        max_reference_bytes: int = 1024**3,
        hello: bool = False,
        seed: int = 0,
        parts: Sequence[Part | RoundPart] = (),
    ) -> None:
        within("[1, inf)", min_replies=min_replies)
        within("(0, inf)", round_timeout_s=round_timeout_s)
        downlink = Downlink(Codec(values=downlink_values), max_reference_bytes, downlink_density)
        self.wire = Wire(values, rounding, downlink, prunable, exact, seed)
        self.min_replies = min_replies
        self.round_timeout_s = round_timeout_s
        self.hello = hello
        self.seed = seed
        self.roster = Roster(hello)
        self.callbacks: list[Callable[[RoundReport], None]] = []
        self.node_models: dict[int, dict[str, np.ndarray]] = {}  # of methods without one model, by partition id
        self.round_metrics: dict[str, Any] = {}
        self.parts = Chain(parts, hello=hello, fixed=self.fixed)
        self._first_round = self._next_round = self._num_rounds = 1
        self._evaluate_fn: EvaluateFn | None = None
        self._exchange_s = math.inf
        self.in_flight: InFlight | None = None

    @property
    def ledger(self) -> Ledger:
        """Bytes of every message so far."""
        return self.wire.ledger

    # -- hooks of a subclass, in addition to Flower's four methods -------------------------------------------------

    @property
    def asked_nodes(self) -> int:
        """Nodes that a round would ask if none were busy."""
        return len(self.nodes)

    @property
    @abstractmethod
    def min_available_nodes(self) -> int:
        """Nodes without which no round starts."""

    def method(self, server_round: int, node: Node | None = None) -> LocalMethod | None:
        """Return the local method that a node is to run in a round; None: the node's app decides.

        Without a node, only its layers and names count; they are the same for all nodes and rounds.
        """
        return None

    @abstractmethod
    def receive(self, server_round: int, replies: Iterable[Reply]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the round's updates as they come; return the model, None without a quorum, and the metrics."""

    @abstractmethod
    def receive_evaluations(self, server_round: int, replies: Iterable[Reply]) -> MetricRecord | None:
        """Aggregate the nodes' metrics of the model; None without any."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Flower's name for :meth:`receive`; the loop hands replies over that know their node and their broadcast."""
        return self.receive(server_round, cast("Iterable[Reply]", replies))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Flower's name for :meth:`receive_evaluations`."""
        return self.receive_evaluations(server_round, cast("Iterable[Reply]", replies))

    def asks(self, node: Node, server_round: int) -> Mapping[str, Scalar]:
        """Return the entries of a message's record for a node: the local method and its parts, what to measure."""
        method = self.method(server_round, node)
        measured = {BY_NODE: True} if self.by_node else {}
        return {**({} if method is None else written(method)), **self.parts.asks(node), **measured}

    def preview(self, arrays: Arrays, stream: np.random.Generator) -> tuple[Arrays, Arrays]:
        """Return the broadcast of round 1, and one as it will be in the middle of a run."""
        self.wire.describe(arrays)
        first = to_numpy(self.parts.joined(to_record(arrays)))
        return first, self.parts.preview(arrays, self.wire.prunable, stream)

    def preview_update(self, trained: Arrays, received: Arrays) -> Arrays:
        """Return the arrays that a node will send for a trained model."""
        return self.parts.preview_update(trained, received)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Turn a plain model into the one the nodes train, in place: the arrays to start from are its state."""
        self.bind(model)
        method = self.method(1)
        prepared = model if method is None else method.prepare(model)
        self.wire.downlink.initial = state_arrays(prepared)
        return prepared

    def bind(self, model: nn.Module) -> None:
        """Read the structure of a plain model: the names of its parameters and buffers."""
        self.wire.buffers = exact_buffers(model)
        self.parts.bind(model)

    def open(self, initial_arrays: ArrayRecord) -> None:
        """Run before the first round; for subclasses."""

    def nodes_are_new(self) -> None:
        """Note that node state is lost: the run was resumed as a new run; for subclasses."""
        if self.in_flight is not None:
            self.in_flight.close()

    def conclude(self, grid: Grid, server_round: int, arrays: ArrayRecord, timeout_s: float) -> ArrayRecord:
        """Return the model that a round ends with, after further exchanges about it; here, the aggregated one."""
        return arrays

    # -- the loop ---------------------------------------------------------------------------------------------------

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Run the rounds; parameters and result are those of Flower's ``Strategy.start``.

        After :meth:`load_state_dict` it goes on with the round after the saved one.

        Raises
        ------
        RoundFailed
            A round had fewer than ``min_replies`` valid replies.
        ValueError
            The strategy has already run as many rounds.
        """
        if self._first_round < self._next_round > num_rounds:
            raise ValueError(
                f"this strategy has run {self._next_round - 1} rounds already: make a new one to train anew, or ask "
                f"for more than num_rounds={num_rounds} to go on"
            )
        train_config, evaluate_config = train_config or ConfigRecord(), evaluate_config or ConfigRecord()
        self._num_rounds, self._evaluate_fn = num_rounds, evaluate_fn
        self._exchange_s = min(timeout, self.round_timeout_s or timeout)
        if self.wire.clock is not None:
            self.wire.clock.timeout_s = self.round_timeout_s or math.inf
        self.open(initial_arrays)
        result = Result()
        if (fault := self.wire.cannot_send(to_numpy(initial_arrays))) is not None:
            raise ValueError(f"the model to start from {fault}")
        arrays = result.arrays = initial_arrays
        log(INFO, "Starting %s:", type(self).__name__)
        self.summary()
        if evaluate_fn and self._next_round == 1 and (metrics := evaluate_fn(0, arrays)) is not None:
            result.evaluate_metrics_serverapp[0] = metrics

        for server_round in range(self._next_round, num_rounds + 1):
            started = time.perf_counter()
            self.round_metrics, self.wire.problems = {}, []
            clock = self.wire.clock
            now_s = clock.now_s if clock is not None else 0.0
            self.greet(grid, server_round, timeout)
            if clock is not None and server_round == self._first_round > 1:
                clock.now_s = now_s  # a run that goes on has greeted them already
            flying = set() if self.in_flight is None else self.in_flight.references
            self.wire.downlink.keep({node.held for node in self.nodes.values()} | flying)
            arrays, trained = self._train(grid, server_round, arrays, train_config)
            evaluated = self._evaluate(grid, server_round, arrays, evaluate_config)
            self._next_round = server_round + 1
            central = evaluate_fn(server_round, arrays) if evaluate_fn else None

            result.arrays = arrays
            for kept, metrics in (
                (result.train_metrics_clientapp, trained),
                (result.evaluate_metrics_clientapp, evaluated),
                (result.evaluate_metrics_serverapp, central),
            ):
                if metrics is not None:
                    kept[server_round] = metrics
            self._report(server_round, arrays, trained, evaluated, central, time.perf_counter() - started)
        return result

    def _train(
        self, grid: Grid, server_round: int, arrays: ArrayRecord, config: ConfigRecord
    ) -> tuple[ArrayRecord, MetricRecord | None]:
        messages = self.configure_train(server_round, arrays, config, grid)
        exchange = self.exchange(grid, messages)
        replies: Iterable[Reply] = exchange
        if self.in_flight is not None:
            is_last = server_round == self._num_rounds
            asked, note = self.asked_nodes, self.roster.note_held
            replies, numbers = self.in_flight.take(exchange, server_round, asked, note, is_last=is_last)
            self.round_metrics |= numbers
        aggregated, metrics = self.aggregate_train(server_round, cast("Iterable[Message]", replies))
        if aggregated is None and exchange.asked == 0 and (replies is exchange or not replies):
            return arrays, metrics  # nobody was to train: the model is evaluated alone
        if aggregated is None:
            raise no_quorum(server_round, self.min_replies, self.wire.problems)
        if (fault := self.wire.cannot_send(to_numpy(aggregated))) is not None:
            raise RoundFailed(f"the model after round {server_round} {fault}; that of the round before is kept")
        return self.conclude(grid, server_round, aggregated, self._exchange_s), metrics

    def _evaluate(
        self, grid: Grid, server_round: int, arrays: ArrayRecord, config: ConfigRecord
    ) -> MetricRecord | None:
        messages = self.configure_evaluate(server_round, arrays, config, grid)
        return self.aggregate_evaluate(server_round, cast("Iterable[Message]", self.exchange(grid, messages)))

    def _report(
        self,
        server_round: int,
        arrays: ArrayRecord,
        trained: MetricRecord | None,
        evaluated: MetricRecord | None,
        central: MetricRecord | None,
        seconds: float,
    ) -> None:
        own = SERVERS_OWN | measures_of(RoundLoop) | measures_of(RoundPart)
        metrics = {
            **from_nodes("", trained, own),
            **from_nodes("evaluate_", evaluated, own),
            **from_nodes("", central, ()),
            **sizes_of(self.ledger, server_round),
            **self.round_metrics,
            "round_seconds": seconds,
            **self.wire.counts,
        }
        rows = self.wire.table.take(server_round, self.nodes)
        report = RoundReport(server_round, self._num_rounds, arrays, metrics, rows)
        for callback in self.callbacks or [lambda report: log(INFO, in_a_line(report))]:
            callback(report)

    @property
    def nodes(self) -> dict[int, Node]:
        """Known nodes, by node id."""
        return self.roster.nodes

    def greet(self, grid: Grid, server_round: int, timeout_s: float) -> None:
        """Wait for the nodes that a round needs and greet the new ones (see :meth:`Roster.greet`)."""
        needed, method = max(1, self.min_available_nodes), self.method(server_round)
        wanted, name = max(needed, self.min_train_nodes), None if method is None else method.name
        self.roster.greet(grid, self.wire, server_round, timeout_s, needed=needed, wanted=wanted, method=name)

    # -- messages ---------------------------------------------------------------------------------------------------

    def exchange(
        self, grid: Grid, messages: Iterable[Message], broadcasts: dict[int, Broadcast] | None = None
    ) -> Exchange:
        """Send messages of this round, with the broadcasts of an earlier exchange where they continue it."""
        server_round = self._next_round
        return self.wire.exchange(
            grid,
            messages,
            self.nodes,
            lambda node: self.asks(node, server_round),
            server_round,
            self._exchange_s,
            broadcasts=broadcasts,
        )

    def update(self, reply: Reply, mirror: Mapping[str, np.ndarray] | None = None) -> list[Layer] | None:
        """Decode one training reply (see :meth:`Wire.update`) and note its node's reference."""
        layers = self.wire.update(reply, mirror)
        if layers is not None:
            self.roster.note_held(reply)
        return layers

    # -- state ------------------------------------------------------------------------------------------------------

    def memories(self) -> list[tuple[str, Any]]:
        """Return the data classes that outlive a round, of the strategy and its parts, with their keys."""
        owners = [("", self.memory), *((part.saved_as, part.memory) for part in self.parts)]
        flying = [] if self.in_flight is None else [("in_flight", self.in_flight.memory)]
        return [*((key, memory) for key, memory in owners if memory is not None), *flying]

    def _loop_memory(self) -> LoopMemory:
        held = {} if self.hello else {i: node.held for i, node in self.nodes.items()}
        references = self.wire.downlink.state_dict()
        return LoopMemory(self._next_round, self.ledger, self.wire.counts, references, held)

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the model that the next round depends on: numbers, strings and arrays, nested."""
        if self.in_flight is not None:
            self.in_flight.pack(self.wire.clock)
        return saved_memories([("", self._loop_memory()), *self.memories()])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of :meth:`state_dict`; a hello asks the nodes for their references again.

        Raises
        ------
        ValueError
            The state lacks keys, which are named; nothing is restored then.
        """
        loop = self._loop_memory()
        memories = [("", loop), *self.memories()]
        if absent := lacking(memories, state):
            raise ValueError(
                f"a saved state of {self.name!r} lacks {', '.join(absent)}: another version or other parts wrote it; "
                "start a new run"
            )
        restore_memories(memories, state)
        if self.in_flight is not None:
            self.in_flight.unpack(self.wire.clock)
        self._first_round = self._next_round = loop.next_round
        self.wire.ledger, self.wire.counts = loop.ledger, Counter(loop.counts)
        self.wire.restore(loop.references)
        self.roster.nodes = {i: Node(i, 0, held) for i, held in loop.held.items()}
