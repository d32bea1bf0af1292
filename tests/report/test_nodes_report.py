"""Who gains by joining: nodes of a run against those of its baselines."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from flsparse.report.__main__ import main
from flsparse.report.comparison import read_job
from flsparse.report.nodes import standings, who_gains

SCORES = {  # by node
    "fedavg": [0.5, 0.75, 0.9, 0.8],
    "local_only": [0.8, 0.75, 0.6, 0.7],
    "pooled": [0.9, 0.9, 0.9, 0.95],
}


def write(folder: Path, strategy: str, scores: list[float], metric: str = "accuracy", **config: Any) -> Path:
    """Write what the report reads of a run folder."""
    folder.mkdir(parents=True)
    config = {"seed": 0, "num_clients": 4, "dataset": {"name": "digits"}, "partition": {"alpha": 0.1}} | config
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    sizes: dict[str, float] = {f"{way}link{kind}_bytes": 1 for way in ("up", "down") for kind in ("", "_wire")}
    sizes |= {"uplink_ratio": 1.0, "downlink_ratio": 1.0, "rounds": 1}
    found = {"final_accuracy": 0.5, "final_metric": 0.5, "metric": metric, "dataset": "digits"}
    (folder / "summary.json").write_text(json.dumps({"status": "completed", "strategy": strategy, **sizes, **found}))
    row = {"server_round": 1, "accuracy": 0.5, "loss": 1.0, metric: 0.5, "warnings": [], "round_seconds": 1.0, **sizes}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    rows = [
        {"server_round": 1, "node": node, "examples": 65.0, f"received_{metric}": 0.0, f"evaluate_{metric}": score}
        for node, score in enumerate(scores)
    ]
    (folder / "nodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def text(folders: list[Path]) -> str:
    out = StringIO()
    for table in who_gains([read_job(folder) for folder in folders]):
        Console(file=out, width=100).print(table)
    return out.getvalue()


def test_nodes_that_gain_and_lose_are_counted(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, name, scores) for name, scores in SCORES.items()]
    (found,) = standings([read_job(folder) for folder in folders])
    assert found.gains == pytest.approx({0: -0.3, 1: 0.0, 2: 0.3, 3: 0.1})
    shown = text(folders)
    rows = [line.split() for line in shown.splitlines()]
    assert [row[0] for row in rows if row and row[0] in "0123"] == ["0", "1", "3", "2"]  # the loser first
    assert ["0", "65", "50.0", "%", "80.0", "%", "90.0", "%", "-30.0"] in rows
    last = next(row for row in rows if row and row[0] == "fedavg")
    assert last[1:4] == ["2", "1", "1"]
    assert [cell for cell in last[4:] if cell != "%"] == ["50.0", "60.0", "90.0", "73.8", "71.2", "91.2"]


def test_an_error_that_falls_is_a_gain(tmp_path: Path) -> None:
    folders = [
        write(tmp_path / "own", "fedavg", [2.0, 1.0], metric="rmse"),
        write(tmp_path / "alone", "local_only", [1.5, 3.0], metric="rmse"),
    ]
    (found,) = standings([read_job(folder) for folder in folders])
    assert found.gains == {0: -0.5, 1: 2.0}
    shown = text(folders)
    assert "-0.5" in shown
    assert "+2" in shown
    assert next(line for line in shown.splitlines() if " own " in line).split()[1:] == [
        *("1", "1", "0", "2", "3", "-", "1.5", "2.25", "-"),
    ]


def test_runs_are_compared_with_baselines_of_their_own_seed_and_data(tmp_path: Path) -> None:
    folders = [
        write(tmp_path / "a", "fedavg", [0.5, 0.5]),
        write(tmp_path / "b", "fedavg", [0.7, 0.7], seed=1),
        write(tmp_path / "c", "local_only", [0.6, 0.6]),
        write(tmp_path / "d", "local_only", [0.6, 0.6], seed=1),
        write(tmp_path / "e", "fedavg", [0.9, 0.9], partition={"alpha": 1.0}),
    ]
    found = standings([read_job(folder) for folder in folders])
    assert {each.name: [round(gain, 2) for gain in each.gains.values()] for each in found} == {
        "a": [-0.1, -0.1],
        "b": [0.1, 0.1],
    }
    assert "examples" not in text(folders)  # of several runs the sums alone
    assert who_gains([read_job(folder) for folder in folders[:2]]) == []


def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(write(tmp_path / name, name, scores)) for name, scores in SCORES.items()]
    assert main([*folders, "--plot", str(tmp_path / "plot.png")]) == 0
    said = capsys.readouterr().out
    assert "accuracy of each node on its test part" in said
    assert "who gains by joining, against training alone" in said
