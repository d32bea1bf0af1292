"""Runs of a sweep side by side: a row for each setting that was swept, with mean and standard deviation over its seeds.

Runs that did not complete are rows, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from flsparse.report.tables import comparison_table, read_summary

_SEED = "seed"


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
    settings = [key for key in keys if key != _SEED]
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(tuple(job.overrides.get(key, "-") for key in settings), []).append(job)
    labels, rows = [], []
    for values, members in groups.items():
        label = " ".join(values) or str(next((job.summary["strategy"] for job in members if job.summary), "run"))
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
    return comparison_table(rows, labels, " ".join(settings) or "run")


def swept_keys(overrides: Sequence[dict[str, str]]) -> list[str]:
    """Return the keys whose values differ, in the order in which they were given.

    >>> swept_keys([{"seed": "1", "strategy": "topk"}, {"seed": "1", "strategy": "fedavg"}])
    ['strategy']
    """
    keys = dict.fromkeys(key for each in overrides for key in each)
    return [key for key in keys if len({each.get(key) for each in overrides}) > 1]
