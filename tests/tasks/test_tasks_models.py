from typing import Any

import pytest
import torch

from flsparse.nets.arrays import load_arrays, state_arrays
from flsparse.tasks.models import build_model

COLOR = (3, 32, 32)


@pytest.mark.parametrize(
    ("config", "shape", "parameters"),
    [
        ({"name": "cnn"}, (1, 28, 28), 89_616 + 298),
        ({"name": "cnn"}, (1, 8, 8), 40_208 + 298),
        ({"name": "cnn"}, (3, 64, 64), 90_416 + 298),
        ({"name": "resnet20"}, COLOR, 269_722),
        ({"name": "resnet20", "norm": "group"}, COLOR, 269_722),
        ({"name": "resnet18"}, COLOR, 11_173_962),
        ({"name": "resnet18", "norm": "group"}, (1, 28, 28), 11_172_810),
        ({"name": "vit_tiny"}, COLOR, 460_714),
        ({"name": "torchvision", "arch": "squeezenet1_1"}, COLOR, 727_626),
    ],
)
def test_sizes(config: dict[str, Any], shape: tuple[int, ...], parameters: int) -> None:
    model = build_model(config, shape, 10)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.rand(2, *shape)).shape == (2, 10)


def test_cnn_prunable_and_dense_parameters() -> None:
    model = build_model({"name": "cnn"}, (1, 28, 28), 10)
    assert sum(p.numel() for p in model.parameters() if p.ndim >= 2) == 89_616
    assert sum(p.numel() for p in model.parameters() if p.ndim == 1) == 298


def test_group_norm_leaves_no_batch_norm() -> None:
    for name in ("resnet20", "resnet18"):
        model = build_model({"name": name, "norm": "group"}, COLOR, 10)
        assert not list(model.buffers())


def test_char_lstm_out_of_linear_layers_is_an_lstm() -> None:
    ours = build_model({"name": "char_lstm", "hidden": 16}, (12,), 20)
    theirs = build_model({"name": "char_lstm", "hidden": 16, "fused": True}, (12,), 20)
    state = ours.state_dict()
    theirs.load_state_dict(
        {
            "0.weight": state["0.weight"],
            "1.weight_ih_l0": state["1.input.weight"],
            "1.weight_hh_l0": state["1.recurrent.weight"],
            "1.bias_ih_l0": state["1.input.bias"],
            "1.bias_hh_l0": torch.zeros(64),
            "1.weight_ih_l1": state["2.input.weight"],
            "1.weight_hh_l1": state["2.recurrent.weight"],
            "1.bias_ih_l1": state["2.input.bias"],
            "1.bias_hh_l1": torch.zeros(64),
            "2.weight": state["3.weight"],
            "2.bias": state["3.bias"],
        }
    )
    text = torch.randint(20, (5, 12))
    torch.testing.assert_close(ours(text), theirs(text))
    assert ours(text).shape == (5, 12, 20)


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        ({"name": "resnet20", "norm": "layer"}, COLOR, "batch or group"),
        ({"name": "vit_tiny", "patch": 5}, COLOR, "must divide"),
        ({"name": "torchvision", "arch": "mobilenet_v3_smal"}, COLOR, "mobilenet_v3_small"),
        ({"name": "torchvision"}, (2, 28, 28), "not 2 channels"),
        ({"name": "cnn"}, (80,), "does not read vectors; use model=mlp"),
    ],
)
def test_models_that_do_not_fit_say_why(config: dict[str, Any], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(config, shape, 10)


def test_text_is_read_by_models_of_text() -> None:
    with pytest.raises(ValueError, match=r"model\.name=mlp does not read text; use model=char_lstm"):
        build_model({"name": "mlp"}, (80,), 77, is_text=True)


@pytest.mark.parametrize("arch", ["mnasnet0_5", "mobilenet_v3_small"])
def test_a_net_of_torchvision_takes_its_own_arrays(arch: str) -> None:
    """MNASNet reads the arrays of a state dict without a version as those of another net."""
    model = build_model({"name": "torchvision", "arch": arch}, (3, 32, 32), 10)
    arrays = {name: array + 1 for name, array in state_arrays(model).items()}
    load_arrays(model, arrays)
    assert all((array == arrays[name]).all() for name, array in state_arrays(model).items())


@pytest.mark.parametrize(
    ("arch", "said"),
    [
        ("nope", "is no torchvision classification model, as "),
        ("resnet_18", "is no torchvision classification model, as .*resnet18.* are"),
    ],
)
def test_a_net_that_cannot_be_built_is_refused_with_others(arch: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"model.arch='{arch}' {said}"):
        build_model({"name": "torchvision", "arch": arch}, (3, 32, 32), 10)
