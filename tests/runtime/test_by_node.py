"""A run by its nodes: the rows of nodes.jsonl, and what nodes measure of models on their test parts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation_kit import TamperedGrid, failed
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from safetensors.numpy import load_file
from small_federation import small_config

from flsparse.clients import device_app
from flsparse.nets.arrays import load_arrays
from flsparse.runs.folder import read_checkpoint, read_rows
from flsparse.runtime import InProcessGrid, launch, run_federation
from flsparse.runtime.apps import client_app
from flsparse.strategies import STRATEGIES
from flsparse.tasks import build_task
from flsparse.wire.messages import BY_NODE, CLASS_COUNTS, RECORD, record_of

Config = Callable[..., dict[str, Any]]
BY = {"every": 1, "on": "test", "by_node": True}
DENSE = {"values": "raw", "rounding": "nearest", "downlink_values": "raw"}
WAYS = ("uplink_bytes", "downlink_bytes", "uplink_wire_bytes", "downlink_wire_bytes")


def rows_of(folder: Path) -> dict[tuple[int, int], dict[str, Any]]:
    return {(row["server_round"], row["node"]): row for row in read_rows(folder / "nodes.jsonl")}


@pytest.mark.parametrize("strategy", ["fedavg", "sparsyfed", "dppf", "malcom_psgd", "split_ms"])
def test_bytes_of_all_nodes_are_those_of_the_round(strategy: str, config: Config, tmp_path: Path) -> None:
    settings: dict[str, dict[str, Any]] = {
        "malcom_psgd": {"topology": {"name": "ring"}, "num_nodes": 6},
        "split_ms": {"cut": "2", "steps_per_round": 1},
    }
    launch(config(num_rounds=2, strategy={"name": strategy, **settings.get(strategy, {})}, codec={}))
    nodes = rows_of(tmp_path / "run").values()
    for row in read_rows(tmp_path / "run" / "metrics.jsonl"):
        of_round = [node for node in nodes if node["server_round"] == row["server_round"]]
        assert {way: sum(node[way] for node in of_round) for way in WAYS} == {way: row[way] for way in WAYS}
        assert sum(node["examples"] is not None for node in of_round) == row["replies"]


def test_measuring_by_node_changes_no_model_and_no_update(config: Config, tmp_path: Path) -> None:
    plain = launch(config(output_dir=str(tmp_path / "plain"), codec=DENSE))
    measured = launch(config(codec=DENSE, evaluate=BY))
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "run"))
    assert all(array.tobytes() == second[name].tobytes() for name, array in first.items())
    assert plain["uplink_bytes"] == measured["uplink_bytes"]
    assert all("received_loss" not in row for row in rows_of(tmp_path / "plain").values())


def test_each_node_measures_what_it_gets_and_what_it_trains(config: Config, tmp_path: Path) -> None:
    cfg = config(strategy={"name": "fedavg"}, codec=DENSE, evaluate=BY, fraction_train=1.0, num_rounds=3)
    summary = launch(cfg)
    rows, task = rows_of(tmp_path / "run"), build_task(cfg)
    model = task.model()
    for node in range(6):
        share = task.test_share(node)
        assert rows[1, node]["received_accuracy"] == pytest.approx(task.evaluate(model, share)["accuracy"])
        assert rows[1, node]["trained_loss"] < rows[1, node]["received_loss"]
        assert rows[1, node]["test_examples"] == len(share)
        assert rows[1, node]["class_counts"] == np.bincount(task.train_data(node).targets, minlength=10).tolist()
        assert rows[1, node]["update_norm"] > 0
    load_arrays(model, read_checkpoint(tmp_path / "run")["arrays"])
    ends = {node: task.evaluate(model, task.test_share(node))["accuracy"] for node in range(6)}
    for node, end in ends.items():
        assert rows[3, node]["evaluate_accuracy"] == pytest.approx(end)
        assert "evaluate_accuracy" not in rows[2, node]
    assert summary["mean_node_accuracy"] == pytest.approx(np.mean(list(ends.values())))
    assert summary["worst_node_accuracy"] == pytest.approx(min(ends.values()))
    last = read_rows(tmp_path / "run" / "metrics.jsonl")[-1]
    assert last["evaluate_accuracy"] == pytest.approx(last["accuracy"])  # the shares are the test set


def test_an_update_is_as_long_as_the_node_has_moved(config: Config, tmp_path: Path) -> None:
    cfg = config(strategy={"name": "fedavg"}, codec=DENSE, evaluate=BY, fraction_train=1.0, num_rounds=1, num_clients=1)
    launch(cfg)
    start = {name: each.detach().numpy() for name, each in build_task(cfg).model().named_parameters()}
    end = load_file(tmp_path / "run" / "model.safetensors")
    norm = np.sqrt(sum(np.square(end[name].astype(np.float64) - array).sum() for name, array in start.items()))
    assert rows_of(tmp_path / "run")[1, 0]["update_norm"] == pytest.approx(norm, rel=1e-6)


def test_rows_after_the_checkpoint_are_written_again(config: Config, tmp_path: Path) -> None:
    client = {"lr": 0.1, "batch_size": 32, "local_epochs": 1}
    cfg = config(evaluate=BY, client=client, strategy={"name": "fedavg"}, codec=DENSE)
    launch(cfg | {"output_dir": str(tmp_path / "straight")})
    launch(cfg | {"num_rounds": 2})
    launch(cfg | {"resume": str(tmp_path / "run")})
    kept = ("examples", "train_loss", "received_accuracy", "trained_accuracy", "class_counts", "update_norm")
    one, two = rows_of(tmp_path / "straight"), rows_of(tmp_path / "run")
    trained = [key for key, row in one.items() if row["examples"] is not None]
    assert [[two[key].get(each) for each in kept] for key in trained] == [
        [one[key][e] for e in kept] for key in trained
    ]
    assert len(read_rows(tmp_path / "run" / "nodes.jsonl")) == len(two)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "split_ms"])
def test_every_method_with_whole_models_measures(strategy: str, config: Config, tmp_path: Path) -> None:
    ring = {"topology": {"name": "ring"}, "num_nodes": 6} if strategy in ("malcom_psgd", "choco_sgd", "d_psgd") else {}
    launch(config(num_rounds=1, fraction_train=1.0, evaluate=BY, strategy={"name": strategy, **ring}, codec={}))
    rows = rows_of(tmp_path / "run")
    assert len(rows) == 6
    measured = [row["trained_accuracy"] for row in rows.values() if "trained_accuracy" in row]
    assert len(measured) == (1 if strategy == "pooled" else 6)
    assert all(0 <= accuracy <= 1 for accuracy in measured)
    assert all(sum(row["class_counts"]) == 90 for row in rows.values())


def test_split_learning_cannot_measure_by_node(config: Config) -> None:
    strategy = {"name": "split_ms", "cut": "2", "steps_per_round": 1}
    with pytest.raises(ValueError, match=r"evaluate\.by_node=true does not go with strategy=split_ms"):
        launch(config(strategy=strategy, codec={}, evaluate=BY))


@pytest.mark.parametrize(("allowed", "asked"), [(True, True), (True, False), (False, True)])
def test_class_counts_are_told_where_the_owner_allows_and_the_server_asks(allowed: bool, asked: bool) -> None:
    task = build_task(small_config(num_clients=2))
    grid = InProcessGrid(device_app(lambda _: task, tells_class_counts=allowed), 2)
    content = RecordDict({RECORD: ConfigRecord({BY_NODE: True} if asked else {})})
    messages = [Message(content, node, MessageType.QUERY) for node in grid.get_node_ids()]
    said = [record_of(reply.content) for reply in grid.send_and_receive(messages)]
    assert [CLASS_COUNTS in each for each in said] == [allowed and asked] * 2
    if allowed and asked:
        assert [np.sum(each[CLASS_COUNTS]) for each in said] == [270, 270]
    assert ["num-test-examples" in each for each in said] == [asked] * 2


def test_a_node_that_fails_is_there_with_the_reason(config: Config, tmp_path: Path) -> None:
    cfg = config(num_rounds=1, fraction_train=1.0)
    inner = InProcessGrid(client_app(cfg), 6)
    first = min(inner.get_node_ids())

    def tamper(reply: Message) -> list[Message]:
        is_fit = reply.metadata.message_type == MessageType.TRAIN
        return [failed(reply) if is_fit and reply.metadata.src_node_id == first else reply]

    run_federation(TamperedGrid(inner, tamper), cfg)
    found = [(row["failures"], row["examples"], row["update_norm"]) for row in rows_of(tmp_path / "run").values()]
    assert sorted(found, key=str) == [(["the battery is empty"], None, None), *[([], 90.0, None)] * 5]
