"""Who gains by joining, and who loses: each node's model under a run, by itself, and on all data in one place.

The three are measured on the node's own test part: the model that a run ends with, the node's own of
``strategy=local_only``, and that of ``strategy=pooled``, from runs of the same seed and the same division of the data.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import yaml
from rich import box
from rich.table import Table

from flsparse.configs import lookup
from flsparse.kpi import Kpi, kpi_of
from flsparse.report.comparison import Job
from flsparse.runs.folder import read_rows

ALONE, POOLED = "local_only", "pooled"
_SHOWN = 20  # nodes of a table
_SAME = ("seed", "num_clients", "dataset", "partition", "metric")  # of runs that can be compared by node
_LAST = ("evaluate", "received")  # the model that a run ends with, or the last that the node got


def node_values(rows: Sequence[Mapping[str, Any]], kpi: Kpi) -> dict[int, float]:
    """Return the KPI of the last model that each node has measured, by partition id; nodes without one are left out.

    Parameters
    ----------
    rows : Sequence[Mapping[str, Any]]
        Of a ``nodes.jsonl``, in its order.
    kpi : Kpi

    Examples
    --------
    >>> rows = [{"node": 0, "received_f1": 0.5}, {"node": 1, "received_f1": 0.25}, {"node": 0, "evaluate_f1": 0.75}]
    >>> node_values(rows, Kpi("f1"))
    {0: 0.75, 1: 0.25}
    """
    found: dict[int, float] = {}
    for row in rows:
        for which in reversed(_LAST):
            if (value := row.get(f"{which}_{kpi.name}")) is not None:
                found[row["node"]] = value
    return found


@dataclass(frozen=True)
class Standings:
    """Nodes under one run and under its baselines.

    Attributes
    ----------
    name : str
        Of the run.
    kpi : Kpi
    own, alone, pooled : dict[int, float]
        The KPI by partition id; empty for a baseline that was not run.
    examples : dict[int, float]
        Training samples, where a node has told.
    """

    name: str
    kpi: Kpi
    own: dict[int, float]
    alone: dict[int, float]
    pooled: dict[int, float]
    examples: dict[int, float]

    @property
    def gains(self) -> dict[int, float]:
        """How much better off each node is than alone, above 0 whichever way the KPI is better."""
        sign = 1 if self.kpi.higher else -1
        return {node: sign * (value - self.alone[node]) for node, value in self.own.items() if node in self.alone}


def standings(jobs: Sequence[Job]) -> list[Standings]:
    """Return the completed runs that one of their baselines is among the jobs of, against those baselines."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        if job.completed and read_rows(job.folder / "nodes.jsonl"):
            config = yaml.safe_load((job.folder / "config.yaml").read_text(encoding="utf-8"))
            groups.setdefault(json.dumps([lookup(config, key) for key in _SAME], sort_keys=True), []).append(job)
    found = []
    for group in groups.values():
        rows = {job.folder: read_rows(job.folder / "nodes.jsonl") for job in group}
        kpi = kpi_of(group[0].summary)
        base = {
            job.summary["strategy"]: node_values(rows[job.folder], kpi)
            for job in group
            if job.summary["strategy"] in (ALONE, POOLED)
        }
        for job in group:
            own = node_values(rows[job.folder], kpi)
            if job.summary["strategy"] in (ALONE, POOLED) or not base or not own:
                continue
            sizes = {row["node"]: row["examples"] for row in rows[job.folder] if row["examples"] is not None}
            alone, pooled = (base.get(name, {}) for name in (ALONE, POOLED))
            found.append(Standings(job.folder.name, kpi, own, alone, pooled, sizes))
    return found


def who_gains(jobs: Sequence[Job]) -> list[Table]:
    """Return the tables of who gains and who loses: a row a run, and of a single one a row a node; none without runs.

    Parameters
    ----------
    jobs : Sequence[Job]
        Of any strategies, one of them ``local_only`` or ``pooled``.
    """
    found = standings(jobs)
    if not found:
        return []
    return [*([nodes_table(found[0])] if len(found) == 1 else []), runs_table(found)]


def runs_table(found: Sequence[Standings]) -> Table:
    """Return a row a run: nodes that gain and lose against training alone, the worst node and the mean of all nodes."""
    table = Table(
        title="who gains by joining, against training alone", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    table.add_column("run", overflow="fold", min_width=12)
    for column in ("gain", "lose", "as\nwell", "worst\nnode", "alone", "pooled", "mean\nnode", "alone", "pooled"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in found:
        gains, kpi = list(each.gains.values()), each.kpi
        counts = [sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains), sum(gain == 0 for gain in gains)]
        groups = [list(values.values()) for values in (each.own, each.alone, each.pooled)]
        worst = [kpi.shown(kpi.worst(values) if values else None) for values in groups]
        mean = [kpi.shown(fmean(values) if values else None) for values in groups]
        table.add_row(each.name, *(map(str, counts) if gains else "---"), *worst, *mean)
    return table


def nodes_table(each: Standings) -> Table:
    """Return a row a node, at most 20 of them: those that lose most come first, those that gain most last."""
    table = Table(title=f"{each.kpi.name.replace('_', ' ')} of each node on its test part", box=box.SIMPLE_HEAD)
    for column in ("node", "examples", "this run", "alone", "pooled", "gain"):
        table.add_column(column, justify="right")
    order = sorted(each.own, key=lambda node: (each.gains.get(node, 0.0), node))
    half = _SHOWN // 2
    shown = order if len(order) <= _SHOWN else [*order[:half], None, *order[-half:]]
    for node in shown:
        if node is None:
            table.add_row("...")
            continue
        gain, size = each.gains.get(node), each.examples.get(node)
        values = (each.kpi.shown(values.get(node)) for values in (each.own, each.alone, each.pooled))
        shift = "-" if gain is None else f"{100 * gain:+.1f}" if each.kpi.fraction else f"{gain:+.4g}"
        table.add_row(str(node), "-" if size is None else f"{size:g}", *values, shift)
    return table
