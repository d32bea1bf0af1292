"""Runs of a sweep side by side: a row for each setting that was swept, with mean and standard deviation over its seeds.

Runs that did not complete are rows, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from rich.table import Table

from flsparse.kpi import KPIS, Kpi, final, kpi_of
from flsparse.report.tables import comparison_table, read_summary, target_table
from flsparse.runs.folder import read_rows
from flsparse.runs.target import HELD, to_target

_SEED = "seed"
_DENSE = 1.1  # ratio of plain arrays, which zeros may shrink a little
_ALLOWED = 0.005  # of a fraction, or in proportion to any other KPI, worse than the baseline's final one


@dataclass(frozen=True)
class Job:
    """A run of a sweep.

    Attributes
    ----------
    folder : Path
        Its run folder.
    overrides : dict[str, str]
        What it was started with, values by key.
    summary : dict[str, Any]
        Its ``summary.json``; empty where it left none.
    """

    folder: Path
    overrides: dict[str, str]
    summary: dict[str, Any]

    @property
    def completed(self) -> bool:
        """Whether it ran to its end."""
        return self.summary.get("status") == "completed"

    @property
    def is_dense(self) -> bool:
        """Whether it is dense FedAvg, the baseline of all methods: it sends whole models, and has learned."""
        ratios = [self.summary.get(f"{way}_ratio") or 0.0 for way in ("uplink", "downlink")]
        learned = final(self.summary) is not None and not self.summary.get("warnings")
        return self.summary["strategy"] == "fedavg" and max(ratios) < _DENSE and learned

    @property
    def error(self) -> str:
        """Why it did not, in one line."""
        said = self.summary.get("error") or f"{self.summary.get('status', 'failed')}; its log is flsparse.log in there"
        return str(said).splitlines()[0]


def read_job(folder: Path, since: float = 0.0) -> Job:
    """Read a run folder; a summary that is older than ``since``, in seconds of the epoch, is another run's."""
    path, record = folder / "summary.json", folder / ".hydra" / "overrides.yaml"
    summary = read_summary(folder) if path.is_file() and path.stat().st_mtime >= since else {}
    given = yaml.safe_load(record.read_text("utf-8")) if record.is_file() else []
    pairs = (str(each).partition("=") for each in given)
    return Job(folder, {key.lstrip("+~"): value for key, _, value in pairs}, summary)


def comparison(jobs: Sequence[Job]) -> Table:
    """Return the table of a sweep's runs, in their order.

    Parameters
    ----------
    jobs : Sequence[Job]
        Runs that were started with different overrides; those that differ by their seed alone are one row.
    """
    keys = swept_keys([job.overrides for job in jobs])
    labels, rows = [], []
    for label, members in _groups(jobs).items():
        done = [job.summary for job in members if job.completed]
        if done:
            count = f"{len(done)} of {len(members)}" if len(done) < len(members) else f"{len(members)}"
            labels.append(f"{label}\n{count} seeds" if len(members) > 1 else label)
            rows.append(done)
        for job in members:
            if not job.completed:
                seed = f"\nseed {job.overrides[_SEED]}" if _SEED in keys else ""
                labels.append(label + seed)
                rows.append([job.summary])
    return comparison_table(rows, labels, _heading(jobs))


def targets(jobs: Sequence[Job]) -> Table | None:
    """Return the table of what a sweep's settings took to a target; None where there is no target.

    It is the runs' own ``evaluate.target``; or, where one setting alone is dense FedAvg, the KPI that this ends with,
    less half a point (half a percent of what is no fraction): the mean of its last three evaluations, one alone being
    a matter of luck, and of its seeds.
    """
    done = {label: [job for job in members if job.completed] for label, members in _groups(jobs).items()}
    done = {label: members for label, members in done.items() if members}
    dense = [place for place, members in enumerate(done.values()) if all(job.is_dense for job in members)]
    baseline = dense[0] if len(dense) == 1 else None
    rows = [[read_rows(job.folder / "metrics.jsonl") for job in members] for members in done.values()]
    asked = {job.summary.get("target") for members in done.values() for job in members}
    target = asked.pop() if len(asked) == 1 else None
    kpis = {kpi_of(job.summary).name for members in done.values() for job in members}
    if len(kpis) != 1:
        return None
    kpi = KPIS[kpis.pop()]
    if target is None and baseline is not None and len(done) > 1 and all(rows[baseline]):
        end = fmean(_ends_with(run, kpi) for run in rows[baseline])
        slack = _ALLOWED if kpi.fraction else _ALLOWED * abs(end)
        target = end - slack if kpi.higher else end + slack
    if target is None:
        return None
    found = [[to_target(run, target, kpi) for run in runs] for runs in rows]
    return target_table(found, list(done), _heading(jobs), target, baseline, kpi)


def _ends_with(rows: Sequence[Mapping[str, Any]], kpi: Kpi) -> float:
    return fmean([row[kpi.name] for row in rows if row.get(kpi.name) is not None][-HELD:])


def _settings(jobs: Sequence[Job]) -> list[str]:
    return [key for key in swept_keys([job.overrides for job in jobs]) if key != _SEED]


def _heading(jobs: Sequence[Job]) -> str:
    return " ".join(_settings(jobs)) or "run"


def _groups(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """Return the runs of each setting, whatever their seeds, by its label."""
    settings = _settings(jobs)
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(tuple(job.overrides.get(key, "-") for key in settings), []).append(job)
    if not settings:
        return {str(next((job.summary["strategy"] for job in jobs if job.summary), "run")): list(jobs)}
    return {" ".join(map(_shortened, values)): members for values, members in groups.items()}


def swept_keys(overrides: Sequence[dict[str, str]]) -> list[str]:
    """Return the keys whose values differ, in the order in which they were given.

    >>> swept_keys([{"seed": "1", "strategy": "topk"}, {"seed": "1", "strategy": "fedavg"}])
    ['strategy']
    """
    keys = dict.fromkeys(key for each in overrides for key in each)
    return [key for key in keys if len({each.get(key) for each in overrides}) > 1]


def _shortened(value: str) -> str:
    """Return a number in four digits, as of a sweeper that draws it; everything else as it is.

    >>> _shortened("0.30166854243882657"), _shortened("1000000000.0"), _shortened("0.95"), _shortened("topk")
    ('0.3017', '1e+09', '0.95', 'topk')
    """
    try:
        return min(value, f"{float(value):.4g}", key=len)
    except ValueError:
        return value
