"""Plots from run folders; matplotlib is imported when one is drawn (``pip install 'flsparse[report]'``)."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any


def accuracy_against_bytes(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path | str) -> Path:
    """Draw accuracy against the bytes sent so far, both ways together, on a logarithmic axis.

    Parameters
    ----------
    runs : Mapping[str, Sequence[Mapping[str, Any]]]
        Rows of ``metrics.jsonl`` by label; rounds that were not evaluated carry bytes and no point.
    path : Path or str
        The PNG to write.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    ModuleNotFoundError
        matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plots need matplotlib: pip install 'flsparse[report]'") from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for label, rows in runs.items():
        sent = accumulate(float(row["uplink_bytes"] + row["downlink_bytes"]) for row in rows)
        points = [
            (bytes_sent / 1e6, 100 * row["accuracy"])
            for bytes_sent, row in zip(sent, rows, strict=True)
            if row.get("accuracy") is not None
        ]
        axes.plot(*zip(*points, strict=True), marker=".", label=label) if points else None
    axes.set(xscale="log", xlabel="megabytes sent, up and down together", ylabel="test accuracy, %")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=150)
    return Path(path)
