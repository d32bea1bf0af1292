"""A whole run in process: its folder, resuming, interruption, failure."""

import json
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import Message
from flwr.serverapp import Grid
from safetensors.numpy import load_file

from flsparse.runs.folder import RunFolder, RunFolderError, read_checkpoint, read_rows
from flsparse.runtime import InProcessGrid, launch, run_federation, survey
from flsparse.runtime.apps import RoundLog, client_app
from flsparse.runtime.federation import ROW_KEYS
from flsparse.runtime.making import make_strategy
from flsparse.strategies import RoundFailed
from flsparse.tasks import build_task
from flsparse.tasks.models import MODELS

Config = Callable[..., dict[str, Any]]
SUMMARY_KEYS = {
    *("strategy", "dataset", "seed", "rounds", "final_accuracy", "best_accuracy", "final_loss", "status"),
    *("dense_bytes_per_model", "uplink_bytes", "downlink_bytes", "uplink_wire_bytes", "downlink_wire_bytes"),
    *("uplink_ratio", "downlink_ratio", "final_sparsity", "wall_seconds", "failures", "rejected_payloads"),
}


class Recorder:
    """Keeps what an observer is told."""

    def __init__(self, stop_in: int = 0, error: BaseException | None = None) -> None:
        self.calls: list[tuple[str, Any]] = []
        self._stop_in, self._error = stop_in, error

    def on_start(self, info: dict[str, Any]) -> None:
        self.calls.append(("start", info))

    def on_round(self, row: dict[str, Any]) -> None:
        self.calls.append(("round", row))
        if self._error and row["server_round"] == self._stop_in:
            raise self._error

    def on_end(self, summary: dict[str, Any]) -> None:
        self.calls.append(("end", summary))


def deterministic(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows without what is measured in time or memory, or depends on the number of hellos."""
    volatile = ("seconds", "_ms", "memory", "wire")
    return [{k: v for k, v in row.items() if not any(each in k for each in volatile)} for row in rows]


@pytest.mark.parametrize("strategy", ["sparsyfed", "topk", "fedavg"])
def test_a_run_leaves_every_key(config: Config, tmp_path: Path, strategy: str) -> None:
    cfg = config(strategy={"name": strategy})
    if strategy == "fedavg":
        cfg["codec"] = {"values": "raw", "rounding": "nearest", "downlink_values": "raw"}
    recorder = Recorder()
    summary = launch(cfg, [recorder])
    assert [name for name, _ in recorder.calls] == ["start", *["round"] * 4, "end"]
    run = tmp_path / "run"
    assert json.loads((run / "summary.json").read_text()) == json.loads(json.dumps({"schema_version": 1, **summary}))
    assert summary.keys() >= SUMMARY_KEYS
    assert summary["status"] == "completed"
    assert (summary["rounds"], summary["failures"], summary["rejected_payloads"]) == (4, 0, 0)
    rows = read_rows(run / "metrics.jsonl")
    assert [row["server_round"] for row in rows] == [1, 2, 3, 4]
    assert all(row.keys() >= set(ROW_KEYS) for row in rows)
    for way in ("uplink", "downlink"):
        assert summary[f"{way}_bytes"] == sum(row[f"{way}_bytes"] for row in rows)
        assert summary[f"{way}_wire_bytes"] > summary[f"{way}_bytes"] > 0
    measured = ("step_seconds", "peak_memory_bytes", "encode_ms", "train_loss", "accuracy", "broadcast_sparsity")
    assert all(rows[-1][key] is not None for key in measured)
    assert not (run / "nodes").exists()
    if strategy == "fedavg":
        assert summary["uplink_bytes"] == pytest.approx(12 * summary["dense_bytes_per_model"], rel=0.02)
    else:
        assert 0 < rows[-1]["mask_iou"] <= 1
        assert rows[-1]["regrowth"] is not None
        assert summary["final_sparsity"] == pytest.approx(0.95, abs=0.01)


def test_the_exported_model_is_plain_and_scores_the_same(config: Config, tmp_path: Path) -> None:
    cfg = config()
    summary = launch(cfg)
    task = build_task(cfg)
    model = task.model()
    weights = load_file(tmp_path / "run" / "model.safetensors")
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    metrics = task.evaluate(model, task.test_data())
    assert metrics["accuracy"] == pytest.approx(summary["final_accuracy"])
    assert metrics["loss"] == pytest.approx(summary["final_loss"], rel=1e-4)


def test_the_same_seed_gives_the_same_run_twice(config: Config, tmp_path: Path) -> None:
    rows = []
    for name in ("a", "b"):
        launch(config(output_dir=str(tmp_path / name)))
        rows.append(deterministic(read_rows(tmp_path / name / "metrics.jsonl")))
    assert rows[0] == rows[1]
    first, second = (read_checkpoint(tmp_path / name)["arrays"] for name in ("a", "b"))
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes()


@pytest.mark.parametrize("strategy", ["sparsyfed", "fedavg"])
def test_resuming_equals_not_stopping(config: Config, tmp_path: Path, strategy: str) -> None:
    chosen = {"name": strategy, "server_optimizer": "adam", "server_lr": 0.05}
    launch(config(output_dir=str(tmp_path / "whole"), strategy=chosen))
    interrupted = launch(config(strategy=chosen), [Recorder(3, KeyboardInterrupt())])
    assert (interrupted["status"], interrupted["rounds"]) == ("interrupted", 3)
    assert (tmp_path / "run" / "model.safetensors").exists()
    recorder = Recorder()
    resumed = launch(config(strategy=chosen, resume=str(tmp_path / "run")), [recorder])
    first = recorder.calls[0][1]["first_round"]
    assert 1 < first <= 4
    assert first == interrupted["checkpoint_round"] + 1
    assert resumed["status"] == "completed"
    whole, run = (read_checkpoint(tmp_path / name)["arrays"] for name in ("whole", "run"))
    for name, array in whole.items():
        assert array.tobytes() == run[name].tobytes()
    rows = [deterministic(read_rows(tmp_path / name / "metrics.jsonl")) for name in ("whole", "run")]
    assert rows[0] == rows[1]


DYING: dict[str, Any] = {
    "model": {"name": "mlp", "hidden": 512},
    "strategy": {"name": "sparsyfed", "sparsity": 0.97, "scope": "global", "ramp": False},
}


def test_a_run_whose_layer_dies_says_so_and_goes_on_saying(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A wide hidden layer begins with larger weights than the one behind it: a ranking of all empties that."""
    launch(config(num_rounds=2, **DYING))
    resumed = launch(config(num_rounds=4, resume=str(tmp_path / "run"), **DYING))
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert "layer '3.weight' is empty" in rows[-1]["warnings"][0]
    assert resumed["warnings"] == rows[-1]["warnings"]
    assert resumed["final_accuracy"] < 0.2
    assert any("same answer" in warning for warning in resumed["warnings"])
    assert rows[-1]["prediction_share"] == 1.0
    log = RoundLog()
    log.on_start({"num_rounds": 4})
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="flsparse"):
        for row in rows:
            log.on_round(row)
        log.on_end(resumed)
    assert caplog.text.count("is empty") == 1
    assert "smaller" not in caplog.messages[-1]


@pytest.mark.parametrize("scope", [{}, {"scope": "layer"}], ids=["default", "layer"])
def test_the_other_rankings_keep_weights_in_every_layer(config: Config, scope: dict[str, str]) -> None:
    strategy = {"name": "sparsyfed", "sparsity": 0.97, **scope}
    client = {"lr": 0.3, "lr_final": 0.006, "batch_size": 8, "local_epochs": 2}
    mended = launch(config(num_rounds=6, client=client, **DYING | {"strategy": strategy}))
    assert not any("empty" in warning for warning in mended["warnings"])


@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "scaffold"},
        {"name": "split_ms", "cut": "2", "steps_per_round": 2},
        {"name": "d_psgd", "topology": {"name": "ring"}, "num_nodes": 6},
    ],
    ids=lambda strategy: strategy["name"],
)
def test_every_methods_ratio_has_one_base_and_a_target_outlives_a_stop(
    config: Config, tmp_path: Path, strategy: dict[str, Any]
) -> None:
    chosen = {"strategy": strategy, "evaluate": {"every": 1, "on": "test", "target": 0.01}}
    launch(config(num_rounds=2, **chosen))
    summary = launch(config(num_rounds=4, resume=str(tmp_path / "run"), **chosen))
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    base = summary["dense_bytes_per_model"] * sum(row["replies"] for row in rows)
    for way in ("uplink", "downlink"):
        assert summary[f"{way}_ratio"] == pytest.approx(base / summary[f"{way}_bytes"])
    assert [row["to_target"] is not None for row in rows] == [False, False, True, True]
    assert summary["to_target"] == rows[2]["to_target"]
    assert summary["to_target"]["wire_bytes"] == sum(
        row[f"{way}_wire_bytes"] for row in rows[:3] for way in ("uplink", "downlink")
    )


def test_sigterm_ends_a_run_as_ctrl_c_does(config: Config, tmp_path: Path) -> None:
    class Scheduler(Recorder):
        def on_round(self, row: dict[str, Any]) -> None:
            signal.raise_signal(signal.SIGTERM)

        def on_end(self, summary: dict[str, Any]) -> None:
            signal.raise_signal(signal.SIGTERM)  # an impatient second one

    before = signal.getsignal(signal.SIGTERM)
    summary = launch(config(), [Scheduler()])
    assert (summary["status"], summary["rounds"]) == ("interrupted", 1)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "interrupted"
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "nodes").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_was_killed_before_its_summary_is_finished(config: Config, tmp_path: Path) -> None:
    whole = launch(config(num_rounds=2))
    for name in ("summary.json", "model.safetensors"):
        (tmp_path / "run" / name).unlink()
    finished = launch(config(num_rounds=2, resume=str(tmp_path / "run")))
    for key in ("status", "rounds", "final_accuracy", "uplink_bytes"):
        assert finished[key] == whole[key]
    assert (tmp_path / "run" / "summary.json").exists()
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_run_is_resumed_as_it_was(config: Config, tmp_path: Path) -> None:
    launch(config(num_rounds=1))
    with pytest.raises(ValueError, match="its seed was 1"):
        launch(config(seed=2, resume=str(tmp_path / "run")))
    with pytest.raises(ValueError, match=r"its model.width was 8"):
        launch(config(model={"name": "cnn", "width": 16}, resume=str(tmp_path / "run")))
    with pytest.raises(RunFolderError, match="holds a run"):
        launch(config())


def test_tiers_of_single_nodes_are_saved_and_resumed(config: Config, tmp_path: Path) -> None:
    tiers = {"name": "topk", "tiers": {0: 0.5}}  # as Hydra reads {0:0.5}
    launch(config(num_rounds=1, strategy=tiers))
    assert launch(config(num_rounds=2, strategy=tiers, resume=str(tmp_path / "run")))["rounds"] == 2


@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "sparsyfed"},
        {"name": "scaffold"},
        {"name": "dppf"},
        {"name": "split_ms", "cut": "2", "steps_per_round": 2},
        {"name": "d_psgd", "topology": {"name": "ring"}, "num_nodes": 6, "min_available_nodes": 2},
    ],
    ids=lambda strategy: strategy["name"],
)
def test_a_device_that_leaves_does_not_stop_a_run(config: Config, strategy: dict[str, Any]) -> None:
    class Leaving(InProcessGrid):
        looks = 0

        def get_node_ids(self) -> list[int]:
            self.looks += 1
            assert self.looks < 20, "the run waits for a node that has left"
            nodes = super().get_node_ids()
            return nodes[1:] if recorder.calls[1:] else nodes

    cfg, recorder = config(strategy=strategy, fraction_train=1.0, num_rounds=3), Recorder()
    summary = run_federation(Leaving(client_app(cfg), 6), cfg, [recorder])
    assert (summary["status"], summary["failures"]) == ("completed", 0)
    assert [row["replies"] for name, row in recorder.calls if name == "round"] == [6, 5, 5]


def test_how_many_nodes_a_round_needs_can_be_set(config: Config) -> None:
    for settings, needed in (({}, 1), ({"min_replies": 2}, 2), ({"min_replies": 2, "min_available_nodes": 3}, 3)):
        strategy = make_strategy(config(strategy={"name": "fedavg", **settings}), [])
        assert strategy.min_available_nodes == needed
        assert strategy.min_train_nodes == 3  # half of six, whoever has left


def test_a_failing_run_leaves_its_state_and_says_why(config: Config, tmp_path: Path) -> None:
    class Dying(InProcessGrid):
        calls = 0

        def _answer(self, message: Message) -> Message:
            type(self).calls += message.metadata.message_type == "train"
            if self.calls > 3:
                return self._error(message, 2, "MemoryError: out of memory")
            return super()._answer(message)

    cfg = config()
    with pytest.raises(RoundFailed, match="out of memory"):
        run_federation(Dying(client_app(cfg), 6), cfg)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["rounds"], summary["failures"]) == ("failed", 1, 3)
    assert "out of memory" in summary["error"]
    assert launch(config(resume=str(tmp_path / "run")))["status"] == "completed"


def no_space(self: object, *_: object) -> None:
    raise RunFolderError("no space for the model")


def test_a_full_disk_neither_hides_the_cause_nor_costs_the_summary(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunFolder, "save_model", no_space)
    with pytest.raises(OSError, match="the cause"):
        launch(config(), [Recorder(2, OSError("the cause"))])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["error"], summary["rounds"]) == ("failed", "OSError: the cause", 2)


def test_a_model_that_cannot_be_saved_ends_a_complete_run_with_an_error(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunFolder, "save_model", no_space)
    recorder = Recorder()
    with pytest.raises(RunFolderError, match="no space for the model"):
        launch(config(num_rounds=1), [recorder])
    assert recorder.calls[-1][0] == "end"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] == 1


def test_a_run_that_fails_at_its_start_has_a_summary_too(config: Config, tmp_path: Path) -> None:
    class Broken(Recorder):
        def on_start(self, info: dict[str, Any]) -> None:
            raise RuntimeError("no display")

    with pytest.raises(RuntimeError, match="no display"):
        launch(config(), [Broken()])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["rounds"]) == ("failed", 0)


def test_failures_are_counted_by_round(config: Config) -> None:
    class Flaky(InProcessGrid):
        def _answer(self, message: Message) -> Message:
            is_bad = message.metadata.message_type == "train" and self._partitions[message.metadata.dst_node_id] == 2
            return self._error(message, 2, "no") if is_bad else super()._answer(message)

    cfg = config(fraction_train=1.0)
    recorder = Recorder()
    summary = run_federation(Flaky(client_app(cfg), 6), cfg, [recorder])
    assert summary["failures"] == 4
    assert [row["failures"] for name, row in recorder.calls if name == "round"] == [1, 1, 1, 1]


def test_what_else_a_strategy_counts_is_by_round_too(config: Config) -> None:
    class Forgetful(InProcessGrid):
        def _answer(self, message: Message) -> Message:
            self._states.pop(2, None)  # node 2 lacks its reference from the second round on
            return super()._answer(message)

    cfg = config(fraction_train=1.0, output_dir=None)
    recorder = Recorder()
    run_federation(Forgetful(client_app(cfg), 6), cfg, [recorder])
    assert [row.get("resent_models", 0) for name, row in recorder.calls if name == "round"] == [0, 1, 1, 1]


def test_evaluation_on_a_schedule_and_on_validation_data(config: Config) -> None:
    recorder = Recorder()
    cfg = config(num_rounds=3, output_dir=None, evaluate={"every": 2, "on": "validation"})
    summary = launch(cfg, [recorder])
    scores = [row["accuracy"] for name, row in recorder.calls if name == "round"]
    assert scores[0] is None
    assert scores[1] is not None
    assert summary["final_accuracy"] == scores[2]
    assert summary["best_accuracy"] == max(scores[1], scores[2])
    with pytest.raises(ValueError, match=r"evaluate.on='train'"):
        launch(config(output_dir=None, evaluate={"on": "train"}))


def test_impossible_strategies_and_runtimes_are_named(config: Config) -> None:
    with pytest.raises(ValueError, match="none of"):
        make_strategy(config(strategy={"name": "sparsifed"}), [])
    with pytest.raises(ValueError, match="sparsity"):
        make_strategy(config(strategy={"name": "topk", "sparsity": 1.2}), [])
    with pytest.raises(ValueError, match="colour"):
        make_strategy(config(strategy={"name": "topk", "colour": 1}), [])
    with pytest.raises(ValueError, match=r"runtime.name='cloud'"):
        launch(config(runtime={"name": "cloud"}))


def test_nodes_state_is_bytes_between_messages(config: Config) -> None:
    cfg = config(num_rounds=1, output_dir=None)
    grid = InProcessGrid(client_app(cfg), 6)
    run_federation(grid, cfg)
    state = grid.state_dict()
    assert all(array.dtype == np.uint8 for array in state["nodes"].values())


class Late:
    """A grid whose last node never connects."""

    def get_node_ids(self):
        return [1, 2, 3]


def test_one_missing_device_does_not_block_a_run_for_ever(monkeypatch):
    monkeypatch.setattr(survey, "_PATIENCE_S", 0.0)
    assert survey.wait_for_nodes(cast(Grid, Late()), 4, at_least=2) == [1, 2, 3]
    assert survey.wait_for_nodes(cast(Grid, Late()), 3) == [1, 2, 3]


def test_a_model_that_sparsify_would_change_is_refused(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    class Captured(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(64, 10)
            weight = self.layer.weight
            self.function = lambda x: x @ weight.t()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.layer(x.flatten(1)) + self.function(x.flatten(1))
            return y

        def __deepcopy__(self, memo: Any) -> "Captured":
            twin = Captured()
            twin.load_state_dict(self.state_dict())
            return twin

    monkeypatch.setitem(MODELS, "captured", Captured)
    cfg = config(model={"name": "captured"}, strategy={"name": "sparsyfed"})
    with pytest.raises(ValueError, match=r"changes the outputs of \(root\) \(Captured\)"):
        launch(cfg)
    launch(config(model={"name": "captured"}, strategy={"name": "topk"}, num_rounds=1))
