"""Arrays that stay on their node, and a base that a node is sent once, on two SuperNodes of a real SuperLink."""

from pathlib import Path
from typing import Any

import pytest
from small_federation import small_config

from flsparse.runs.folder import read_checkpoint, read_rows
from flsparse.runtime import launch

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_supernodes_keep_their_own_arrays_as_nodes_in_process_do(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "num_clients": 2,
        "num_rounds": 2,
        "fraction_train": 1.0,
        "model": {"name": "cnn", "width": 8, "norm": "batch", "local": ["10.*", "12.*"]},
        "strategy": {"name": "fedavg"},
        "codec": {"values": "raw", "rounding": "nearest", "downlink_values": "raw"},
    }
    summaries = {
        runtime: launch(small_config(**settings, runtime={"name": runtime}, output_dir=str(tmp_path / runtime)))
        for runtime in ("inprocess", "deployment")
    }
    for key in ("uplink_bytes", "downlink_bytes", "final_accuracy", "worst_node_accuracy", "dense_bytes_per_model"):
        assert summaries["deployment"][key] == summaries["inprocess"][key], key
    here, there = (read_checkpoint(tmp_path / runtime)["arrays"] for runtime in summaries)
    assert not any(name.startswith(("10.", "12.")) for name in there)
    assert all(array.tobytes() == there[name].tobytes() for name, array in here.items())
    rows = [read_rows(tmp_path / runtime / "metrics.jsonl") for runtime in summaries]
    assert [row["accuracy"] for row in rows[0]] == [row["accuracy"] for row in rows[1]]
