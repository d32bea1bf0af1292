"""The baselines that say whether joining pays: each node by itself, and all data in one place."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from small_federation import small_config

from flsparse.app.settings import SettingsError, check
from flsparse.runs.folder import read_rows
from flsparse.runtime import launch
from flsparse.strategies import STRATEGIES, RoundFailed
from flsparse.tasks import build_task

DENSE = {"values": "raw", "rounding": "nearest", "downlink_values": "raw"}
BY = {"every": 1, "on": "test", "by_node": True}
CLIENT = {"lr": 0.1, "batch_size": 32, "local_epochs": 1, "momentum": 0.0}


def trained(name: str, folder: Path, **changes: Any) -> list[dict[str, Any]]:
    """Run a strategy; return the rows of its nodes."""
    settings = {"num_clients": 3, "num_rounds": 3, "fraction_train": 1.0, "client": CLIENT, "evaluate": BY}
    launch(
        small_config(**{**settings, "strategy": {"name": name}, "codec": DENSE, "output_dir": str(folder), **changes})
    )
    return read_rows(folder / "nodes.jsonl")


def test_a_node_by_itself_trains_as_a_federation_of_one_does(tmp_path: Path) -> None:
    kept = ("received_loss", "trained_loss", "train_loss", "trained_accuracy")
    alone, one = (trained(name, tmp_path / name, num_clients=1) for name in ("local_only", "fedavg"))
    joined = [[row[key] for key in kept] for row in one]
    assert [[row[key] for key in kept] for row in alone] == [pytest.approx(row) for row in joined]


def test_no_model_travels_and_each_node_keeps_its_own(tmp_path: Path) -> None:
    rows = trained("local_only", tmp_path / "run", evaluate={"every": 2, "on": "test"})
    metrics = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert all(row["uplink_bytes"] == row["downlink_bytes"] == 0 for row in metrics)
    assert [row["accuracy"] is None for row in metrics] == [True, False, False]  # every second round, and the last
    for node in range(3):
        mine = [row for row in rows if row["node"] == node]
        assert [row["received_loss"] for row in mine[1:]] == [row["trained_loss"] for row in mine[:-1]]
        assert mine[-1]["evaluate_loss"] == mine[-1]["trained_loss"]
    last = metrics[-1]
    sizes, scores = ([row[key] for row in rows[-3:]] for key in ("test_examples", "evaluate_accuracy"))
    assert last["accuracy"] == pytest.approx(sum(a * b for a, b in zip(sizes, scores, strict=True)) / sum(sizes))


def test_nodes_that_are_drawn_are_those_of_a_federation(tmp_path: Path) -> None:
    drawn = [
        [(row["server_round"], row["node"]) for row in trained(name, tmp_path / name, fraction_train=0.4, num_clients=6)
         if row["examples"] is not None]
        for name in ("local_only", "fedavg")
    ]  # fmt: skip
    assert drawn[0] == drawn[1]


def test_nodes_that_go_on_have_their_models(tmp_path: Path) -> None:
    straight = trained("local_only", tmp_path / "straight")
    trained("local_only", tmp_path / "run", num_rounds=2)
    on = trained("local_only", tmp_path / "run", resume=str(tmp_path / "run"))
    assert [row["trained_loss"] for row in on] == [row["trained_loss"] for row in straight]


def test_a_node_that_has_lost_its_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained("local_only", tmp_path / "run", num_rounds=1)
    monkeypatch.setattr("flsparse.runtime.inprocess.InProcessGrid.load_state_dict", lambda self, state: None)
    monkeypatch.setattr("flsparse.runtime.federation.restore_node_files", lambda *where: None)
    with pytest.raises(RoundFailed, match="this node has lost the model that it trained"):
        trained("local_only", tmp_path / "run", resume=str(tmp_path / "run"))


def test_all_data_in_one_place_is_a_federation_of_one_node(tmp_path: Path) -> None:
    rows = trained("pooled", tmp_path / "pooled", evaluate={"every": 1, "on": "test"})
    trained("fedavg", tmp_path / "one", num_clients=1)
    pooled, one = (load_file(tmp_path / name / "model.safetensors") for name in ("pooled", "one"))
    assert {name: a.tobytes() for name, a in pooled.items()} == {name: a.tobytes() for name, a in one.items()}
    assert {row["node"] for row in rows if row["examples"] is not None} == {0}
    assert sum("evaluate_accuracy" in row for row in rows) == 3  # all measure the model that the run ends with


def test_data_on_devices_are_not_pooled(tmp_path: Path) -> None:
    cfg = small_config(device="cpu", partition={"kind": "own", "roots": ["."]}, strategy={"name": "pooled"})
    with pytest.raises(SettingsError, match=r"strategy=pooled is impossible with partition\.kind=own"):
        check(cfg)
    task = build_task(small_config())
    assert sorted(task.pooled_data().index.tolist()) == sorted(
        place for node in range(task.num_nodes) for place in task.train_data(node).index.tolist()
    )


def test_parts_of_an_update_that_nobody_sends_are_refused() -> None:
    with pytest.raises(ValueError, match="parts: 'norm_bound' has no effect on local_only"):
        launch(small_config(strategy={"name": "local_only"}, parts={"norm_bound": {"max_norm": 1.0}}))
    assert not STRATEGIES["local_only"].central
