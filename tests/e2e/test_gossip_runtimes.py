"""Decentralized training on all three runtimes: the same models, node by node, and the same payload bytes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_federation import small_config

from flsparse.runs.folder import read_rows
from flsparse.runtime import launch

SAME = (
    *("server_round", "uplink_bytes", "downlink_bytes", "graph_bytes", "accuracy", "loss", "consensus_error"),
    *("mean_node_accuracy", "worst_node_accuracy", "replies"),
)


def gossip_config(folder: Path, runtime: str, graph: str, nodes: int, rounds: int) -> dict[str, Any]:
    return small_config(
        num_clients=nodes,
        num_rounds=rounds,
        fraction_train=1.0,
        model={"name": "mlp", "hidden": 16},
        client={"lr": 0.1, "batch_size": 16, "local_steps": 2},
        codec={},
        strategy={
            "name": "malcom_psgd",
            "topology": {"name": graph},
            "num_nodes": nodes,
            "mu": 1e-3,
            "evaluate_every": 2,
        },
        evaluate={"every": 2, "on": "test"},
        runtime={"name": runtime, "num_cpus": 1, "num_gpus": 0.0} if runtime == "simulation" else {"name": runtime},
        output_dir=str(folder),
    )


def compare(here: Path, there: Path, nodes: int) -> None:
    rows = [read_rows(folder / "metrics.jsonl") for folder in (here, there)]
    assert [[row.get(key) for key in SAME] for row in rows[0]] == [[row.get(key) for key in SAME] for row in rows[1]]
    assert "consensus_error" in rows[0][-1]
    for file in ["model.safetensors", *(f"node-models/{node}.safetensors" for node in range(nodes))]:
        first, second = load_file(here / file), load_file(there / file)
        assert list(first) == list(second)
        for name, array in first.items():
            np.testing.assert_array_equal(array, second[name])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_sixteen_nodes_on_a_torus_in_process_and_on_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    for runtime in ("inprocess", "simulation"):
        assert launch(gossip_config(tmp_path / runtime, runtime, "torus", 16, 3))["status"] == "completed"
    compare(tmp_path / "inprocess", tmp_path / "simulation", 16)


@pytest.mark.e2e
@pytest.mark.timeout(400)
def test_four_nodes_over_a_superlink_and_in_process(tmp_path: Path) -> None:
    summary = launch(gossip_config(tmp_path / "deployment", "deployment", "ring", 4, 3))
    assert summary["status"] == "completed"
    assert summary["failures"] == 0
    launch(gossip_config(tmp_path / "inprocess", "inprocess", "ring", 4, 3))
    compare(tmp_path / "inprocess", tmp_path / "deployment", 4)
