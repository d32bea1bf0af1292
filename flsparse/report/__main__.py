"""``python -m flsparse.report RUN_FOLDER...``: a table of one run or several, and accuracy against bytes as a PNG.

A run that measured its valley gets a plot of the last one, too. Beside runs of ``strategy=local_only`` or ``pooled`` a
table says which nodes gain by joining.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flsparse.kpi import kpi_of
from flsparse.report.comparison import comparison, read_job, swept_keys, targets
from flsparse.report.nodes import who_gains
from flsparse.report.plots import accuracy_against_bytes, loss_along_directions
from flsparse.report.tables import comparison_table, read_summary, run_table
from flsparse.runs.folder import read_rows


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """Return the run folders among the paths, each once; a sweep's folder stands for its runs."""
    found: list[Path] = []
    for path in paths:
        jobs = sorted(each.parent for each in path.glob("*/summary.json"))
        found += [path] if (path / "summary.json").is_file() or not jobs else jobs
    return list({os.path.abspath(path): path for path in found}.values())


def labels_of(folders: Sequence[Path]) -> list[str]:
    """Return for each folder the shortest end of its path that none of the others has.

    >>> labels_of([Path("/a/seed0"), Path("/b/seed0"), Path("/b/seed1")])
    ['a/seed0', 'b/seed0', 'seed1']
    """
    paths = [Path(os.path.abspath(folder)).parts for folder in folders]
    labels = []
    for parts in paths:
        ends = (parts[-length:] for length in range(1, len(parts) + 1))
        own = next((end for end in ends if sum(other[-len(end) :] == end for other in paths) == 1), parts)
        labels.append(str(Path(*own)))
    return labels


def _tables(folders: Sequence[Path], summaries: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[Table]:
    """Return the table of one run; those of a sweep, or that of any runs, and who gains by joining."""
    if len(folders) == 1:
        return [run_table(summaries[0])]
    jobs = [read_job(folder) for folder in folders]
    if len({folder.parent for folder in folders}) == 1 and swept_keys([job.overrides for job in jobs]):
        return [*(table for table in (targets(jobs), comparison(jobs)) if table is not None), *who_gains(jobs)]
    return [comparison_table([[summary] for summary in summaries], labels), *who_gains(jobs)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, draw the plot; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flsparse.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER", help="run folders, or a sweep's folder")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="where the plot goes (default: beside the first run)")
    args = parser.parse_args(arguments)
    folders = run_folders(args.folders)
    try:
        summaries = [read_summary(folder) for folder in folders]
        labels = labels_of(folders)
        for table in _tables(folders, summaries, labels):
            Console().print(table)
        rows = [read_rows(folder / "metrics.jsonl") for folder in folders]
        kpi = kpi_of(summaries[0])
        plot = accuracy_against_bytes(
            dict(zip(labels, rows, strict=True)), args.plot or args.folders[0] / f"{kpi.name}_against_bytes.png", kpi
        )
        valleys = [
            loss_along_directions(measured[-1], folder / "valley.png")
            for folder, own in zip(folders, rows, strict=True)
            if (measured := [row for row in own if row.get("valley_losses")])
        ]
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    for path in (plot, *valleys):
        print(f"plot: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
