"""A SuperLink that is not there, or does not take the run: what is said, how soon, and what is left."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from small_federation import small_config

from flsparse.runtime import deployment, launch
from flsparse.runtime.deployment import Cli, DeploymentError, Processes, _finish, _free_ports


def test_an_address_where_nothing_listens_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deployment, "_REACH_S", 0.1)
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    address = f"127.0.0.1:{_free_ports(1)[0]}"
    cfg = small_config(superlink=address, runtime={"name": "deployment"}, output_dir=str(tmp_path / "run"))
    with pytest.raises(DeploymentError, match=f"at {address}: Connection refused; start one there"):
        launch(cfg)
    assert f"Waiting for the SuperLink at {address}" in caplog.text
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "Connection refused" in summary["error"]
    assert not (tmp_path / "run" / "logs").exists()


def test_why_a_superlink_does_not_take_a_run_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer: dict[str, Any] = {"success": False, "error-message": "Using SuperLink: flsparse (there:9)\n\nIt is full."}
    monkeypatch.setattr(Cli, "_call", lambda *_: answer)
    cli = Cli(tmp_path, "there:9", None, {"FLWR_HOME": str(tmp_path / "home")})
    with pytest.raises(DeploymentError, match=r"^the SuperLink at there:9 did not take the run: It is full\.$"):
        cli.start({}, -1.0)


def test_a_superlink_without_flsparse_is_told_from_other_failures(tmp_path: Path) -> None:
    processes = Processes(tmp_path / "logs", tmp_path)
    record = {
        "status": "finished:failed",
        "status-details": "ServerApp failed with exception: No module named 'flsparse'",
    }
    with pytest.raises(DeploymentError, match="install flsparse in the environment of the SuperLink; see"):
        _finish(record, tmp_path, 0.0, False, processes, [])
    with pytest.raises(DeploymentError) as other:
        _finish(record | {"status-details": "out of memory"}, tmp_path, 0.0, False, processes, [])
    assert "out of memory" in str(other.value)
    assert "install" not in str(other.value)
