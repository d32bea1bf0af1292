"""``python -m flsparse.report RUN_FOLDER...``: a table of one run or several, and accuracy against bytes as a PNG.

A run that measured its valley gets a plot of the last one, too.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from flsparse.report.plots import accuracy_against_bytes, loss_along_directions
from flsparse.report.run_folder import read_rows
from flsparse.report.tables import comparison_table, read_summary, run_table


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """Return the run folders among the paths; a sweep's folder stands for its runs."""
    found: list[Path] = []
    for path in paths:
        jobs = sorted(each.parent for each in path.glob("*/summary.json"))
        found += [path] if (path / "summary.json").is_file() or not jobs else jobs
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, draw the plot; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flsparse.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER", help="run folders, or a sweep's folder")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="where the plot goes (default: beside the first run)")
    args = parser.parse_args(arguments)
    folders = run_folders(args.folders)
    try:
        summaries = [read_summary(folder) for folder in folders]
        labels = [folder.name for folder in folders]
        Console().print(run_table(summaries[0]) if len(folders) == 1 else comparison_table(summaries, labels))
        rows = {label: read_rows(folder / "metrics.jsonl") for label, folder in zip(labels, folders, strict=True)}
        plot = accuracy_against_bytes(rows, args.plot or args.folders[0] / "accuracy_against_bytes.png")
        valleys = [
            loss_along_directions(measured[-1], folder / "valley.png")
            for label, folder in zip(labels, folders, strict=True)
            if (measured := [row for row in rows[label] if row.get("valley_losses")])
        ]
    except (FileNotFoundError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    for path in (plot, *valleys):
        print(f"plot: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
