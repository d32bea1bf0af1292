"""The live display of a run: an observer that shows each round as it ends.

On a terminal a table of the last rounds and a progress line, redrawn in place; elsewhere one plain line a round.
"""

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from flsparse.report.tables import human_bytes, human_seconds, percent, ratio

_SHOWN = 8  # rounds on the screen


class Display:
    """Shows a run's progress.

    Parameters
    ----------
    console : Console, optional
        Console to draw on; standard output by default.

    Notes
    -----
    An observer: :meth:`on_start`, :meth:`on_round` once a round, :meth:`on_end`. Use it as a context manager, so that
    the terminal is given back when a run fails or is interrupted.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._rows: deque[Mapping[str, Any]] = deque(maxlen=_SHOWN)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}")
        )
        self._live: Live | None = None
        self._rounds = 0
        self._first = 1
        self._started = time.monotonic()
        self._totals = {"uplink_bytes": 0, "downlink_bytes": 0}

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop()

    def on_start(self, info: Mapping[str, Any]) -> None:
        """Start the display.

        Parameters
        ----------
        info : Mapping[str, Any]
            ``num_rounds`` is used, and ``first_round`` when a run goes on.
        """
        self._rounds, self._first = int(info.get("num_rounds", 0)), int(info.get("first_round", 1))
        self._started = time.monotonic()
        self._progress.add_task("rounds", total=self._rounds, completed=self._first - 1, left="")
        if self._console.is_terminal:
            self._live = Live(self._screen(), console=self._console, transient=True, refresh_per_second=4)
            self._live.start()

    def on_round(self, row: Mapping[str, Any]) -> None:
        """Show one round.

        Parameters
        ----------
        row : Mapping[str, Any]
            A row of ``metrics.jsonl``.
        """
        self._rows.append(row)
        for key in self._totals:
            self._totals[key] += int(row.get(key) or 0)
        server_round = int(row["server_round"])
        elapsed = time.monotonic() - self._started
        left = elapsed / (server_round - self._first + 1) * (self._rounds - server_round)
        if self._live is None:
            self._console.print(plain_line(row, self._rounds, left), highlight=False, soft_wrap=True)
            return
        self._progress.update(self._progress.task_ids[0], completed=server_round, left=f"{human_seconds(left)} left")
        self._live.update(self._screen())

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Give the terminal back."""
        self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _screen(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for column in ("round", "accuracy", "loss", "up", "ratio", "down", "ratio", "sparsity"):
            table.add_column(column, justify="right")
        for row in self._rows:
            table.add_row(*_cells(row))
        total = ", ".join(
            f"{human_bytes(self._totals[key])} {word}"
            for key, word in (("uplink_bytes", "up"), ("downlink_bytes", "down"))
        )
        return Group(table, self._progress.get_renderable(), f"so far {total}")


def plain_line(row: Mapping[str, Any], num_rounds: int, seconds_left: float) -> str:
    """Return one round as one line, for logs and pipes."""
    server_round, accuracy, loss, up, up_ratio, down, down_ratio, sparsity = _cells(row)
    return (
        f"round {server_round}/{num_rounds}  accuracy {accuracy}  loss {loss}  up {up} ({up_ratio})  "
        f"down {down} ({down_ratio})  sparsity {sparsity}  {human_seconds(seconds_left)} left"
    )


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    loss = row.get("loss")
    return (
        str(row["server_round"]),
        percent(row.get("accuracy")),
        "-" if loss is None else f"{loss:.4f}",
        human_bytes(row.get("uplink_bytes") or 0),
        ratio(row.get("uplink_ratio")),
        human_bytes(row.get("downlink_bytes") or 0),
        ratio(row.get("downlink_ratio")),
        percent(row.get("broadcast_sparsity")),
    )
