"""Tables show what a summary says, and say so when something is missing."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from flsparse.report.tables import comparison_table, human_bytes, human_seconds, percent, ratio, read_summary, run_table


def summary(**changes: Any) -> dict[str, Any]:
    return {
        "strategy": "sparsyfed",
        "dataset": "digits",
        "rounds": 3,
        "final_accuracy": 0.913,
        "best_accuracy": 0.92,
        "final_loss": 0.31,
        "final_sparsity": 0.95,
        "dense_bytes_per_model": 40_000,
        "uplink_bytes": 12_345,
        "downlink_bytes": 6_789_000,
        "uplink_wire_bytes": 20_000,
        "downlink_wire_bytes": 7_000_000,
        "uplink_ratio": 97.2,
        "downlink_ratio": 17.67,
        "wall_seconds": 75.0,
        "failures": 0,
        "rejected_payloads": 0,
    } | changes


def text_of(renderable: RenderableType) -> str:
    out = StringIO()
    Console(file=out, width=200).print(renderable)
    return out.getvalue()


def test_numbers_for_reading() -> None:
    assert [human_bytes(n) for n in (0, 999, 1000, 999_600, 2.5e9, 3e12)] == [
        "0 B",
        "999 B",
        "1 kB",
        "1 MB",
        "2.5 GB",
        "3 TB",
    ]
    assert [human_seconds(s) for s in (0.04, 59.9, 60, 3725)] == ["0.0 s", "59.9 s", "1:00 min", "1:02:05 h"]
    assert (percent(0.9546), percent(None)) == ("95.5 %", "-")
    assert (ratio(1.0), ratio(237.4), ratio(None)) == ("1.0x", "237x", "-")


def test_run_table_has_both_directions_and_framing() -> None:
    text = text_of(run_table(summary()))
    for part in (
        "sparsyfed on digits",
        "91.3 %",
        "best 92.0 %",
        "12.3 kB",
        "97.2x",
        "6.79 MB",
        "17.7x",
        "20 kB framed",
    ):
        assert part in text
    assert "dropped" not in text
    assert "2 failures, 1 payloads rejected" in text_of(run_table(summary(failures=2, rejected_payloads=1)))


def test_run_that_never_evaluated_still_has_a_table() -> None:
    assert "-" in text_of(run_table(summary(final_accuracy=None, best_accuracy=None, final_loss=None)))


def test_a_dead_run_has_warnings_and_no_ratio() -> None:
    dead = summary(warnings=["layer 'fc[0].weight' is empty: lower strategy.sparsity"])
    text = text_of(run_table(dead))
    assert "97.2x" not in text
    assert "smaller" not in text
    assert "12.3 kB" in text
    assert "warning: layer 'fc[0].weight' is empty" in " ".join(text.split())
    table = text_of(comparison_table([[summary()], [summary(), dead], [dead]], ["fine", "one of two", "dead"]))
    assert table.count("97.2x") == table.count("17.7x") == 1
    words = " ".join(table.split())
    assert words.count("is empty") == 2
    assert "dead: layer 'fc[0].weight' is empty" in words
    assert "one of two: layer" in words


def test_a_run_with_a_target_says_what_it_took() -> None:
    sizes = {"uplink_bytes": 1000, "downlink_bytes": 2000, "wire_bytes": 4000}
    found = {"target": 0.95, "rounds": 7, **sizes}
    text = " ".join(text_of(run_table(summary(target=0.95, to_target=found))).split())
    assert "to 95.0 % 4 kB both ways, framed, in 7 rounds; 1 kB up, 2 kB down" in text
    assert "to 95.0 % not held" in " ".join(text_of(run_table(summary(target=0.95, to_target=None))).split())
    assert "not held" not in text_of(run_table(summary()))


def test_a_failed_run_has_no_ratio() -> None:
    text = text_of(comparison_table([[summary(status="failed")], [summary(status="interrupted")]], ["a", "b"]))
    assert text.count("97.2x") == 1
    assert "97.2x" not in text_of(run_table(summary(status="failed")))


def test_comparison_keeps_order_and_labels() -> None:
    text = text_of(comparison_table([[summary()], [summary(strategy="fedavg")]], ["a=1", "a=2"]))
    assert text.index("a=1") < text.index("a=2")
    assert "(20 kB)" in text


def test_comparison_fits_a_plain_terminal() -> None:
    out = StringIO()
    Console(file=out, width=80).print(comparison_table([[summary()]], ["sparsyfed"], "strategy"))
    assert "sparsyfed" in out.getvalue()
    assert "(7 MB)" in out.getvalue()
    assert "1:15 min" in out.getvalue()


def test_a_long_name_is_folded_and_not_cut() -> None:
    out, name = StringIO(), "0-fashion_mnist_sparsyfed_recommended-fashion_mnist-seed0"
    Console(file=out, width=80).print(comparison_table([[summary()]], [name]))
    assert name in "".join(line[:16].strip() for line in out.getvalue().splitlines())


def test_read_summary(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no summary\.json"):
        read_summary(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    assert read_summary(tmp_path) == summary()


def test_where_all_runs_have_links_the_time_is_that_over_them() -> None:
    runs = [[summary(modelled_seconds=7200.0)], [summary(modelled_seconds=60.0)]]
    out = text_of(comparison_table(runs))
    assert "2:00:00 h" in out
    assert "links" in out
    assert "links" not in text_of(comparison_table([runs[0], [summary()]]))
