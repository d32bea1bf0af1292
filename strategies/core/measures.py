"""Metrics of a round: the nodes' numbers, the server's own, and their report."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, MetricRecord

from flsparse.clients.core.part import weight_names
from flsparse.clients.parts.questions import SUMS
from flsparse.codec import Layer
from flsparse.codec.portable import total
from flsparse.kpi import KPIS
from flsparse.metering.ledger import Ledger
from flsparse.strategies.core.exchange import Reply

LARGEST = 1e15  # of a metric or a weight that a node reports
_MOST_METRICS, _LONGEST_KEY = 64, 64  # of one reply
_SHOWN = 4  # metrics in a line
# Metrics that the loop and the application report: a node's of such a name is reported as client_<name>
SERVERS_OWN = frozenset(
    {
        *("accuracy", "loss", "sparsity", "broadcast_sparsity", "server_round", "schema_version", "replies"),
        *("failures", "rejected_payloads", "resent_models", "round_seconds", "wall_seconds", "uplink_bytes"),
        *("downlink_bytes", "uplink_wire_bytes", "downlink_wire_bytes", "uplink_ratio", "downlink_ratio"),
        *("evaluation_bytes", "prediction_share", "warnings", "to_target", *KPIS),
        *("modelled_seconds", "modelled_cost", "staleness", "late_replies", "in_flight", "wasted_bytes"),
        *("asked", "received"),
    }
)


@dataclass(frozen=True)
class RoundReport:
    """Report of a round, for callbacks.

    Attributes
    ----------
    server_round, num_rounds : int
        This round, from 1, and the last one.
    arrays : ArrayRecord
        The global model after the round.
    metrics : dict[str, Any]
        Everything that was measured: plain numbers, by name, and dicts of numbers by layer.
    nodes : list[dict[str, Any]]
        A row for each node that messages were exchanged with (:class:`flsparse.strategies.core.node_table.NodeTable`).
    """

    server_round: int
    num_rounds: int
    arrays: ArrayRecord
    metrics: dict[str, Any]
    nodes: list[dict[str, Any]] = field(default_factory=list)


def in_a_line(report: RoundReport) -> str:
    """Return a report as one line: replies and lost ones, the first metrics of the nodes and the server, bytes.

    >>> sizes = {"uplink_bytes": 639, "uplink_ratio": 142.0, "downlink_bytes": 8000, "downlink_ratio": 11.3}
    >>> in_a_line(RoundReport(2, 9, ArrayRecord(), {"train_loss": 0.25, "replies": 7, "failures": 1, **sizes}))
    'Round 2/9: 7 replies, 1 lost so far, train_loss 0.25, up 639 B (142x smaller), down 8000 B (11x smaller)'
    """
    found = report.metrics
    shown = [f"{found['replies']} replies"] if "replies" in found else []
    if lost := found.get("failures", 0) + found.get("rejected_payloads", 0):
        shown.append(f"{lost} lost so far")
    told = {key: value for key, value in found.items() if key in KPIS or key not in SERVERS_OWN}
    numbers = (f"{key} {value:.4g}" for key, value in told.items() if isinstance(value, float) and key != "encode_ms")
    shown += islice(numbers, _SHOWN)
    for way, name in (("up", "uplink"), ("down", "downlink")):
        shown.append(f"{way} {found[f'{name}_bytes']} B ({found[f'{name}_ratio']:.0f}x smaller)")
    return f"Round {report.server_round}/{report.num_rounds}: {', '.join(shown)}"


def numbers_of(reply: Reply, weighted_by_key: str = "") -> dict[str, float]:
    """Return a reply's scalar metrics that can be averaged, whatever the name of their record; the weight is first."""
    pairs = [(key, value) for record in reply.content.metric_records.values() for key, value in record.items()]
    pairs.sort(key=lambda pair: pair[0] != weighted_by_key)
    fit = ((key, value) for key, value in pairs if isinstance(value, int | float) and abs(value) <= LARGEST)
    return {key: float(value) for key, value in islice(fit, _MOST_METRICS) if len(key) <= _LONGEST_KEY}


def sums_of(reply: Reply) -> dict[str, list[float]]:
    """Return the sums among a reply's metrics, from which metrics over all nodes follow exactly."""
    pairs = (pair for record in reply.content.metric_records.values() for pair in record.items())
    return {key: list(map(float, value)) for key, value in pairs if key.startswith(SUMS) and isinstance(value, list)}


def update_norm(reply: Reply, layers: Sequence[Layer]) -> float:
    """Return the l2 norm of an update, what the node sent less its broadcast, over the model's floating weights."""
    assert reply.broadcast is not None
    sent = reply.broadcast.reference
    weights = set(weight_names(sent.specs))
    square = 0.0
    for layer in layers:
        if layer.name in weights:
            change = np.ravel(layer.dense(sent.specs[layer.name]).astype(np.float64) - sent.arrays[layer.name])
            square += total(change * change)
    return math.sqrt(square)


def weighted_means(rows: list[tuple[float, dict[str, float]]]) -> dict[str, float]:
    """Average each metric over the rows that have it.

    Parameters
    ----------
    rows : list[tuple[float, dict[str, float]]]
        Weight (above 0) and metrics of each reply.
    """
    means = {}
    for key in sorted({key for _, numbers in rows for key in numbers}):
        weights, values = zip(*((w, numbers[key]) for w, numbers in rows if key in numbers), strict=True)
        means[key] = float(np.average(values, weights=weights))
    return means


def measures_of(kind: type[Any]) -> set[str]:
    """Return the server-side metrics of all strategies, or all parts, used in this run or not."""
    return set(kind.measures).union(*(measures_of(each) for each in kind.__subclasses__()))


def from_nodes(prefix: str, record: MetricRecord | None, own: Collection[str]) -> dict[str, Any]:
    """Return the nodes' metrics under names that cannot be taken for the server's own."""
    named = {f"{prefix}{key}".replace("-", "_"): value for key, value in (record or {}).items()}
    return {f"client_{name}" if name in own else name: value for name, value in named.items()}


def sizes_of(ledger: Ledger, server_round: int) -> dict[str, float]:
    """Return a round's payload bytes, bytes on the wire and ratio, up and down."""
    sizes: dict[str, float] = {}
    for direction in ("uplink", "downlink"):
        traffic = ledger.of_round(direction, server_round)
        sizes[f"{direction}_bytes"] = traffic.payload_bytes
        sizes[f"{direction}_wire_bytes"] = traffic.wire_bytes
        sizes[f"{direction}_ratio"] = traffic.ratio
    return sizes
