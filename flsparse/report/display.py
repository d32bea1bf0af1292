"""The live display of a run: an observer that prints a line a round as it ends, and on a terminal what is left."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from flsparse.kpi import ACCURACY, Kpi, kpi_of
from flsparse.report.tables import human_bytes, human_seconds, percent, ratio_of

_WIDTHS = {"round": 5, "metric": 8, "loss": 7, "up": 7, "ratio": 6, "down": 7, "ratio ": 6, "sparsity": 8}


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
        self._progress = Progress(
            SpinnerColumn("line"),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._live: Live | None = None
        self._rounds = 0
        self._first = 1
        self._started = time.monotonic()
        self._totals = {"uplink_bytes": 0, "downlink_bytes": 0}
        self._said: set[str] = set()
        self._kpi, self._widths = ACCURACY, _WIDTHS

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop()

    def on_start(self, info: Mapping[str, Any]) -> None:
        """Start the display.

        Parameters
        ----------
        info : Mapping[str, Any]
            ``num_rounds`` and ``metric`` are used, and ``first_round`` when a run goes on.
        """
        self._kpi = kpi_of(info)
        self._widths = _WIDTHS | {"metric": max(_WIDTHS["metric"], len(self._kpi.name))}
        self._rounds, self._first = int(info.get("num_rounds", 0)), int(info.get("first_round", 1))
        self._started = time.monotonic()
        self._progress.add_task("rounds", total=self._rounds, completed=self._first - 1, left="")
        if self._console.is_terminal:
            self._print("  ".join(self._heading(name).rjust(width) for name, width in self._widths.items()))
            self._live = Live(
                self._screen(),
                console=self._console,
                transient=True,
                refresh_per_second=4,
                redirect_stderr=sys.stderr.isatty(),  # elsewhere, such as to a file, it is not on this screen
            )
            self._live.start()

    def on_note(self, text: str) -> None:
        """Print a line about what goes on before round 1."""
        self._print(text)

    def on_round(self, row: Mapping[str, Any]) -> None:
        """Show one round, and what is wrong with its model, once.

        Parameters
        ----------
        row : Mapping[str, Any]
            A row of ``metrics.jsonl``.
        """
        for key in self._totals:
            self._totals[key] += int(row.get(key) or 0)
        server_round = int(row["server_round"])
        elapsed = time.monotonic() - self._started
        left = elapsed / (server_round - self._first + 1) * (self._rounds - server_round)
        if self._live is None:
            self._print(plain_line(row, self._rounds, left, self._kpi))
        else:
            cells = zip(_cells(row, self._kpi), self._widths.values(), strict=True)
            self._print("  ".join(cell.rjust(width) for cell, width in cells) + _lost(row))
        for warning in row.get("warnings") or []:
            if warning not in self._said:
                self._said.add(warning)
                self._print(f"warning: round {server_round}: {warning}")
        if self._live is not None:
            left_over = f"{human_seconds(left)} left"
            self._progress.update(self._progress.task_ids[0], completed=server_round, left=left_over)
            self._live.update(self._screen())

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Give the terminal back."""
        self._stop()

    def _heading(self, column: str) -> str:
        return self._kpi.name if column == "metric" else column.strip()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _screen(self) -> Group:
        total = ", ".join(
            f"{human_bytes(self._totals[key])} {word}"
            for key, word in (("uplink_bytes", "up"), ("downlink_bytes", "down"))
        )
        return Group(self._progress, f"so far {total}")


def plain_line(row: Mapping[str, Any], num_rounds: int, seconds_left: float, kpi: Kpi = ACCURACY) -> str:
    """Return one round as one line, for logs and pipes."""
    server_round, score, loss, up, up_ratio, down, down_ratio, sparsity = _cells(row, kpi)
    return (
        f"round {server_round}/{num_rounds}  {kpi.name} {score}  loss {loss}  up {up} ({up_ratio})  "
        f"down {down} ({down_ratio})  sparsity {sparsity}  {human_seconds(seconds_left)} left{_lost(row)}"
    )


def _lost(row: Mapping[str, Any]) -> str:
    """Return how many of the asked nodes the round could use, where some were lost."""
    lost = sum(int(row.get(key) or 0) for key in ("failures", "rejected_payloads"))
    replies = int(row.get("replies") or 0)
    return f"  {replies} of {replies + lost} replies" if lost else ""


def _cells(row: Mapping[str, Any], kpi: Kpi) -> tuple[str, ...]:
    loss = row.get("loss")
    return (
        str(row["server_round"]),
        kpi.shown(row.get(kpi.name)),
        "-" if loss is None else f"{loss:.4f}" if loss < 10 else f"{loss:.4g}",
        human_bytes(row.get("uplink_bytes") or 0),
        ratio_of(row, "uplink"),
        human_bytes(row.get("downlink_bytes") or 0),
        ratio_of(row, "downlink"),
        percent(row.get("broadcast_sparsity")),
    )
