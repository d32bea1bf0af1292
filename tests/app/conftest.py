"""The console script in a folder of its own, over a runtime that notes what it is asked to run."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from app_kit import Run, initial_state

import flsparse.runtime
from flsparse.app import main
from flsparse.runs.checkpoint import save_checkpoint
from flsparse.runs.folder import CHECKPOINT

SUMMARY: dict[str, Any] = {
    "status": "completed",
    "dataset": "digits",
    "rounds": 2,
    "final_accuracy": 0.9,
    "best_accuracy": 0.9,
    "final_loss": 0.3,
    "final_sparsity": 0.95,
    "dense_bytes_per_model": 1000,
    "uplink_bytes": 100,
    "downlink_bytes": 200,
    "uplink_wire_bytes": 150,
    "downlink_wire_bytes": 250,
    "uplink_ratio": 20.0,
    "downlink_ratio": 10.0,
    "wall_seconds": 1.0,
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Return a function that runs the console script in a folder of its own and returns its exit code."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["flsparse", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    return call


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace the runtime by one that notes the configuration and writes a summary; ``num_rounds=13`` fails."""
    configurations: list[dict[str, Any]] = []

    def launch(cfg: dict[str, Any], observers: Sequence[Any] = ()) -> dict[str, Any]:
        configurations.append(cfg)
        folder = Path(cfg["output_dir"])
        (folder / "config.yaml").write_text(yaml.safe_dump(cfg))
        if cfg["num_rounds"] == 13:
            raise RuntimeError("thirteen rounds\nand a second line")
        state = {"round": min(3, cfg["num_rounds"]), "config": json.loads(json.dumps(cfg))}
        save_checkpoint(folder / CHECKPOINT, state | initial_state(cfg))
        summary = SUMMARY | {"strategy": cfg["strategy"]["name"]}
        if cfg["num_rounds"] == 7:
            return summary | {"status": "interrupted", "rounds": 3, "checkpoint_round": 2}
        (folder / "summary.json").write_text(json.dumps(summary))
        return summary

    monkeypatch.setattr(flsparse.runtime, "launch", launch)
    return configurations
