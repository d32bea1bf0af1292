"""Nodes with data of their own: a run over folders, with the real messages, and no data on the server."""

import json
import logging
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_federation import small_config

from flsparse.nets.arrays import load_arrays
from flsparse.runs.folder import read_checkpoint, read_rows
from flsparse.runtime import launch
from flsparse.tasks import build_task

pytest.importorskip("pyarrow")

ROUNDS: dict[str, Any] = {"num_clients": 2, "num_rounds": 3, "fraction_train": 1.0}


def draw(folder: Path, count: int, shade: int, seed: int, size: int = 8) -> None:
    folder.mkdir(parents=True)
    stream = np.random.default_rng(seed)
    for number in range(count):
        pixels = stream.normal(shade, 40, (size, size)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture
def sites(tmp_path: Path) -> list[str]:
    draw(tmp_path / "east" / "train" / "ok", 20, 60, 0)
    draw(tmp_path / "east" / "train" / "torn", 20, 130, 1)
    draw(tmp_path / "west" / "train" / "ok", 15, 60, 2)
    draw(tmp_path / "west" / "train" / "spot", 15, 200, 3)
    draw(tmp_path / "west" / "test" / "ok", 10, 60, 4)
    draw(tmp_path / "west" / "test" / "spot", 30, 200, 5)
    return [str(tmp_path / "east"), str(tmp_path / "west")]


def own(sites: list[str], tmp_path: Path, **changes: Any) -> dict[str, Any]:
    dataset = {"name": "folder", "root": None, "cache": str(tmp_path / "cache"), "validation_fraction": 0.0}
    return small_config(
        dataset=dataset,
        partition={"kind": "own", "roots": sites, "server_root": None, **changes.pop("partition", {})},
        output_dir=str(tmp_path / "run"),
        **{**ROUNDS, **changes},
    )


@pytest.mark.parametrize("strategy", [{"name": "fedavg"}, {"name": "sparsyfed", "sparsity": 0.8}])
def test_nodes_evaluate_where_the_server_has_no_data(
    strategy: dict[str, Any], sites: list[str], tmp_path: Path
) -> None:
    cfg = own(sites, tmp_path, strategy=strategy, num_rounds=8)
    summary = launch(cfg)
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert summary["failures"] == 0
    assert summary["final_accuracy"] == rows[-1]["accuracy"]
    task = build_task(cfg)
    model = task.model()
    if strategy["name"] == "fedavg":
        assert summary["final_accuracy"] > 0.5
        load_arrays(model, read_checkpoint(tmp_path / "run")["arrays"])
        parts = [each.evaluate(model, each.test_data()) for each in task.nodes]
        sizes = [len(each.test_data()) for each in task.nodes]
        assert sizes == [8, 40]  # the second is larger than what the node trains on
        pooled = sum(part["accuracy"] * size for part, size in zip(parts, sizes, strict=True)) / sum(sizes)
        assert summary["final_accuracy"] == pytest.approx(pooled)
    assert rows[0]["uplink_wire_bytes"] > rows[1]["uplink_wire_bytes"]  # the survey and the hello


@pytest.mark.parametrize(("every", "measured"), [(2, [2, 4, 5]), (9, [5])])
def test_nodes_evaluate_as_often_as_is_asked(every: int, measured: list[int], sites: list[str], tmp_path: Path) -> None:
    strategy = {"name": "fedavg"}
    launch(own(sites, tmp_path, strategy=strategy, num_rounds=5, evaluate={"every": every, "on": "test"}))
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["server_round"] for row in rows if row["accuracy"] is not None] == measured
    nodes = read_rows(tmp_path / "run" / "nodes.jsonl")
    assert sorted({row["server_round"] for row in nodes if "evaluate_accuracy" in row}) == measured


def test_nodes_of_their_own_measure_both_models_on_their_own_test_parts(sites: list[str], tmp_path: Path) -> None:
    by = {"every": 3, "on": "test", "by_node": True}
    for name, strategy in (("run", {"name": "fedavg"}), ("alone", {"name": "local_only"})):
        launch(own(sites, tmp_path, strategy=strategy, evaluate=by) | {"output_dir": str(tmp_path / name)})
        rows = read_rows(tmp_path / name / "nodes.jsonl")
        assert [row["test_examples"] for row in rows] == [8, 40] * 3
        assert all({"received_accuracy", "trained_accuracy"} <= row.keys() for row in rows)
        assert ["evaluate_accuracy" in row for row in rows] == [False] * 4 + [True] * 2
        assert [sum(row["class_counts"]) for row in rows] == [32, 30] * 3


def test_the_server_evaluates_on_a_folder_of_its_own(sites: list[str], tmp_path: Path) -> None:
    for name, shade in (("ok", 60), ("torn", 130), ("spot", 200)):
        draw(tmp_path / "server" / "test" / name, 5, shade, 9)
    cfg = own(sites, tmp_path, partition={"server_root": str(tmp_path / "server")})
    launch(cfg)
    row = read_rows(tmp_path / "run" / "metrics.jsonl")[-1]
    assert row["accuracy"] is not None
    assert "evaluate_accuracy" not in row
    assert (15 * row["accuracy"]) == pytest.approx(round(15 * row["accuracy"]))


def test_a_node_that_differs_is_told_and_left_out(
    sites: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draw(tmp_path / "north" / "train" / "ok", 6, 60, 0, size=9)
    draw(tmp_path / "north" / "train" / "torn", 6, 130, 1, size=9)
    with caplog.at_level(logging.WARNING):
        summary = launch(own([*sites, str(tmp_path / "north")], tmp_path, num_clients=3))
    assert "node of partition 2 has shape [1, 9, 9], and [1, 8, 8] is what most have" in caplog.text
    assert "this node has samples of shape [1, 9, 9], and [1, 8, 8] is agreed" in caplog.text
    assert summary["status"] == "completed"
    assert [row["replies"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == [2, 2, 2]


def test_a_run_that_goes_on_keeps_its_classes(sites: list[str], tmp_path: Path) -> None:
    cfg = own(sites, tmp_path)
    straight = launch(cfg | {"output_dir": str(tmp_path / "straight")})
    launch(cfg | {"num_rounds": 1})
    draw(tmp_path / "west" / "train" / "new", 3, 90, 8)  # in the meantime: told and left out
    summary = launch(cfg | {"resume": str(tmp_path / "run")})
    assert summary["rounds"] == 3
    agreed = json.loads(read_checkpoint(tmp_path / "run")["agreed"])
    assert agreed["labels"] == ["ok", "spot", "torn"]
    assert straight["failures"] == 0
    assert summary["failures"] >= 1


def test_own_files_train_as_one_file_by_groups_does(tmp_path: Path) -> None:
    stream = np.random.default_rng(0)
    rows: dict[str, list[str]] = {}
    for site in ("a", "b", "c"):
        numbers = stream.normal(5, 3, (30, 3))
        rows[site] = [f"{x},{y},{z},{'high' if x + y > z else 'low'},{site}" for x, y, z in numbers]
        (tmp_path / site).mkdir()
        (tmp_path / site / "plant.csv").write_text("\n".join(["x,y,z,state,site", *rows[site]]))
    (tmp_path / "plant.csv").write_text("\n".join(["x,y,z,state,site", *chain(*rows.values())]))
    dataset = {"name": "table", "file": "plant.csv", "target": "state", "group": "site", "validation_fraction": 0.0}
    common: dict[str, Any] = {**ROUNDS, "num_clients": 3, "model": {"name": "mlp"}, "strategy": {"name": "fedavg"}}
    common["codec"] = {"values": "raw", "rounding": "nearest", "downlink_values": "raw"}  # evaluations change deltas
    partition = {"kind": "own", "roots": [str(tmp_path / site) for site in rows], "server_root": None}
    apart = launch(small_config(dataset=dataset, partition=partition, output_dir=str(tmp_path / "apart"), **common))
    together = launch(
        small_config(
            dataset=dataset | {"root": str(tmp_path)},
            partition={"kind": "natural"},
            output_dir=str(tmp_path / "together"),
            **common,
        )
    )
    first, second = (read_checkpoint(tmp_path / name)["arrays"] for name in ("apart", "together"))
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes()
    assert apart["final_accuracy"] == pytest.approx(together["final_accuracy"])
    assert apart["uplink_bytes"] == together["uplink_bytes"]


def test_strategies_that_evaluate_on_the_server_want_data_there(sites: list[str], tmp_path: Path) -> None:
    cfg = own(sites, tmp_path, strategy={"name": "split_ms", "cut": "5"})
    with pytest.raises(ValueError, match="strategy=split_ms evaluates on the server, which has no data"):
        launch(cfg)


def test_a_series_of_each_node(tmp_path: Path) -> None:
    hours = np.arange(60)
    roots = []
    for unit in (1, 2):
        heat = np.sin(hours / 5 * unit)
        (tmp_path / str(unit)).mkdir()
        lines = [f"{hour},{value}" for hour, value in zip(hours, heat, strict=True)]
        (tmp_path / str(unit) / "log.csv").write_text("\n".join(["hour,heat", *lines]))
        roots.append(str(tmp_path / str(unit)))
    dataset = {"name": "series", "file": "log.csv", "target": "heat", "time": "hour", "window": 8, "horizon": 2}
    cfg = small_config(
        dataset={**dataset, "validation_fraction": 0.0},
        partition={"kind": "own", "roots": roots},
        model={"name": "mlp"},
        strategy={"name": "fedavg"},
        output_dir=str(tmp_path / "run"),
        **ROUNDS,
    )
    summary = launch(cfg)
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert summary["final_accuracy"] is None
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert torch.isfinite(torch.tensor(rows[-1]["loss"]))
