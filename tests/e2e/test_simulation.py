"""The same run in process and on Flower's Ray engine: the same weights, the same payload bytes."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_federation import small_config

from flsparse.runs.folder import read_checkpoint, read_rows
from flsparse.runtime import launch

pytest.importorskip("ray")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.parametrize("local", [None, ["10.*", "12.*"]])
def test_the_same_run_in_process_and_on_ray(tmp_path: Path, local: list[str] | None) -> None:
    model = {"name": "cnn", "width": 8, "local": local}
    summaries: list[dict[str, Any]] = []
    for name in ("inprocess", "simulation"):
        runtime = {"name": name, "num_cpus": 1, "num_gpus": 0.0}
        summaries.append(
            launch(small_config(num_rounds=3, runtime=runtime, model=model, output_dir=str(tmp_path / name)))
        )
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


@pytest.fixture
def ray_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Start a Ray cluster of its own, with a folder for what its nodes keep; yield its address."""
    monkeypatch.setenv("FLSPARSE_STATE_DIR", str(tmp_path / "nodes"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray = str(Path(sys.executable).parent / "ray")
    with tempfile.TemporaryDirectory(prefix="ray") as short:  # the path of a socket has 107 characters at most
        command = [ray, "start", "--head", "--block", f"--port={port}", "--num-cpus=2", f"--temp-dir={short}"]
        cluster = subprocess.Popen(
            [*command, "--include-dashboard=false", "--disable-usage-stats"],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert cluster.stdout is not None
        while "runtime started" not in (line := cluster.stdout.readline()):
            assert line, "the cluster did not start"
        yield f"127.0.0.1:{port}"
        os.killpg(cluster.pid, signal.SIGTERM)
        cluster.communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_is_up_is_used_and_left_up(ray_cluster: str, tmp_path: Path) -> None:
    theirs = {"name": "simulation", "num_cpus": 1, "num_gpus": 0.0, "ray_address": ray_cluster}
    there, here = (
        launch(small_config(num_rounds=2, runtime=runtime, output_dir=str(tmp_path / str(runtime["name"]))))
        for runtime in (theirs, {"name": "inprocess"})
    )
    for key in ("uplink_bytes", "downlink_bytes", "final_accuracy", "final_loss", "failures"):
        assert there[key] == here[key]
    with socket.create_connection(("127.0.0.1", int(ray_cluster.rpartition(":")[2])), timeout=10):
        pass
