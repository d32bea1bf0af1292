"""The check before the start runs what the nodes will run, finds what fails there, and leaves no trace."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_federation import small_config
from torch import nn

from flsparse.app.rehearsal import rehearse
from flsparse.app.settings import SettingsError
from flsparse.clients.core.state import STATE_DIR
from flsparse.configs import open_parameters
from flsparse.nets.arrays import state_arrays
from flsparse.runs.checkpoint import save_checkpoint
from flsparse.runs.folder import CHECKPOINT
from flsparse.runtime import launch
from flsparse.runtime.federation import make_strategy
from flsparse.sparsity import prunable_names
from flsparse.strategies import STRATEGIES
from flsparse.tasks import build_task
from flsparse.tasks.models import MODELS

RING = {"topology": {"name": "ring"}, "num_nodes": 4}
NEEDS: dict[str, dict[str, Any]] = {
    "split_ms": {"cut": "2", "steps_per_round": 0},
    "malcom_psgd": RING,
    "choco_sgd": RING,
    "d_psgd": RING,
}


def of_method(name: str) -> dict[str, Any]:
    coded = "values" in open_parameters(STRATEGIES[name])
    codec = {"values": "int8", "rounding": "nearest", "downlink_values": "int8"} if coded else {}
    return small_config(num_clients=4, strategy={"name": name, **NEEDS.get(name, {})}, codec=codec)


class Seen(nn.Module):
    """A model that notes the batches it is given, and does what it is told in training."""

    batches: list[tuple[int, bool]]
    act: Callable[[int], None]

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(int(np.prod(input_shape)), num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        Seen.batches.append((len(images), self.training))
        if self.training:
            Seen.act(len(images))
        logits: torch.Tensor = self.layer(images.flatten(1))
        return logits


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> type[Seen]:
    def make(input_shape: tuple[int, ...], num_classes: int) -> Seen:
        return Seen(input_shape, num_classes)

    monkeypatch.setitem(MODELS, "seen", make)
    Seen.batches, Seen.act = [], lambda size: None
    return Seen


def seen_config(**changes: Any) -> dict[str, Any]:
    return small_config(**({"model": {"name": "seen"}, "strategy": {"name": "fedavg"}} | changes))


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_method_can_be_rehearsed(name: str) -> None:
    cfg = of_method(name)
    found = rehearse(cfg)
    assert len(found.sizes) == 4
    assert found.parameters == sum(each.numel() for each in found.task.model().parameters())


@pytest.mark.parametrize(
    ("samples", "nodes", "batch_size", "steps"),
    [
        (64, 4, 16, [16]),  # all nodes fill a batch: one of them stands for all
        (43, 4, 11, [10, 11]),  # the smallest does not
    ],
)
def test_a_step_of_the_smallest_and_the_largest_node_and_an_evaluation(
    samples: int, nodes: int, batch_size: int, steps: list[int], seen: type[Seen]
) -> None:
    cfg = seen_config(
        num_clients=nodes,
        dataset={"name": "digits", "validation_fraction": 0, "train_samples": samples},
        client={"lr": 0.1, "batch_size": batch_size, "local_epochs": 5},
    )
    found = rehearse(cfg)
    assert sum(found.sizes) == samples
    trained = [size for size, training in seen.batches if training and size != 2]  # two: to count FLOPs
    assert sorted(trained) == steps
    assert (batch_size, False) in seen.batches


def test_random_generators_and_the_environment_are_left_as_they_were(
    seen: type[Seen], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(STATE_DIR, raising=False)

    def draw(size: int) -> None:
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002

    seen.act = staticmethod(draw)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), dict(os.environ)  # type: ignore[index]  # noqa: NPY002
    rehearse(seen_config())
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), dict(os.environ)  # type: ignore[index]  # noqa: NPY002
    assert before == after
    assert not list(tmp_path.iterdir())


def test_a_rehearsed_run_is_the_same_run(tmp_path: Path) -> None:
    summaries = []
    for rehearsed in (False, True):
        cfg = small_config(strategy={"name": "sparsyfed"}, output_dir=str(tmp_path / str(rehearsed)))
        task = rehearse(cfg).task if rehearsed else None
        summaries.append(launch(cfg))
        del task
    assert summaries[0]["final_loss"] == summaries[1]["final_loss"]
    assert summaries[0]["uplink_bytes"] == summaries[1]["uplink_bytes"]
    assert (tmp_path / "True/model.safetensors").read_bytes() == (tmp_path / "False/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AssertionError("Wrong image height!\nExpected 224"), "AssertionError: Wrong image height!"),
        (KeyError("head"), "KeyError: 'head'"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("shapes cannot be multiplied"), "shapes cannot be multiplied"),
    ],
)
def test_whatever_fails_on_a_node_is_one_line_that_names_it(error: Exception, said: str, seen: type[Seen]) -> None:
    def fail(size: int) -> None:
        raise error

    seen.act = staticmethod(fail)
    with pytest.raises(SettingsError) as refused:
        rehearse(seen_config())
    assert str(refused.value).startswith("node ")
    assert str(refused.value).endswith(said)
    assert "training samples: " in str(refused.value)


def test_a_node_with_one_sample_and_batch_norm_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes))

    monkeypatch.setitem(MODELS, "mlp_with_batch_norm", make)
    small = {
        "dataset": {"name": "digits", "validation_fraction": 0, "train_samples": 12},
        "model": {"name": "mlp_with_batch_norm"},
        "strategy": {"name": "fedavg"},
    }
    rehearse(small_config(**small, num_clients=6))
    with pytest.raises(SettingsError, match=r"of 1 training sample: Expected more than 1 .* a lower num_clients"):
        rehearse(small_config(**small, num_clients=12))


def test_limits_of_this_machines_owner_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLSPARSE_MAX_PAYLOAD_BYTES", "100")
    with pytest.raises(SettingsError, match="max_payload_bytes"):
        rehearse(small_config(strategy={"name": "fedavg"}))


def saved(folder: Path, cfg: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Write a checkpoint of the initial state, and return the configuration of the run that goes on."""
    plain = build_task(cfg).model()
    strategy = make_strategy(cfg, prunable_names(plain))
    state = {"round": 1, "config": {}, "arrays": state_arrays(strategy.prepare(plain))}
    save_checkpoint(folder / CHECKPOINT, {**state, "strategy": strategy.state_dict(), **changes})
    return {**cfg, "resume": str(folder)}


def test_a_run_that_goes_on_is_rehearsed_from_its_checkpoint(tmp_path: Path) -> None:
    cfg = small_config(strategy={"name": "topk"})
    rehearse(saved(tmp_path, cfg))
    with pytest.raises(SettingsError, match="the arrays do not fit the model"):
        rehearse(saved(tmp_path, cfg, arrays={"weight": np.zeros((2, 2), np.float32)}))
    with pytest.raises(SettingsError, match="lacks"):
        rehearse(saved(tmp_path, cfg, strategy={"next_round": 2}))


def test_data_of_many_nodes_are_index_views() -> None:
    """A node's data cost no copy: all of a thousand nodes' look into one tensor."""
    cfg = small_config(num_clients=1000, dataset={"name": "digits", "validation_fraction": 0})
    task = rehearse(cfg).task
    stored = {task.train_data(node).all_inputs.data_ptr() for node in range(1000)}
    assert stored == {task.source.train_inputs.data_ptr()}
