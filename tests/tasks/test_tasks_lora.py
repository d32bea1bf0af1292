"""LoRA adapters train on a frozen base, on every model of the shop, and alone are what a task shows of the model."""

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

from flsparse.sparsity import prunable_names
from flsparse.tasks import Task
from flsparse.tasks.models.lora import Lora, add_adapters

pytestmark = pytest.mark.skipif(find_spec("peft") is None, reason="the extra lora is not installed")

DIGITS = {"name": "digits", "train_samples": 400}


def task_of(model: dict[str, Any]) -> Task:
    """Return a new task: none that was made before."""
    return Task({"dataset": DIGITS, "model": model, "num_clients": 4, "seed": 0})


@pytest.mark.parametrize(
    "model", [{"name": "cnn"}, {"name": "mlp"}, {"name": "resnet20"}, {"name": "vit_tiny", "patch": 2}]
)
def test_adapters_begin_at_the_model_they_adapt_and_alone_are_shown(model: dict[str, Any]) -> None:
    plain, task = task_of(model).model().eval(), task_of(model | {"lora": {"rank": 2}})
    adapted = task.model().eval()
    images = task.example(task.train_data(0))
    torch.testing.assert_close(adapted(images), plain(images))
    assert all("lora_" in name for name in adapted.state_dict())
    assert len(task.frozen) == len(plain.state_dict())
    trained = sum(value.numel() for value in adapted.state_dict().values())
    assert 0 < trained < sum(value.numel() for value in plain.state_dict().values())
    again = task_of(model | {"lora": {"rank": 2}}).model().state_dict()
    assert all(torch.equal(value, again[name]) for name, value in adapted.state_dict().items())


def test_what_is_named_trains_whole_beside_the_adapters() -> None:
    task = task_of({"name": "cnn", "lora": {"rank": 2, "targets": ["3", "6"], "trainable": ["12.*", "1.*"]}})
    assert list(task.model().state_dict()) == [
        *("1.weight", "1.bias"),
        *(f"{layer}.lora_{factor}.default.weight" for layer in "36" for factor in "AB"),
        *("12.weight", "12.bias"),
    ]
    model = task.model()
    model(task.example(task.train_data(0))).sum().backward()
    moved = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.abs().sum() > 0}
    assert moved == {name for name in model.state_dict() if "lora_A" not in name}  # B is 0, so A has no gradient yet
    assert prunable_names(model) == ["3.lora_A.default.weight", "6.lora_A.default.weight", "12.weight"]


def test_the_layers_of_a_transformer_are_adapted() -> None:
    pytest.importorskip("transformers")
    model = {
        "name": "hf",
        "arch": "vit",
        "config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    }
    sizes = {"intermediate_size": 16, "patch_size": 4}
    model["config"] |= sizes  # type: ignore[operator]
    task = task_of(model | {"lora": {"rank": 2, "targets": ["*attention*"], "trainable": ["*classifier*"]}})
    names = list(task.model().state_dict())
    assert any("attention" in name and "lora_A" in name for name in names)
    assert all("lora_" in name or "classifier" in name for name in names)


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"rank": 0}, r"model\.lora\.rank=0 is not in \[1, inf\)"),
        ({"alpha": 0.0}, r"model\.lora\.alpha=0\.0 is not in \(0, inf\)"),
        ({"ranks": 4}, r"model\.lora\.ranks is not a setting of lora; did you mean rank\?"),
        (
            {"targets": ["attention*"]},
            r"'attention\*' names no linear or convolution layer; there are 0, 3, 6, 10, 12$",
        ),
        ({"trainable": ["head.*"]}, r"model\.lora\.trainable: 'head\.\*' names no array of the model"),
    ],
)
def test_adapters_that_cannot_be_are_refused(lora: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        task_of({"name": "cnn", "lora": lora}).model()


def test_a_model_without_layers_to_adapt_is_refused() -> None:
    with pytest.raises(ValueError, match="has no linear or convolution layer to adapt"):
        add_adapters(nn.Sequential(nn.LayerNorm(3)), Lora())
