"""The server's round loop: greet, push, pull replies as they arrive, check each, aggregate, evaluate, report.

Subclasses say what a round is made of, in Flower's own four methods; the loop, the byte ledger, the deadline and the
quorum, the packing of messages and the failures are here, once.
"""

import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from flsparse._flwr import log, wire_size
from flsparse.clients.device import asked_method
from flsparse.clients.protocol import (
    MISSING_REFERENCE,
    RECORD,
    Blueprint,
    arrayrecord_key,
    pack,
    packed_payload,
    record_of,
    to_numpy,
)
from flsparse.codec import ArraySpec, Codec, Layer, PayloadError, Reference, decode_layers, specs_of
from flsparse.metering.ledger import Ledger
from flsparse.sparsity import default_prunable, match_prunable
from flsparse.strategies.downlink import Broadcast, Downlink

Arrays = dict[str, np.ndarray]
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
_HELLO_TIMEOUT_S = 120.0


class RoundFailed(RuntimeError):
    """A round had too few valid replies."""


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
    """

    node_id: int
    partition: int
    held: str = ""
    num_examples: int = 0


@dataclass(frozen=True)
class RoundReport:
    """What a callback gets after every round.

    Attributes
    ----------
    server_round, num_rounds : int
        This round, from 1, and the last one.
    arrays : ArrayRecord
        The global model after the round.
    metrics : dict[str, Any]
        Everything that was measured: plain numbers, by name, and dicts of numbers by layer.
    """

    server_round: int
    num_rounds: int
    arrays: ArrayRecord
    metrics: dict[str, Any]


@dataclass
class _Exchange:
    """What is under way in one exchange of messages."""

    sent: dict[str, Node] = field(default_factory=dict)  # by message id
    pending: set[str] = field(default_factory=set)  # message ids
    dense: dict[int, Message] = field(default_factory=dict)  # by node id, as the subclass made it
    broadcasts: dict[int, Broadcast] = field(default_factory=dict)  # by node id
    retried: set[int] = field(default_factory=set)  # node ids


class RoundLoop(Strategy):
    """A Flower strategy over the packed wire; base of all of ours.

    Parameters
    ----------
    values : {"raw", "fp32", "fp16", "int8", "int4"} (default: "int4")
        How nodes code their updates; "raw" is dense, 4 bytes a parameter.
    rounding : {"nearest", "stochastic"} (default: "nearest")
        How nodes round; stochastic is unbiased and has about twice the squared error.
    downlink_values : str (default: "int8")
        How the broadcast is coded, same choices.
    prunable : list[str], optional
        Patterns (as in ``fnmatch``) of the arrays that may be pruned; default: floating arrays of two or more
        dimensions.
    min_replies : int (default: 1)
        Valid replies without which a round fails.
    round_timeout_s : float, optional
        Deadline of a round in seconds, beside the ``timeout`` of :meth:`start`; the nearer one holds.
    max_references : int (default: 16)
        Broadcasts the server keeps, to send deltas against.
    hello : bool (default: False)
        Ask each node for its partition id and what it holds before it takes part. Our device application answers; an
        app that has only our mod does not, and is sampled by node id.
    seed : int (default: 0)
        Seed of sampling and of stochastic rounding.
    """

    name = "base"

    def __init__(
        self,
        *,
        values: str = "int4",
        rounding: str = "nearest",
        downlink_values: str = "int8",
        prunable: list[str] | None = None,
        min_replies: int = 1,
        round_timeout_s: float | None = None,
        max_references: int = 16,
        hello: bool = False,
        seed: int = 0,
    ) -> None:
        Codec(values=values, rounding=rounding)  # refuses what does not exist, before anything starts
        self.values, self.rounding = values, rounding
        self.downlink = Downlink(Codec(values=downlink_values), max_references)
        self.prunable_patterns = prunable
        self.min_replies = min_replies
        self.round_timeout_s = round_timeout_s
        self.hello = hello
        self.seed = seed
        self.ledger = Ledger()
        self.nodes: dict[int, Node] = {}
        self.callbacks: list[Callable[[RoundReport], None]] = []
        self.counts: Counter[str] = Counter()  # failures, rejected_payloads, ... over the run
        self.round_metrics: dict[str, Any] = {}
        self.prunable: list[str] = []
        self._blueprint = Blueprint({}, [])
        self._exchange = _Exchange()
        self._model_record: ArrayRecord | None = None
        self._mute: set[int] = set()
        self._num_rounds = 1
        self._next_round = 1
        self._problems: list[str] = []

    # -- what a subclass is made of, beside Flower's four methods --------------------------------------------------

    @property
    @abstractmethod
    def min_available_nodes(self) -> int:
        """Nodes without which no round starts."""

    def method(self, node: Node, server_round: int) -> dict[str, int | float | str | bool]:
        """Return the local method a node is to run, as ``{"method": name, "method.<key>": value}``."""
        return {}

    def prepare(self, model: nn.Module) -> nn.Module:
        """Turn a plain model into the one the nodes train, in place: the arrays to start from are its state."""
        return asked_method(ConfigRecord(self.method(Node(0, 0), 1))).prepare(model)

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
        """
        train_config = ConfigRecord() if train_config is None else train_config
        evaluate_config = ConfigRecord() if evaluate_config is None else evaluate_config
        self._num_rounds = num_rounds
        arrays, result = initial_arrays, Result()
        result.arrays = arrays
        log(INFO, "Starting %s:", type(self).__name__)
        self.summary()
        if evaluate_fn and self._next_round == 1 and (metrics := evaluate_fn(0, arrays)) is not None:
            result.evaluate_metrics_serverapp[0] = metrics

        for server_round in range(self._next_round, num_rounds + 1):
            started = time.perf_counter()
            self.round_metrics, self._problems = {}, []
            deadline = min(timeout, self.round_timeout_s or timeout)
            self.greet(grid, server_round, timeout)

            messages = self.configure_train(server_round, arrays, train_config, grid)
            aggregated, train_metrics = self.aggregate_train(server_round, self.exchange(grid, messages, deadline))
            if aggregated is None:
                raise RoundFailed(self._why_failed(server_round))
            arrays = result.arrays = aggregated
            if train_metrics is not None:
                result.train_metrics_clientapp[server_round] = train_metrics

            messages = self.configure_evaluate(server_round, arrays, evaluate_config, grid)
            evaluated = self.aggregate_evaluate(server_round, self.exchange(grid, messages, deadline))
            if evaluated is not None:
                result.evaluate_metrics_clientapp[server_round] = evaluated
            self._next_round = server_round + 1
            central = evaluate_fn(server_round, arrays) if evaluate_fn else None
            if central is not None:
                result.evaluate_metrics_serverapp[server_round] = central
            self._report(server_round, arrays, train_metrics, evaluated, central, time.perf_counter() - started)
        return result

    def _report(
        self,
        server_round: int,
        arrays: ArrayRecord,
        train: MetricRecord | None,
        evaluated: MetricRecord | None,
        central: MetricRecord | None,
        seconds: float,
    ) -> None:
        metrics: dict[str, Any] = {}
        for prefix, record in (("", train), ("evaluate-", evaluated), ("", central)):
            metrics |= {f"{prefix}{key}".replace("-", "_"): value for key, value in (record or {}).items()}
        for direction in ("uplink", "downlink"):
            traffic = self.ledger.of_round(direction, server_round)
            metrics |= {
                f"{direction}_bytes": traffic.payload_bytes,
                f"{direction}_wire_bytes": traffic.wire_bytes,
                f"{direction}_ratio": traffic.ratio,
            }
        metrics |= self.round_metrics | {"round_seconds": seconds} | dict(self.counts)
        report = RoundReport(server_round, self._num_rounds, arrays, metrics)
        for callback in self.callbacks:
            callback(report)

    def _why_failed(self, server_round: int) -> str:
        reasons = "; ".join(self._problems[:3]) or "no reply came before the deadline"
        return f"round {server_round} had fewer than min_replies={self.min_replies} valid replies: {reasons}"

    # -- nodes ------------------------------------------------------------------------------------------------------

    def greet(self, grid: Grid, server_round: int, timeout_s: float) -> None:
        """Wait for the nodes that a round needs and learn who they are; nodes that joined late are greeted too.

        Raises
        ------
        RoundFailed
            Too few nodes are connected after ``timeout_s`` seconds, or none answered the hello.
        """
        needed, started = max(1, self.min_available_nodes), time.monotonic()
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
        self._mute &= here  # a node that did not answer is asked again only when it has been away
        new = [i for i in present if i not in self.nodes and i not in self._mute]
        self._say_hello(grid, new, server_round)
        if not self.nodes:
            raise RoundFailed(f"none of {len(present)} nodes answered the hello: {'; '.join(self._problems[:3])}")

    def _say_hello(self, grid: Grid, new: list[int], server_round: int) -> None:
        messages = [Message(RecordDict({RECORD: ConfigRecord()}), i, MessageType.QUERY) for i in new]
        self._exchange = _Exchange()
        for node_id, message in zip(new, messages, strict=True):
            self._push(grid, message, Node(node_id, -1), server_round)
        self._mute |= set(new)
        for reply in self._pull(grid, time.monotonic() + _HELLO_TIMEOUT_S, server_round):
            if reply.has_error():
                self._drop(self.sender(reply).node_id, f"no hello: {reply.error.reason}", "failures")
            else:
                self._welcome(self.sender(reply).node_id, record_of(reply.content))

    def _welcome(self, node_id: int, said: ConfigRecord) -> None:
        partition = said.get("partition-id")
        if not isinstance(partition, int) or partition < 0:
            self._drop(node_id, f"says its partition id is {partition!r}", "failures")
        elif partition in (taken := {n.partition: n.node_id for n in self.nodes.values()}):
            self._drop(node_id, f"says it is partition {partition}, as does node {taken[partition]}", "failures")
        else:
            examples = said.get("num-examples", 0)
            self._mute.discard(node_id)
            self.nodes[node_id] = Node(
                node_id, partition, str(said.get("held", "")), examples if isinstance(examples, int) else 0
            )

    def in_partition_order(self) -> list[Node]:
        """Return the known nodes by partition id."""
        return sorted(self.nodes.values(), key=lambda node: node.partition)

    # -- messages ---------------------------------------------------------------------------------------------------

    def exchange(self, grid: Grid, messages: Iterable[Message], timeout_s: float) -> Iterator[Message]:
        """Send dense messages packed, and yield the replies in partition order, each as soon as its turn has come.

        A reply that an earlier node holds up waits (coded, so it is small) until that one is in or the deadline has
        passed. Replies with an error are yielded too.
        """
        self._exchange = _Exchange()
        deadline = time.monotonic() + timeout_s
        server_round = self._next_round
        order: list[int] = []
        for message in messages:
            node = self.nodes.get(message.metadata.dst_node_id) or Node(message.metadata.dst_node_id, -1)
            order.append(node.node_id)
            self._push(grid, self._packed(message, node, server_round), node, server_round)
        waiting: dict[int, Message] = {}
        turn = 0
        for reply in self._pull(grid, deadline, server_round):
            waiting[self.sender(reply).node_id] = reply
            while turn < len(order) and order[turn] in waiting:
                yield waiting.pop(order[turn])
                turn += 1
        for message_id in self._exchange.pending:
            self._drop(self._exchange.sent[message_id].node_id, f"did not reply within {timeout_s:g} s", "failures")
        yield from (waiting[node_id] for node_id in order[turn:] if node_id in waiting)

    def _push(self, grid: Grid, message: Message, node: Node, server_round: int) -> None:
        payload = packed_payload(message.content)
        self.ledger.count(
            "downlink",
            server_round,
            payload_bytes=len(payload or b""),
            wire_bytes=wire_size(message),
            dense_bytes=self._blueprint.nbytes if payload else 0,
        )
        ids = [message_id for message_id in grid.push_messages([message]) if message_id]
        if ids:
            self._exchange.sent[ids[0]] = node
            self._exchange.pending.add(ids[0])
        else:
            self._drop(node.node_id, "the message could not be delivered", "failures")

    def _pull(self, grid: Grid, deadline: float, server_round: int) -> Iterator[Message]:
        """Yield each reply as it comes; a node that lacks its reference is sent the full model, once."""
        pause = 0.02
        while self._exchange.pending and time.monotonic() < deadline:
            replies = list(grid.pull_messages(list(self._exchange.pending)))
            pause = 0.02 if replies else min(1.0, pause * 1.5)
            for reply in replies:
                if (message_id := reply.metadata.reply_to_message_id) not in self._exchange.pending:
                    self._drop(reply.metadata.src_node_id, "sent a reply nobody waited for", "rejected_payloads")
                    continue
                self._exchange.pending.discard(message_id)
                node = self.sender(reply)
                payload = packed_payload(reply.content) if reply.has_content() else None
                self.ledger.count(
                    "uplink",
                    server_round,
                    payload_bytes=len(payload or b""),
                    wire_bytes=wire_size(reply),
                    dense_bytes=self._blueprint.nbytes if payload else 0,
                )
                if reply.has_content() and record_of(reply.content).get("status") == MISSING_REFERENCE:
                    self._send_full(grid, node, server_round)
                    continue
                yield reply
            if not replies:
                time.sleep(pause)

    def sender(self, reply: Message) -> Node:
        """Return the node a reply of this exchange comes from: an error that Flower made up names another."""
        return self._exchange.sent[reply.metadata.reply_to_message_id]

    def _send_full(self, grid: Grid, node: Node, server_round: int) -> None:
        if node.node_id in self._exchange.retried or node.node_id not in self._exchange.dense:
            self._drop(node.node_id, "lacks its reference also after the full model was sent", "failures")
            return
        self._exchange.retried.add(node.node_id)
        self.counts["resent_models"] += 1
        without = replace(node, held="")
        message = self._packed(self._exchange.dense[node.node_id], without, server_round)
        self._push(grid, message, without, server_round)

    def _packed(self, message: Message, node: Node, server_round: int) -> Message:
        """Return the message with its dense arrays packed, coded for what the node holds."""
        content = message.content
        if not content.array_records or packed_payload(content) is not None:
            return message
        key = arrayrecord_key(content)
        self._set_model(content.array_records[key])
        broadcast = self.downlink.to(node.held)
        record = ConfigRecord(
            {
                "reference": broadcast.coded_against,
                "hold": self.downlink.uses_references,
                "values": self.values,
                "rounding": self.rounding,
                "seed": self.seed,
                "round": server_round,
                "node": node.partition,
                **self.method(node, server_round),
            }
        )
        if not broadcast.coded_against:
            record["blueprint"] = self._blueprint.to_bytes()
        self._exchange.dense[node.node_id] = message
        self._exchange.broadcasts[node.node_id] = broadcast
        others = {name: value for name, value in content.items() if name != key}
        packed = RecordDict({key: pack(broadcast.payload), **others, RECORD: record})
        return Message(packed, node.node_id, message.metadata.message_type, ttl=message.metadata.ttl)

    def _set_model(self, record: ArrayRecord) -> None:
        if record is self._model_record:
            return
        self._model_record = record
        arrays = to_numpy(record)
        self.downlink.set_model(arrays)
        if not self._blueprint.specs:
            patterns = self.prunable_patterns
            self.prunable = default_prunable(arrays) if patterns is None else match_prunable(arrays, patterns)
            self._blueprint = Blueprint(specs_of(arrays), self.prunable)

    @property
    def specs(self) -> dict[str, ArraySpec]:
        """Shapes and dtypes of the global model's arrays, by name; empty before the first round."""
        return self._blueprint.specs

    def received_update(self, reply: Message) -> tuple[list[Layer], Reference] | None:
        """Check and decode one training reply; None where it is no use, which is logged and counted.

        Returns
        -------
        layers : list[Layer]
            The weights the node sent, sparse where they are.
        reference : Reference
            The model that this node had received.
        """
        node = self.sender(reply)
        if reply.has_error():
            return self._drop(node.node_id, reply.error.reason, "failures")
        payload = packed_payload(reply.content)
        if payload is None:
            return self._drop(node.node_id, "its reply has no packed update: is CompressMod first in mods?", "failures")
        said = record_of(reply.content)
        reference = self._exchange.broadcasts[node.node_id].reference
        try:
            layers = decode_layers(payload, like=self.specs, reference=None if self.values == "raw" else reference)
        except PayloadError as error:
            return self._drop(node.node_id, f"its payload was refused: {error}", "rejected_payloads")
        if node.node_id in self.nodes:
            self.nodes[node.node_id] = replace(self.nodes[node.node_id], held=str(said.get("held", "")))
        return layers, reference

    def _drop(self, node_id: int, reason: str, counter: str) -> None:
        """Log and count a node's failure; the round goes on without it."""
        last_line = reason.strip().splitlines()[-1] if reason.strip() else "no reason given"
        self.counts[counter] += 1
        self._problems.append(f"node {node_id}: {last_line}")
        log(WARNING, "Round %d: node %d dropped: %s", self._next_round, node_id, last_line)

    # -- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the model that the next round depends on: numbers, strings and arrays, nested."""
        return {
            "next_round": self._next_round,
            "ledger": self.ledger.state_dict(),
            "counts": dict(self.counts),
            "references": self.downlink.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; what nodes hold is asked anew in the hello."""
        self._next_round = state["next_round"]
        self.ledger.load_state_dict(state["ledger"])
        self.counts = Counter(state["counts"])
        self.downlink.load_state_dict(state["references"])
