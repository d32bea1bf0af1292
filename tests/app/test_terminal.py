"""Lines on the terminal: warnings without tracebacks and not too many of them, errors in one line."""

import logging
from pathlib import Path

import pytest

from flsparse.app.terminal import LOG, in_one_line, log_into, shown


@pytest.fixture(autouse=True)
def _handlers() -> object:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in before:
            handler.close()
    root.handlers[:], root.level = before, level


def test_a_warning_is_a_line_and_its_traceback_is_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_into(tmp_path)
    try:
        raise ValueError("a value is NaN")
    except ValueError:
        logging.getLogger("somebody").warning("node %d dropped", 3, exc_info=True)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "warning: node 3 dropped\n")
    assert "Traceback" in (tmp_path / LOG).read_text()


def test_the_fourth_warning_of_a_kind_says_where_the_others_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_into(tmp_path)
    for node in range(9):
        logging.getLogger("flwr").warning("node %d dropped", node)
        logging.getLogger("flwr").info("a detail")
    assert capsys.readouterr().err.splitlines() == [
        *(f"warning: node {node} dropped" for node in range(3)),
        f"warning: more of this are in {LOG}",
    ]
    assert "node 8 dropped" in (tmp_path / LOG).read_text()


def test_what_a_node_raised_is_said_once_by_the_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_into(tmp_path)
    logging.getLogger("flsparse.runtime.inprocess").error("Node of partition 2 failed")
    assert capsys.readouterr().err == ""
    assert "Node of partition 2 failed" in (tmp_path / LOG).read_text()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("seed=-1"), "seed=-1"),
        (ValueError("\n  first\nsecond"), "first"),
        (ValueError(), "ValueError"),
        (AssertionError("wrong height"), "AssertionError: wrong height"),
        (KeyError("seed"), "KeyError: 'seed'"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
    ],
)
def test_an_error_in_one_line(error: Exception, line: str) -> None:
    assert in_one_line(error) == line


def test_paths_are_shown_as_they_would_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "runs" / "x") == "runs/x"
    assert shown("/elsewhere") == "/elsewhere"
