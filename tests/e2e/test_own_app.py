"""An app with data and a network of its own: its code travels, and runs on nodes that have never seen it."""

import json
import shutil
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

from flsparse.runs.folder import read_rows
from flsparse.runtime.deployment import _CONNECTION, Cli, Processes, _free_ports, _listens

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
APP = Path(__file__).resolve().parents[2] / "examples" / "own-app"


def readings(folder: Path, seed: int, rows: int) -> Path:
    """Write a node's own table: worn where the first reading is above the second."""
    folder.mkdir()
    stream = np.random.default_rng(seed)
    found = stream.normal(size=(rows, 4))
    table = np.column_stack([found, found[:, 0] > found[:, 1]])
    np.savetxt(folder / "readings.csv", table, delimiter=",", header="a,b,c,d,worn", comments="")
    return folder


def test_flwr_run_takes_ones_own_code_to_nodes_with_data_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # from which a process would import what it does not find elsewhere
    monkeypatch.setenv("FLSPARSE_FACTORIES", "")
    app = shutil.copytree(APP, tmp_path / "sent" / "own-app", ignore=shutil.ignore_patterns("__pycache__"))
    cfg = json.loads(tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]["cfg"])
    cfg |= {"partition": {"kind": "own", "server_root": None}, "num_rounds": 2, "output_dir": str(tmp_path / "run")}
    override = tmp_path / "override.toml"
    override.write_text(f"cfg = {json.dumps(json.dumps(cfg))}\n")
    processes = Processes(tmp_path / "logs", tmp_path / "theirs")
    port, *node_ports = _free_ports(3)
    address = f"127.0.0.1:{port}"
    try:
        processes.start("superlink", "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port))
        while not _listens(port):
            processes.check()
            time.sleep(0.2)
        for node, (node_port, rows) in enumerate(zip(node_ports, (200, 300), strict=True)):
            root = readings(tmp_path / f"node-{node}", node, rows)
            config = f"partition-id={node} num-partitions=2 dataset-root='{root}'"
            command = ["flower-supernode", "--insecure", "--superlink", address, "--port", str(node_port)]
            processes.start(f"node-{node}", *command, "--node-config", config)
        cli = Cli(tmp_path / "work", address, None, processes.environment)
        answer = cli._call("run", str(app), _CONNECTION, "--run-config", str(override))
        assert answer.get("success"), answer
        while not (tmp_path / "run" / "summary.json").is_file():
            processes.check()
            said = cli.status(str(answer["run-id"]))
            assert "fail" not in str(said.get("status")), said
            time.sleep(1.0)
    finally:
        processes.stop()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["failures"]) == ("completed", 0)
    assert summary["final_accuracy"] > 0.7
    told = read_rows(tmp_path / "run" / "nodes.jsonl")
    assert sorted({(row["node"], row["examples"]) for row in told}) == [(0, 160.0), (1, 240.0)]
    assert all(row["class_counts"] is None for row in told)  # no owner has allowed them to be told
