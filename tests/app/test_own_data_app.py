"""Data of one's own from the command line: nodes follow from the data, notes, options of one's own, refusals."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from app_kit import Run

pytest.importorskip("pyarrow")

TABLE = ("dataset=table", "dataset.file=plant.csv", "dataset.target=state", "dataset.group=line", "model=mlp")


@pytest.fixture(autouse=True)
def _plant(run: Run, tmp_path: Path) -> None:
    lines = [f"{i},{i * i % 7},{'ABC'[i % 3]},{'ok' if i % 2 else 'torn'}" for i in range(30)]
    (tmp_path / "plant.csv").write_text("\n".join(["speed,heat,line,state", *lines]))


def test_nodes_follow_from_the_data(run: Run, launched: list[dict[str, Any]]) -> None:
    assert run(*TABLE) == 0
    assert launched[0]["num_clients"] == 3


def test_each_job_of_a_sweep_counts_its_own(run: Run, launched: list[dict[str, Any]]) -> None:
    assert run("-m", *TABLE[:-2], "model=mlp", "dataset.group=line,heat", "num_rounds=1") == 0
    assert [cfg["num_clients"] for cfg in launched] == [3, 4]


def test_nodes_that_take_no_part_are_said(
    run: Run, launched: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*TABLE, "num_clients=2") == 0
    assert launched[0]["num_clients"] == 2
    assert "flsparse: note: num_clients=2 of the 3 natural nodes take part; left out are" in capsys.readouterr().err


def test_options_of_ones_own(run: Run, launched: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "mine" / "dataset").mkdir(parents=True)
    (tmp_path / "mine" / "experiment").mkdir()
    dataset = {"name": "table", "file": "plant.csv", "target": "state", "group": "line", "decimal": "."}
    own = {"dataset": dataset, "num_clients": None, "partition": {"kind": "natural", "alpha": 1.0}}
    (tmp_path / "mine" / "dataset" / "plant.yaml").write_text(f"# @package _global_\n{yaml.safe_dump(own)}")
    pilot = {"defaults": [{"override /dataset": "plant"}, {"override /model": "mlp"}], "num_rounds": 2}
    (tmp_path / "mine" / "experiment" / "pilot.yaml").write_text(f"# @package _global_\n{yaml.safe_dump(pilot)}")
    assert run("--config-dir", "mine", "dataset=plant", "model=mlp", "dataset.decimal=.") == 0
    assert run("--config-dir", "mine", "experiment=pilot") == 0
    assert [cfg["dataset"]["file"] for cfg in launched] == ["plant.csv"] * 2
    assert [cfg["num_rounds"] for cfg in launched] == [30, 2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*TABLE[:2], "dataset.target=stat", *TABLE[3:]), "plant.csv has no column 'stat' (dataset.target), only"),
        ((*TABLE[:2], *TABLE[3:]), "dataset.target must be set for table"),
        ((*TABLE, "partition.kind=iid"), "num_clients=null is impossible: partition.kind=iid divides the data"),
        ((*TABLE, "superlink=localhost:9093", "runtime=deployment"), "num_clients=null is impossible with superlink="),
        ((*TABLE, "partition.kind=own"), "partition.kind=own needs the folder of each node on this machine"),
        (
            (*TABLE, "partition.kind=own", "partition.roots=[.,.]", "num_clients=3"),
            "num_clients=3 is not the number of folders in partition.roots, 2",
        ),
        ((*TABLE, "partition.kind=own", "partition.roots=[.,nowhere]"), "node 1: no file"),
        (
            (*TABLE, "partition.kind=own", "partition.roots=[.,.]", "evaluate.on=validation"),
            "evaluate.on=validation is impossible with partition.kind=own",
        ),
        (("--config-dir", ".", "dataset=plant"), "dataset=plant: it is one of"),
    ],
)
def test_refusals_are_one_line(
    arguments: tuple[str, ...], said: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"flsparse: {said}")
    assert error.count("\n") == 1


def test_a_dry_run_shows_what_each_node_holds(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*TABLE, "dataset.validation_fraction=0", "dry_run=true") == 0
    said = capsys.readouterr().out
    table = said[said.index("what the nodes hold") :].splitlines()
    rows = [re.findall(r"\w[\w ]*\w|\d", line) for line in table]
    assert ["node", "to train on", "ok", "torn"] in rows
    counts = {row[0]: [int(cell) for cell in row[1:]] for row in rows if len(row) == 4 and row[0].isdigit()}
    assert counts.keys() == {"0", "1", "2"}
    assert all(cells[0] == cells[1] + cells[2] == 8 for cells in counts.values())


def test_a_dry_run_says_what_is_odd(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream = np.random.default_rng(0)
    trained, tested = stream.normal(size=(40, 3)).astype(np.float32), stream.normal(size=(10, 3)).astype(np.float32)
    tested[:4] = trained[[3, 5, 5, 39]]
    labels = np.arange(40) % 3
    labels[7] = -1
    arrays: dict[str, Any] = {"train_inputs": trained, "train_targets": labels, "train_groups": np.repeat([0, 1], 20)}
    arrays |= {"test_inputs": tested, "test_targets": np.arange(10) % 2, "test_groups": np.zeros(10, np.int64)}
    np.savez(tmp_path / "set.npz", **arrays)
    chosen = ("dataset=arrays", "dataset.file=set.npz", "dataset.validation_fraction=0", "model=mlp", "dry_run=true")
    odd = ("objective=classification", "objective.ignore_label=-1", "evaluate.by_node=true", "num_clients=2")
    assert run(*chosen, *odd, "partition.kind=natural") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "nothing to test on is 2" in said
    assert "1 of 40 targets to train on have no label, and are not learned from" in said
    assert "node 1 has nothing to test on" in said
    assert "4 of 10 samples to test on are among those to train on, byte by byte" in said


def test_a_dry_run_of_nodes_by_themselves_sends_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*TABLE, "strategy=local_only", "dry_run=true") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "no model, either way: strategy=local_only" in said
    assert "to test on are among" not in said
