"""DPPF in process, on Ray and over a SuperLink: the same weights, the same payload bytes."""

from pathlib import Path
from typing import Any

import pytest
from small_federation import small_config

from flsparse.runs.folder import read_checkpoint, read_rows
from flsparse.runtime import launch

SAME = ("uplink_bytes", "downlink_bytes", "accuracy", "loss", "train_loss", "width", "width_target", "rejoined")


def dppf(folder: Path, runtime: str, **changes: Any) -> dict[str, Any]:
    settings = {
        "num_clients": 2,
        "num_rounds": 3,
        "fraction_train": 1.0,
        "model": {"name": "cnn", "width": 8, "norm": "batch"},
        "client": {"lr": 0.1, "lr_schedule": "cosine", "batch_size": 32, "local_steps": 3, "momentum": 0.9},
        "codec": {"values": "int8", "rounding": "nearest", "downlink_values": "int8"},
        "strategy": {"name": "dppf", "valley_every": 3, "valley_steps": 4, "valley_samples": 50},
        "runtime": {"name": runtime, "num_cpus": 1, "num_gpus": 0.0},
        "output_dir": str(folder),
    }
    return small_config(**(settings | changes))


def equal_runs(first: Path, second: Path) -> bool:
    a, b = (read_checkpoint(folder)["arrays"] for folder in (first, second))
    assert list(a) == list(b)
    rows = [read_rows(folder / "metrics.jsonl") for folder in (first, second)]
    assert [[row.get(k) for k in SAME] for row in rows[0]] == [[row.get(k) for k in SAME] for row in rows[1]]
    assert rows[0][-1].get("mean_valley") == rows[1][-1].get("mean_valley")
    assert rows[0][-1]["width"] > 0
    assert {row["rejoined"] for row in rows[0]} == {0}
    return all(array.tobytes() == b[name].tobytes() for name, array in a.items())


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_dppf_in_process_and_on_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    for runtime in ("inprocess", "simulation"):
        assert launch(dppf(tmp_path / runtime, runtime))["failures"] == 0
    assert equal_runs(tmp_path / "inprocess", tmp_path / "simulation")


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_dppf_in_process_and_over_a_superlink(tmp_path: Path) -> None:
    for runtime in ("inprocess", "deployment"):
        brief = {"num_rounds": 2, "model": {"name": "cnn", "width": 8}, "strategy": {"name": "dppf"}}
        assert launch(dppf(tmp_path / runtime, runtime, **brief))["failures"] == 0
    assert equal_runs(tmp_path / "inprocess", tmp_path / "deployment")
