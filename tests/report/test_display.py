"""The display: a line a round that stays, and on a terminal a bar below that goes."""

import re
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


class Screen:
    """What a terminal shows in the end: a line that is erased is gone."""

    def __init__(self, text: str) -> None:
        self.lines: list[str] = [""]
        for piece in re.findall(r"\x1b\[\d*[A-Za-z]|\x1b\[[?\d;]*[a-z]|[^\x1b]+", text):
            if piece.startswith("\x1b"):
                count, code = piece[2:-1], piece[-1]
                if code == "A":
                    self.row -= int(count or 1)
                elif code == "K":
                    self.lines[self.row] = ""
                continue
            for line in re.findall(r"[^\n\r]+|[\n\r]", piece):
                if line == "\n":
                    self.row += 1
                elif line != "\r":
                    self.lines += [""] * (self.row + 1 - len(self.lines))
                    self.lines[self.row] += line
            self.lines += [""] * (self.row + 1 - len(self.lines))

    row = 0


def test_rounds_stay_on_a_terminal_and_the_bar_goes() -> None:
    out = StringIO()
    with Display(Console(file=out, force_terminal=True, width=80)) as display:
        display.on_start({"num_rounds": 30})
        for server_round in range(1, 31):
            display.on_round(row(server_round))
        display.on_end({})
    shown = [line for line in Screen(out.getvalue()).lines if line.strip()]
    assert [line.split()[0] for line in shown] == ["round", *map(str, range(1, 31))]
    assert max(map(len, shown)) <= 80
    assert {len(line) for line in shown} == {len(shown[0])}  # in columns


@pytest.mark.parametrize("terminal", [False, True])
def test_lost_nodes_are_said_in_their_round(terminal: bool) -> None:
    out = StringIO()
    with Display(Console(file=out, force_terminal=terminal, width=120)) as display:
        display.on_start({"num_rounds": 2})
        display.on_round(row(1, replies=10, failures=0, rejected_payloads=0))
        display.on_round(row(2, replies=7, failures=2, rejected_payloads=1))
    assert out.getvalue().count("replies") == 1
    assert "7 of 10 replies" in out.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_warning_is_said_when_it_begins_and_a_dead_model_has_no_ratio(terminal: bool) -> None:
    out, empty = StringIO(), "layer 'fc.weight' is empty: lower strategy.sparsity"
    with Display(Console(file=out, force_terminal=terminal, width=120)) as display:
        display.on_start({"num_rounds": 4})
        for server_round, warnings in enumerate(([], [empty], [empty, "another"], []), start=1):
            display.on_round(row(server_round, warnings=warnings))
    text = out.getvalue()
    assert text.count(f"warning: round 2: {empty}") == text.count("is empty") == 1
    assert text.count("warning: round 3: another") == 1
    assert text.count("50.0x") == text.count("25.0x") == 2  # of rounds 1 and 4


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
