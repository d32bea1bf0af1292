"""The run folder: files, resuming, refusing, failing disks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors import SafetensorError
from safetensors.numpy import load_file

from flsparse.runs.folder import RunFolder, RunFolderError, read_checkpoint, read_rows, restore_node_files

CONFIG = {"seed": 1, "strategy": {"name": "fedavg"}}


def test_a_run_leaves_its_files(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", CONFIG)
    folder.on_start({"first_round": 1})
    folder.on_round({"server_round": 1, "accuracy": np.float32(0.5), "loss": float("nan"), "layers": {"a": 0.1}})
    assert read_rows(folder.path / "metrics.jsonl") == [
        {"schema_version": 1, "server_round": 1, "accuracy": 0.5, "loss": None, "layers": {"a": 0.1}}
    ]
    folder.save_checkpoint(1, {"arrays": {"w": np.ones(2)}})
    folder.save_model({"w": np.arange(6.0).reshape(2, 3).T})
    folder.on_end({"status": "completed", "final_loss": float("inf")})
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == CONFIG
    assert json.loads((folder.path / "summary.json").read_text()) == {
        "schema_version": 1,
        "status": "completed",
        "final_loss": None,
    }
    np.testing.assert_array_equal(load_file(folder.path / "model.safetensors")["w"], np.arange(6.0).reshape(2, 3).T)
    assert read_checkpoint(folder.path)["round"] == 1
    assert sorted(each.name for each in folder.path.iterdir()) == [
        "checkpoint",
        "config.yaml",
        "metrics.jsonl",
        "model.safetensors",
        "nodes.jsonl",
        "summary.json",
    ]


def finished(path: Path) -> RunFolder:
    folder = RunFolder(path, CONFIG)
    folder.on_start({})
    for server_round in (1, 2, 3):
        folder.on_nodes([{"server_round": server_round, "node": node} for node in range(server_round)])
        folder.on_round({"server_round": server_round})
    folder.save_checkpoint(2, {})
    folder.on_end({"status": "interrupted"})
    return folder


def test_rows_of_nodes_are_cut_where_the_run_goes_on(tmp_path: Path) -> None:
    finished(tmp_path)
    with (tmp_path / "nodes.jsonl").open("a") as file:
        file.write('{"server_round": 3, "no')  # as a crash leaves it
    folder = RunFolder(tmp_path, CONFIG, resume=True)
    folder.on_start({"first_round": 3})
    folder.on_nodes([{"server_round": 3, "node": 7, "update_norm": float("inf")}])
    folder.on_nodes([])
    rows = read_rows(tmp_path / "nodes.jsonl")
    assert [(row["server_round"], row["node"]) for row in rows] == [(1, 0), (2, 0), (2, 1), (3, 7)]
    assert rows[-1] == {"schema_version": 1, "server_round": 3, "node": 7, "update_norm": None}


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    finished(tmp_path)
    with pytest.raises(RunFolderError, match="holds a run"):
        RunFolder(tmp_path, CONFIG)
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 3


def test_resuming_keeps_the_rounds_before_and_drops_those_after(tmp_path: Path) -> None:
    finished(tmp_path)
    folder = RunFolder(tmp_path, CONFIG, resume=True)
    folder.on_start({"first_round": 3})
    assert not (tmp_path / "summary.json").exists()  # until the run ends again
    folder.on_round({"server_round": 3, "again": True})
    assert [row["server_round"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert read_rows(tmp_path / "metrics.jsonl")[2]["again"]


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    finished(tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"server_round": 4, "acc')
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 3


def test_a_full_disk_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path, CONFIG)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunFolderError, match=r"round 1 .*No space left"):
        folder.on_round({"server_round": 1})
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(RunFolderError, match=r"summary.json.*No space left"):
        folder.on_end({})
    with pytest.raises(RunFolderError, match="No space left"):
        folder.save_model({"w": np.zeros(1)})

    def full_in_rust(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("flsparse.runs.folder.save_file", full_in_rust)
    with pytest.raises(RunFolderError, match=r"cannot write the model .*No space left"):
        folder.save_model({"w": np.zeros(1)})
    assert not list(tmp_path.glob("*.partial"))


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot write"):
        RunFolder(tmp_path / "file" / "run", CONFIG)


def test_what_nodes_keep_is_saved_with_the_checkpoint(tmp_path: Path) -> None:
    files, folder = tmp_path / "nodes", RunFolder(tmp_path / "run", CONFIG)
    (files / "node-1").mkdir(parents=True)
    for server_round in (1, 2, 3):
        (files / "node-1" / "new").write_text(f"after round {server_round}")
        (files / "node-1" / "new").replace(files / "node-1" / "residual")  # as NodeState writes: never in place
        if server_round < 3:
            folder.save_checkpoint(server_round, {}, files)
    restore_node_files(folder.path, 2, files)
    assert (files / "node-1" / "residual").read_text() == "after round 2"
    assert [each.name for each in (folder.path / "checkpoint").glob("nodes-*")] == ["nodes-2"]
