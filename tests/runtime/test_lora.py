"""LoRA in a federation: adapters alone travel, sparse both ways, on a base that no payload holds."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flsparse.runtime import launch
from flsparse.tasks import build_task

pytestmark = pytest.mark.skipif(find_spec("peft") is None, reason="the extra lora is not installed")

Config = Callable[..., dict[str, Any]]
DENSE = {"values": "fp32", "rounding": "nearest", "downlink_values": "fp32"}
MODEL = {"name": "cnn", "width": 8, "lora": {"rank": 4, "targets": ["3", "6", "10"], "trainable": ["12.*"]}}
CLIENT = {"lr": 0.1, "lr_final": 0.01, "batch_size": 16, "local_epochs": 4}


def test_adapters_alone_travel_and_learn(config: Config, tmp_path: Path) -> None:
    cfg = config(model=MODEL, strategy={"name": "fedavg"}, codec=DENSE, fraction_train=1.0, client=CLIENT)
    summary, task = launch(cfg), build_task(cfg)
    adapters = task.model().state_dict()
    assert summary["dense_bytes_per_model"] == sum(value.nbytes for value in adapters.values())
    assert summary["downlink_bytes"] < 4 * 6 * summary["dense_bytes_per_model"]  # of the base, not a byte
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert saved.keys() == adapters.keys() | set(task.frozen)
    plain = build_task(config(model={"name": "cnn", "width": 8})).model().state_dict()
    assert torch.equal(saved["3.base_layer.weight"], plain["3.weight"])
    assert all(saved[name].any() for name in adapters)
    assert summary["final_accuracy"] > 0.5


def test_adapters_are_sparse_both_ways_and_end_near_dense_ones(config: Config, tmp_path: Path) -> None:
    common = {"model": MODEL, "fraction_train": 1.0, "num_rounds": 12, "client": CLIENT, "strategy": {"name": "fedavg"}}
    dense = launch(config(**common, codec=DENSE, output_dir=str(tmp_path / "dense")))
    codec = {"values": "int4", "rounding": "nearest", "downlink_values": "int4", "downlink_density": 0.1}
    parts = {"topk_update": {"density": 0.1, "decay": 1.0}}
    sparse = launch(config(**common, codec=codec, parts=parts))
    assert sparse["final_accuracy"] > dense["final_accuracy"] - 0.08
    assert sparse["uplink_bytes"] < dense["uplink_bytes"] / 10
    assert sparse["downlink_bytes"] < dense["downlink_bytes"] / 8


def test_one_factor_of_an_adapter_can_stay_on_its_node(config: Config) -> None:
    cfg = config(model=MODEL | {"local": ["*lora_B*"]}, strategy={"name": "fedavg"}, codec=DENSE, num_rounds=2)
    assert launch(cfg)["failures"] == 0
    assert not any("lora_B" in name for name in build_task(cfg).model().state_dict())


def test_a_sparse_method_prunes_adapters_and_no_base(config: Config, tmp_path: Path) -> None:
    summary = launch(config(model=MODEL, strategy={"name": "sparsyfed", "sparsity": 0.8, "ramp": False}))
    assert summary["final_sparsity"] == pytest.approx(0.8, abs=0.02)
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert (saved["3.base_layer.weight"] != 0).all()
