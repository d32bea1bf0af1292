"""Split learning in process, on Ray and over a SuperLink: the same weights, the same payload bytes."""

from pathlib import Path
from typing import Any

import pytest
from small_federation import small_config

from flsparse.runs.folder import read_checkpoint, read_rows
from flsparse.runtime import launch

SAME = ("server_round", "uplink_bytes", "downlink_bytes", "accuracy", "train_loss", "uplink_bits_per_element")


def split_config(folder: Path, runtime: str, **strategy: Any) -> dict[str, Any]:
    settings = {"name": "split_ms", "cut": "2", "steps_per_round": 2, "batches_per_message": 2}
    return small_config(
        num_clients=2,
        num_rounds=2,
        fraction_train=1.0,
        client={"lr": 0.1, "lr_final": 0.0, "batch_size": 16, "momentum": 0.9, "weight_decay": 0.0005},
        strategy=settings | strategy,
        runtime={"name": runtime, "num_cpus": 1, "num_gpus": 0.0},
        output_dir=str(folder / runtime),
    )


def assert_equal_runs(folder: Path, other: str) -> None:
    rows = [read_rows(folder / name / "metrics.jsonl") for name in ("inprocess", other)]
    assert [[row[key] for key in SAME] for row in rows[0]] == [[row[key] for key in SAME] for row in rows[1]]
    first, second = (read_checkpoint(folder / name)["arrays"] for name in ("inprocess", other))
    assert list(first) == list(second)
    for key, array in first.items():
        assert array.tobytes() == second[key].tobytes()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.parametrize("labels", ["sent", "kept"])
def test_the_same_run_in_process_and_on_ray(tmp_path: Path, labels: str) -> None:
    pytest.importorskip("ray")
    summaries = [launch(split_config(tmp_path, name, labels=labels)) for name in ("inprocess", "simulation")]
    assert [summary["failures"] for summary in summaries] == [0, 0]
    assert_equal_runs(tmp_path, "simulation")


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_a_short_run_over_a_superlink_equals_one_in_process(tmp_path: Path) -> None:
    summary = launch(split_config(tmp_path, "deployment"))
    assert summary["status"] == "completed"
    launch(split_config(tmp_path, "inprocess"))
    assert_equal_runs(tmp_path, "deployment")
