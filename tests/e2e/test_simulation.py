"""The same run in process and on Flower's Ray engine: the same weights, the same payload bytes."""

from pathlib import Path
from typing import Any

import pytest
from small_federation import small_config

from flsparse.report.run_folder import read_checkpoint, read_rows
from flsparse.runtime import launch

pytest.importorskip("ray")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_the_same_run_in_process_and_on_ray(tmp_path: Path) -> None:
    summaries: list[dict[str, Any]] = []
    for name in ("inprocess", "simulation"):
        runtime = {"name": name, "num_cpus": 1, "num_gpus": 0.0}
        summaries.append(launch(small_config(num_rounds=3, runtime=runtime, output_dir=str(tmp_path / name))))
    first, second = (read_checkpoint(tmp_path / name)["arrays"] for name in ("inprocess", "simulation"))
    assert list(first) == list(second)
    for key, array in first.items():
        assert array.tobytes() == second[key].tobytes()
    same = ("server_round", "uplink_bytes", "downlink_bytes", "accuracy", "loss", "train_loss", "mask_iou")
    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in ("inprocess", "simulation")]
    assert [[row[key] for key in same] for row in rows[0]] == [[row[key] for key in same] for row in rows[1]]
    assert [summary["failures"] for summary in summaries] == [0, 0]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
def test_what_the_server_raises_comes_out(tmp_path: Path) -> None:
    cfg = small_config(runtime={"name": "simulation"}, output_dir=str(tmp_path / "run"), evaluate={"on": "train"})
    with pytest.raises(ValueError, match=r"evaluate.on='train'"):
        launch(cfg)
