"""Plots from run folders; matplotlib is imported when one is drawn (the extra ``report``)."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from flsparse.kpi import ACCURACY, Kpi


def accuracy_against_bytes(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path | str, kpi: Kpi = ACCURACY
) -> Path:
    """Draw accuracy, or another KPI, against the bytes sent so far, both ways and framed, on a logarithmic axis.

    Parameters
    ----------
    runs : Mapping[str, Sequence[Mapping[str, Any]]]
        Rows of ``metrics.jsonl`` by label; rounds that were not evaluated carry bytes and no point.
    path : Path or str
        The PNG to write.
    kpi : Kpi
        What is drawn.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    ModuleNotFoundError
        matplotlib is not installed.
    """
    figure, axes = _figure()
    scale, unit = (100, ", %") if kpi.fraction else (1, "")
    for label, rows in runs.items():
        sent = accumulate(float(row["uplink_wire_bytes"] + row["downlink_wire_bytes"]) for row in rows)
        points = [
            (bytes_sent / 1e6, scale * row[kpi.name])
            for bytes_sent, row in zip(sent, rows, strict=True)
            if row.get(kpi.name) is not None
        ]
        axes.plot(*zip(*points, strict=True), marker=".", label=label) if points else None
    axes.set(
        xscale="log", xlabel="megabytes sent, both ways, framed", ylabel=f"test {kpi.name.replace('_', ' ')}{unit}"
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=150)
    return Path(path)


def loss_along_directions(row: Mapping[str, Any], path: Path | str) -> Path:
    """Draw the loss from the average model through each worker, and the wall (see :mod:`flsparse.nets.valley`).

    Parameters
    ----------
    row : Mapping[str, Any]
        A row of ``metrics.jsonl`` in which the valley was measured.
    path : Path or str
        The PNG to write.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    ValueError
        The row holds no valley.
    ModuleNotFoundError
        matplotlib is not installed.
    """
    if not row.get("valley_losses"):
        raise ValueError(f"round {row.get('server_round')} measured no valley: set strategy.valley_every")
    figure, axes = _figure()
    for worker, losses in row["valley_losses"].items():
        distances = [i * row["valley_step"] for i in range(len(losses))]
        axes.plot(distances, losses, marker=".", label=f"worker {worker}")
    axes.axvline(row["mean_valley"], color="gray", linestyle="--", label="Mean Valley")
    axes.set(yscale="log", xlabel="distance from the average, normalized coordinates", ylabel="training loss")
    axes.set_title(f"round {row['server_round']}")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=150)
    return Path(path)


def _figure() -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plots need matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()
