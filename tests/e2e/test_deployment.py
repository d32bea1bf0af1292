"""A real SuperLink and two SuperNodes on loopback."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_federation import small_config

from flsparse.runs.folder import read_checkpoint, read_rows
from flsparse.runtime import launch
from flsparse.runtime.deployment import DeploymentError

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def deployed(folder: Path, **changes: Any) -> dict[str, Any]:
    nodes = {"num_clients": 2, "num_rounds": 2, "fraction_train": 1.0, "runtime": {"name": "deployment"}}
    return small_config(**(nodes | {"output_dir": str(folder)} | changes))


def test_two_rounds_over_a_superlink_equal_two_rounds_in_process(tmp_path: Path) -> None:
    seen: list[int] = []

    class Watcher:
        def on_start(self, info: dict[str, Any]) -> None:
            assert info["num_rounds"] == 2

        def on_round(self, row: dict[str, Any]) -> None:
            seen.append(row["server_round"])

        def on_end(self, summary: dict[str, Any]) -> None:
            seen.append(-1)

    summary = launch(deployed(tmp_path / "deployed"), [Watcher()])
    assert summary["status"] == "completed"
    assert seen == [1, 2, -1]
    here = launch(deployed(tmp_path / "here", runtime={"name": "inprocess"}))
    for key in ("uplink_bytes", "downlink_bytes", "final_accuracy", "final_loss"):
        assert summary[key] == here[key]
    first, second = (read_checkpoint(tmp_path / name)["arrays"] for name in ("deployed", "here"))
    assert all(array.tobytes() == second[name].tobytes() for name, array in first.items())
    # Flower's own count holds our objects and its requests: object trees, hashes, confirmations.
    assert summary["uplink_wire_bytes"] < summary["flwr_inbound_bytes"] < 2 * summary["uplink_wire_bytes"]
    assert summary["downlink_wire_bytes"] < summary["flwr_outbound_bytes"] < 2 * summary["downlink_wire_bytes"]
    logs = {each.name for each in (tmp_path / "deployed" / "logs").iterdir()}
    assert logs == {"superlink.log", "supernode-0.log", "supernode-1.log"}


def test_a_run_that_cannot_start_says_why_and_leaves_no_process(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match=r"evaluate.on='train'"):
        launch(deployed(tmp_path / "run", evaluate={"on": "train"}))
    assert not children_of_run(tmp_path)


def test_a_node_that_dies_leaves_the_run_to_the_others(tmp_path: Path) -> None:
    class Killer:
        def on_start(self, info: dict[str, Any]) -> None:
            pass

        def on_round(self, row: dict[str, Any]) -> None:
            if row["server_round"] == 1:
                for pid in children_of_run(tmp_path, "supernode-1.log"):
                    os.kill(pid, signal.SIGKILL)

        def on_end(self, summary: dict[str, Any]) -> None:
            pass

    strategy = {"name": "sparsyfed", "round_timeout_s": 20}
    summary = launch(deployed(tmp_path / "run", num_rounds=4, strategy=strategy), [Killer()])
    assert (summary["status"], summary["rounds"]) == ("completed", 4)
    assert [row["replies"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")][-1] == 1
    assert not children_of_run(tmp_path)


def test_ctrl_c_ends_the_run_and_its_processes(tmp_path: Path) -> None:
    cfg = deployed(tmp_path / "run", num_rounds=50)
    script = (
        "import json, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell's & ignores it
        f"from flsparse.runtime import launch; print(launch(json.loads({json.dumps(cfg)!r}))['status'])"
    )
    launcher = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 200
        while not read_rows(tmp_path / "run" / "metrics.jsonl") and time.monotonic() < end:
            time.sleep(1.0)
        launcher.send_signal(signal.SIGINT)
        out, _ = launcher.communicate(timeout=300)
    finally:
        launcher.terminate()  # it ends its SuperLink and SuperNodes; leave none behind if the test fails
    assert out.strip().endswith("interrupted")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert summary["rounds"] == len(read_rows(tmp_path / "run" / "metrics.jsonl"))
    assert not children_of_run(tmp_path)


def children_of_run(folder: Path, log: str = "") -> list[int]:
    """Return processes other than this one that write into the run's logs, or into one of them (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            targets = [os.readlink(each) for each in (entry / "fd").iterdir()]
        except OSError:
            continue
        if int(entry.name) != os.getpid() and any(
            target.startswith(str(folder / "run" / "logs" / log)) for target in targets
        ):
            found.append(int(entry.name))
    return found
