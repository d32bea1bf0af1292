"""``python -m flsparse.report``: a table and a plot from run folders."""

import json
from pathlib import Path
from typing import Any

import pytest

import flsparse.report.__main__ as report
from flsparse.report.__main__ import labels_of, main, run_folders
from flsparse.report.plots import loss_along_directions

SUMMARY: dict[str, Any] = {"strategy": "topk", "dataset": "digits", "rounds": 2, "final_accuracy": 0.8}
ROWS: list[dict[str, Any]] = [
    {
        "server_round": 1,
        "accuracy": None,
        "uplink_bytes": 100,
        "downlink_bytes": 300,
        "uplink_wire_bytes": 150,
        "downlink_wire_bytes": 350,
    },
    {
        "server_round": 2,
        "accuracy": 0.8,
        "uplink_bytes": 100,
        "downlink_bytes": 300,
        "uplink_wire_bytes": 150,
        "downlink_wire_bytes": 350,
    },
]


def make_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def test_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    assert main([str(run)]) == 0
    assert "topk on digits" in capsys.readouterr().out
    assert (run / "accuracy_against_bytes.png").read_bytes().startswith(b"\x89PNG")


def test_a_sweep_stands_for_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / "sweep" / name) for name in ("0-fedavg", "1-topk")]
    assert run_folders([tmp_path / "sweep"]) == runs
    assert main([str(tmp_path / "sweep"), "--plot", str(tmp_path / "plot.png")]) == 0
    assert "1-topk" in capsys.readouterr().out
    assert (tmp_path / "plot.png").exists()


def test_runs_in_folders_of_one_name_keep_their_own_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(report, "accuracy_against_bytes", lambda runs, path, kpi: drawn.extend([runs]))
    monkeypatch.setattr(report, "loss_along_directions", lambda row, path: drawn.extend([(path, row)]))
    runs, rows = [], []
    for number, name in enumerate(("a/seed0", "b/seed0")):
        runs.append(make_run(tmp_path / name))
        rows.append({**ROWS[1], "accuracy": number / 10, "valley_losses": {"0": [0.1]}})
        (runs[-1] / "metrics.jsonl").write_text(json.dumps(rows[-1]) + "\n")
    assert main([str(run) for run in (*runs, runs[0])]) == 0  # the same one twice is one
    assert drawn[0] == {"a/seed0": [rows[0]], "b/seed0": [rows[1]]}
    assert drawn[1:] == [(runs[0] / "valley.png", rows[0]), (runs[1] / "valley.png", rows[1])]


def test_labels_are_the_shortest_paths_that_differ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert labels_of([Path("."), Path("x/run")]) == [tmp_path.name, "run"]
    assert labels_of([Path("run"), Path("x/run")]) == [f"{tmp_path.name}/run", "x/run"]
    assert labels_of([Path("/x/y"), Path("/y")]) == ["x/y", "/y"]


def test_a_folder_without_a_run_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "no summary.json" in capsys.readouterr().err


def test_a_damaged_summary_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    (run / "summary.json").write_text("{")
    assert main([str(run)]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"{run / 'summary.json'} is damaged: ")


def test_a_run_that_measured_its_valley_gets_a_plot_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    row = {**ROWS[1], "valley_losses": {"0": [0.1, 0.15, 0.3]}, "valley_step": 0.1, "mean_valley": 0.13}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert main([str(run)]) == 0
    assert (run / "valley.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="valley_every"):
        loss_along_directions(ROWS[0], tmp_path / "none.png")
