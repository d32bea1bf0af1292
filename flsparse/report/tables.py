"""Tables: one run, and several side by side.

Ratios are dense bytes over sent bytes: above 1 is good. ``framed`` includes the bytes that Flower adds to every
payload.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from flsparse.kpi import ACCURACY, Kpi, best, final, kpi_of


def human_bytes(count: float) -> str:
    """Return a byte count for reading, in powers of 1000.

    >>> human_bytes(999), human_bytes(1_234_000)
    ('999 B', '1.23 MB')
    """
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.5:
            return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def human_seconds(seconds: float) -> str:
    """Return a duration for reading.

    >>> human_seconds(9.26), human_seconds(192)
    ('9.3 s', '3:12 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} h" if hours else f"{minutes}:{rest:02d} min"


def percent(fraction: float | None) -> str:
    """Return a fraction in percent, a dash for none."""
    return "-" if fraction is None else f"{100 * fraction:.1f} %"


def ratio(value: float | None) -> str:
    """Return a ratio as ``12x``, a dash for none and for 0, the ratio of nothing sent."""
    return "-" if not value else f"{value:.1f}x" if value < 100 else f"{value:.0f}x"


def ratio_of(numbers: Mapping[str, Any], direction: str) -> str:
    """Return the ratio of a row or a summary for reading: a dash where the model has died, or the run has failed."""
    dead = numbers.get("warnings") or numbers.get("status") == "failed"
    return "-" if dead else ratio(numbers.get(f"{direction}_ratio"))


def read_summary(run_folder: Path | str) -> dict[str, Any]:
    """Return the ``summary.json`` of a run folder.

    Raises
    ------
    FileNotFoundError
        The folder holds none: it is not a run folder, or the run has not ended.
    ValueError
        It is damaged.
    """
    path = Path(run_folder) / "summary.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run_folder} holds no summary.json: not a run folder, or the run has not ended")
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return summary


def run_table(summary: Mapping[str, Any]) -> Table:
    """Return the table of one run.

    Parameters
    ----------
    summary : Mapping[str, Any]
        The content of a ``summary.json``.
    """
    rounds = f"{summary['rounds']} round{'s' * (summary['rounds'] != 1)}"
    table = Table(
        title=f"{summary['strategy']} on {summary['dataset']}, {rounds}",
        show_header=False,
        box=box.SIMPLE,
    )
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_column("note", style="dim")
    kpi = kpi_of(summary)
    table.add_row(_words(kpi.name), kpi.shown(final(summary)), f"best {kpi.shown(best(summary))}")
    if kpi is not ACCURACY and summary.get("final_accuracy") is not None:
        table.add_row("accuracy", percent(summary["final_accuracy"]), f"best {percent(summary['best_accuracy'])}")
    if f"mean_node_{kpi.name}" in summary:
        worst = f"worst {kpi.shown(summary[f'worst_node_{kpi.name}'])}"
        table.add_row("nodes' own", kpi.shown(summary[f"mean_node_{kpi.name}"]), worst)
    table.add_row("loss", _number(summary.get("final_loss")), "")
    table.add_row("sparsity", percent(summary.get("final_sparsity")), "of the prunable weights")
    for direction in ("uplink", "downlink"):
        sent, framed = summary.get(f"{direction}_bytes", 0), summary.get(f"{direction}_wire_bytes", 0)
        times = ratio_of(summary, direction)
        smaller = f"{times} smaller than dense FedAvg; " if times not in ("-", "1.0x") else ""
        note = f"{smaller}{human_bytes(framed)} framed"
        table.add_row(direction, human_bytes(sent), note)
    if summary.get("target") is not None:
        table.add_row(f"to {kpi.shown(summary['target'])}", *_reached(summary.get("to_target")))
    if "evaluation_bytes" in summary:
        table.add_row(
            "evaluation", human_bytes(summary["evaluation_bytes"]), "nodes' models, to look at; not in the above"
        )
    table.add_row("model, dense", human_bytes(summary.get("dense_bytes_per_model", 0)), "each way, to each node")
    table.add_row("time", human_seconds(summary.get("wall_seconds", 0.0)), "")
    if (modelled := summary.get("modelled_seconds")) is not None:
        cost = summary.get("modelled_cost")
        reached = (summary.get("to_target") or {}).get("modelled_seconds")
        notes = ["modelled", *([f"cost {cost:.3g}"] if cost else [])]
        notes += [] if reached is None else [f"target after {human_seconds(reached)}"]
        table.add_row("over the links", human_seconds(modelled), "; ".join(notes))
    dropped = summary.get("failures", 0), summary.get("rejected_payloads", 0)
    if any(dropped):
        table.add_row("dropped", str(sum(dropped)), f"{dropped[0]} failures, {dropped[1]} payloads rejected")
    return _with_warnings(table, [f"warning: {each}" for each in summary.get("warnings") or []])


def comparison_table(
    rows: Sequence[Sequence[Mapping[str, Any]]], labels: Sequence[str] | None = None, what: str = "run"
) -> Table:
    """Return the runs side by side, in the given order; bytes with Flower's framing stand below the payloads'.

    The time is that over the links, where all runs have one.

    Parameters
    ----------
    rows : Sequence[Sequence[Mapping[str, Any]]]
        Contents of ``summary.json`` files: those of one row are of one setting, and give means, with the KPI's
        sample standard deviation below. The summary of a run that did not complete may be empty.
    labels : Sequence[str], optional
        Labels of the rows; default: the strategy's name.
    what : str
        Heading of the labels' column.
    """
    labels = labels or [str(row[0]["strategy"]) for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("\n".join(map(_breakable, what.split())), overflow="fold")
    kpis = {kpi_of(row[0]).name for row in rows if row[0]} or {ACCURACY.name}
    measured = _words(kpis.pop()).replace(" ", "\n") if len(kpis) == 1 else "metric"
    clock = _clock_of([summary for row in rows for summary in row if summary], "wall_seconds")
    for column in (measured, "sparsity", "up\n(framed)", "ratio", "down\n(framed)", "ratio", _TIMES[clock]):
        table.add_column(column, justify="right", no_wrap=True)
    for label, row in zip(labels, rows, strict=True):
        status = row[0].get("status", "failed" if not row[0] else "completed")
        table.add_row(
            escape(_breakable(label)),  # of a sweep over lists it has brackets
            _score(row, named=measured == "metric") if status == "completed" else str(status),
            percent(_mean(row, "final_sparsity")),
            _both(row, "uplink"),
            _ratio(row, "uplink"),
            _both(row, "downlink"),
            _ratio(row, "downlink"),
            "-" if (seconds := _mean(row, clock)) is None else human_seconds(seconds),
        )
    said = (
        f"{label.splitlines()[0]}: {warning}"
        for label, row in zip(labels, rows, strict=True)
        for warning in dict.fromkeys(each for summary in row for each in summary.get("warnings") or [])
    )
    return _with_warnings(table, list(said))


_TIMES = {"wall_seconds": "time", "seconds": "time", "modelled_seconds": "over\nlinks"}


def _clock_of(found: Sequence[Mapping[str, Any]], own: str) -> str:
    """Return the key of the time to show: over the links where all have it, else the run's own."""
    return "modelled_seconds" if found and all(each.get("modelled_seconds") is not None for each in found) else own


_LABEL = 12  # characters that 80 columns leave to a label


def _breakable(label: str) -> str:
    """Return a label in lines of 12 characters at most: broken at spaces, and a long word behind one of ``-_/.,=``.

    >>> _breakable("0-fashion_mnist-seed0 0.95")
    '0-fashion_\\nmnist-seed0\\n0.95'
    """
    lines = []
    for line in label.split("\n"):
        lines.append("")
        for word in line.split():
            pieces = [word] if len(word) <= _LABEL else re.findall(r"[^-_/.,=]*[-_/.,=]|[^-_/.,=]+", word)
            space = " " * bool(lines[-1])
            for piece in pieces:
                if lines[-1] and len(lines[-1] + space + piece) > _LABEL:
                    lines.append(piece)
                else:
                    lines[-1] += space + piece
                space = ""
    return "\n".join(lines)


def _values(row: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [float(summary[key]) for summary in row if summary.get(key) is not None]


def _mean(row: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = _values(row, key)
    return fmean(values) if values else None


def _words(name: str) -> str:
    return name.replace("_", " ")


def _score(row: Sequence[Mapping[str, Any]], *, named: bool) -> str:
    kpi = kpi_of(row[0])
    values = [value for summary in row if (value := final(summary)) is not None]
    spread = f"\n± {kpi.shown(stdev(values))}" if len(values) > 1 else ""
    return f"{_words(kpi.name)} " * named + kpi.shown(fmean(values) if values else None) + spread


def _reached(found: Mapping[str, Any] | None) -> tuple[str, str]:
    if found is None:
        return "not held", ""
    up, down = (human_bytes(found[f"{way}_bytes"]) for way in ("uplink", "downlink"))
    return human_bytes(found["wire_bytes"]), f"both ways, framed, in {found['rounds']} rounds; {up} up, {down} down"


def target_table(
    rows: Sequence[Sequence[Mapping[str, Any] | None]],
    labels: Sequence[str],
    what: str,
    target: float,
    baseline: int | None,
    kpi: Kpi = ACCURACY,
) -> Table:
    """Return what settings took to a target, side by side, in the given order.

    Parameters
    ----------
    rows : Sequence[Sequence[Mapping[str, Any] | None]]
        Results of :func:`flsparse.runs.target.to_target`: those of one row are of one setting, and give means where all
        held the target.
    labels : Sequence[str]
        Labels of the rows.
    what : str
        Heading of the labels' column.
    target : float
        Value of the KPI.
    baseline : int, optional
        The row whose bytes, framed and both ways, the ratios divide by those of the others.
    kpi : Kpi
        What was to be reached.
    """
    table = Table(title=f"to {kpi.shown(target)}, held for three evaluations", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("\n".join(map(_breakable, what.split())), overflow="fold")
    clock = _clock_of([each for row in rows for each in row if each is not None], "seconds")
    for column in ("rounds", _TIMES[clock].replace("\n", " "), "up", "down", "both, framed", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    whole = _mean_held(rows[baseline], "wire_bytes") if baseline is not None else None
    for label, row in zip(labels, rows, strict=True):
        means = [_mean_held(row, key) for key in ("rounds", "uplink_bytes", "downlink_bytes", "wire_bytes")]
        rounds, *sizes = means
        seconds = _mean_held(row, clock)
        cells = ["not held" if rounds is None else f"{rounds:.3g}", "-" if seconds is None else human_seconds(seconds)]
        cells += ["-" if size is None else human_bytes(size) for size in sizes]
        times = whole / means[-1] if whole and means[-1] else None
        table.add_row(escape(_breakable(label)), *cells, ratio(times))
    return table


def _mean_held(row: Sequence[Mapping[str, Any] | None], key: str) -> float | None:
    held = [float(each[key]) for each in row if each is not None and each.get(key) is not None]
    return fmean(held) if held and len(held) == len(row) else None


def _ratio(row: Sequence[Mapping[str, Any]], direction: str) -> str:
    """Return the mean ratio; a dash where one of the runs has none to show."""
    dead = any(ratio_of(summary, direction) == "-" for summary in row)
    return "-" if dead else ratio(_mean(row, f"{direction}_ratio"))


def _with_warnings(table: Table, lines: Sequence[str]) -> Table:
    """Put lines below a table."""
    if lines:
        table.caption, table.caption_justify, table.caption_style = escape("\n".join(lines)), "left", ""
    return table


def _both(row: Sequence[Mapping[str, Any]], direction: str) -> str:
    sent, framed = (_mean(row, f"{direction}{kind}_bytes") for kind in ("", "_wire"))
    return "-" if sent is None else f"{human_bytes(sent)}\n({human_bytes(framed or 0)})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
