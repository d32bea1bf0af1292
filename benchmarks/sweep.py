"""Run many federations, a few at a time, each as a user would: one ``flsparse`` process, one run folder.

A run whose folder is complete is not repeated, so a sweep that was stopped goes on where it was.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

Rows = list[dict[str, Any]]


class Run:
    """A finished run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        self.rows: Rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    def series(self, key: str) -> np.ndarray:
        """Return one metric over the rounds; rounds without it are NaN."""
        return np.array([np.nan if row.get(key) is None else row[key] for row in self.rows], np.float64)

    def late_accuracy(self, last: int = 5) -> float:
        """Return the mean accuracy in percent over the last rounds: one round alone is noisy."""
        return 100 * float(np.nanmean(self.series("accuracy")[-last:]))

    def steady_ratio(self, direction: str, last: int = 5) -> float:
        """Return dense bytes over payload bytes in the last rounds."""
        return float(np.mean(self.series(f"{direction}_ratio")[-last:]))

    def framed_ratio(self, direction: str) -> float:
        """Return dense bytes over all bytes with Flower's framing, over all rounds."""
        dense = self.summary["dense_bytes_per_model"] * float(np.nansum(self.series("replies")))
        return dense / float(self.summary[f"{direction}_wire_bytes"])


def run_all(
    jobs: Mapping[str, Sequence[str]], root: Path, workers: int, program: Sequence[str] = ("-m", "flsparse")
) -> dict[str, Run]:
    """Run every job whose folder is not complete, and return all of them by name.

    Parameters
    ----------
    jobs : Mapping[str, Sequence[str]]
        Overrides of the ``flsparse`` command by run name.
    root : Path
        Folder of the run folders.
    workers : int
        Processes at a time, each with one thread.
    program : Sequence[str]
        What Python runs with the overrides behind it.
    """
    root.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    waiting = [name for name in jobs if not _complete(root / name)]
    done = 0

    def run(name: str) -> None:
        nonlocal done
        shutil.rmtree(root / name, ignore_errors=True)  # what a stopped sweep left
        command = [sys.executable, *program, *jobs[name], f"output_dir={root / name}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (root / f"{name}.log").open("w") as log:
            finished = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False)
        if finished.returncode:
            raise RuntimeError(f"{name} failed; see {root / name}.log:\n{' '.join(command)}")
        done += 1
        seconds = time.monotonic() - started
        left = seconds / done * (len(waiting) - done)
        print(
            f"[{done}/{len(waiting)}] {name}  ({seconds:.0f} s, about {left:.0f} s left)", file=sys.stderr, flush=True
        )

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(run, waiting))
    return {name: Run(root / name) for name in jobs}


def _complete(folder: Path) -> bool:
    summary = folder / "summary.json"
    return summary.exists() and json.loads(summary.read_text()).get("status") == "completed"


def mean_and_spread(values: Sequence[float], digits: int = 1) -> str:
    """Return the mean and, with more than one value, the sample standard deviation."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def run_here(overrides: Sequence[str]) -> None:
    """Run a federation in this process, whose parts may be watched; its folder is thrown away."""
    from flsparse.app import main as flsparse

    with tempfile.TemporaryDirectory() as folder:
        sys.argv[1:] = [*overrides, f"output_dir={folder}/run"]
        try:
            flsparse()
        except SystemExit as done:
            if done.code:
                raise
