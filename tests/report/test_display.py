"""The display: one line a round where there is no terminal, a table that is given back where there is one."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from flsparse.report.display import Display


def row(server_round: int, **changes: Any) -> dict[str, Any]:
    return {
        "server_round": server_round,
        "accuracy": 0.5 + server_round / 100,
        "loss": 1.0,
        "uplink_bytes": 1000,
        "downlink_bytes": 2000,
        "uplink_ratio": 50.0,
        "downlink_ratio": 25.0,
        "broadcast_sparsity": 0.9,
    } | changes


@pytest.mark.parametrize("terminal", [False, True])
def test_rounds_are_shown(terminal: bool) -> None:
    out = StringIO()
    with Display(Console(file=out, force_terminal=terminal, width=120)) as display:
        display.on_start({"num_rounds": 12})
        for server_round in range(1, 13):
            display.on_round(row(server_round))
        display.on_end({})
    text = out.getvalue()
    assert "62.0 %" in text
    assert "1 kB" in text
    assert "90.0 %" in text
    if not terminal:
        assert len(text.splitlines()) == 12
        assert text.startswith("round 1/12  accuracy 51.0 %")


def test_missing_measurements_are_dashes() -> None:
    out = StringIO()
    display = Display(Console(file=out, width=120))
    display.on_start({"num_rounds": 9, "first_round": 7})
    display.on_round(row(7, accuracy=None, loss=None, uplink_bytes=None, broadcast_sparsity=None))
    assert "accuracy -  loss -  up 0 B" in out.getvalue()


def test_a_failure_gives_the_terminal_back() -> None:
    out = StringIO()
    with pytest.raises(RuntimeError), Display(Console(file=out, force_terminal=True)) as display:
        fail_after_start(display)
    assert "\x1b[?25h" in out.getvalue()  # the cursor is visible again


def fail_after_start(display: Display) -> None:
    display.on_start({"num_rounds": 2})
    raise RuntimeError
