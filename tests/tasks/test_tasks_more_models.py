"""Nets for vectors, series and masks, and models of other libraries: their outputs, and that they learn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flsparse.sparsity import sparsify
from flsparse.tasks import build_task
from flsparse.tasks import task as tasks
from flsparse.tasks.data import Source
from flsparse.tasks.models import build_model

FitNode = Callable[..., Any]
GPT = {"name": "hf", "arch": "gpt2", "config": {"n_layer": 1, "n_head": 2, "n_embd": 16, "bos_token_id": 0}}
VIT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 8}

ADAMW: dict[str, Any] = {"optimizer": "adamw", "lr": 0.01, "local-epochs": 20}


def unchanged(batch: torch.Tensor) -> torch.Tensor:
    return batch


def waves() -> Source:
    """Return 200 + 100 noisy waves of 2 channels and 30 steps, slow or fast ones: two classes."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (300,), generator=draw)
    phase = torch.rand(300, 2, 1, generator=draw) * 6.28
    inputs = torch.sin(phase + torch.arange(30) * (0.2 + 0.3 * labels[:, None, None]))
    inputs = inputs + 0.3 * torch.randn(300, 2, 30, generator=draw)
    return Source(inputs[:200], labels[:200], inputs[200:], labels[200:], 2, unchanged)


def drifting() -> Source:
    """Return windows of 24 steps of a wave with drift; the next 6 steps are to be forecast."""
    steps = torch.arange(700.0)
    series = torch.sin(steps / 5) + steps / 700
    windows = series.unfold(0, 30, 1)
    inputs, targets = windows[:, None, :24].contiguous(), windows[:, 24:].contiguous()
    return Source(inputs[:500], targets[:500], inputs[530:], targets[530:], 0, unchanged, objective="forecasting")


def squares(*, classes: int = 1) -> Source:
    """Return 60 + 40 gray images of 13x18 with a bright square; the mask is where it is."""
    draw = torch.Generator().manual_seed(1)
    images, masks = torch.rand(100, 1, 13, 18, generator=draw), torch.zeros(100, 13, 18, dtype=torch.uint8)
    for image, mask in zip(images, masks, strict=True):
        top, left = (int(torch.randint(0, end, (), generator=draw)) for end in (8, 13))
        image[:, top : top + 5, left : left + 5] += 0.5
        mask[top : top + 5, left : left + 5] = 1
    kind = "binary_segmentation" if classes == 1 else "segmentation"
    count = 0 if classes == 1 else classes
    return Source(images[:60], masks[:60], images[60:], masks[60:], count, unchanged, objective=kind)


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    for loader in (waves, drifting, squares):
        monkeypatch.setitem(tasks.LOADERS, loader.__name__, loader)

    def build(dataset: dict[str, Any], model: dict[str, Any], **further: Any) -> Any:
        shared = {"partition": {"kind": "iid"}, "num_clients": 1, "seed": 3}
        return build_task({"dataset": dataset, "model": model, **shared, **further})

    return build


@pytest.mark.parametrize("name", ["mlp", "conv1d", "gru"])
def test_series_are_told_apart(task: Callable[..., Any], fit_node: FitNode, name: str) -> None:
    made = task({"name": "waves"}, {"name": name})
    _, fit, _ = fit_node(made, 0, **(ADAMW if name == "gru" else {"local-epochs": 25, "lr": 0.2}))
    assert made.evaluate(fit.model, made.test_data())["accuracy"] > 0.9


@pytest.mark.parametrize("name", ["conv1d", "gru"])
def test_what_follows_is_forecast_better_than_by_the_mean(
    task: Callable[..., Any], fit_node: FitNode, name: str
) -> None:
    made = task({"name": "drifting"}, {"name": name}, metric="r2")
    _, fit, _ = fit_node(made, 0, **(ADAMW if name == "gru" else {"local-epochs": 20, "lr": 0.05}))
    assert made.evaluate(fit.model, made.test_data())["r2"] > 0.8


@pytest.mark.parametrize("classes", [1, 2])
def test_masks_are_drawn_by_a_unet_of_odd_sizes(task: Callable[..., Any], fit_node: FitNode, classes: int) -> None:
    made = task({"name": "squares", "classes": classes}, {"name": "unet", "width": 8})
    assert (made.kpi.name, made.num_outputs) == ("dice" if classes == 1 else "iou", classes)
    _, fit, _ = fit_node(made, 0, **{"local-epochs": 25, "lr": 0.5})
    assert made.evaluate(fit.model, made.test_data())[made.kpi.name] > 0.7


def test_an_autoencoder_learns_its_input(task: Callable[..., Any], fit_node: FitNode) -> None:
    made = task({"name": "waves"}, {"name": "mlp", "hidden": [32, 8, 32]}, objective={"name": "reconstruction"})
    assert made.num_outputs == 60
    before = made.evaluate(made.model(), made.test_data())
    _, fit, _ = fit_node(made, 0, **ADAMW)
    assert made.evaluate(fit.model, made.test_data())["loss"] < 0.6 * before["loss"]


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        ({"name": "conv1d"}, (3, 2)),
        ({"name": "conv1d", "width": 8, "kernel": 3}, (1, 100)),
        ({"name": "gru", "layers": 2}, (4, 1)),
        ({"name": "mlp", "hidden": [8, 4]}, (7,)),
        ({"name": "torchvision", "arch": "resnet18"}, (1, 32, 32)),
        ({"name": "torchvision", "arch": "mobilenet_v3_small", "channels": "stem"}, (5, 32, 32)),
        ({"name": "torchvision", "arch": "resnet18", "channels": "stem"}, (1, 32, 32)),
        ({"name": "hf", "arch": "vit", "config": VIT}, (1, 32, 32)),
    ],
)
def test_outputs(config: dict[str, Any], shape: tuple[int, ...]) -> None:
    model = build_model(config, shape, 6).eval()
    inputs = torch.rand(2, *shape)
    assert model(inputs).shape == (2, 6)
    torch.testing.assert_close(sparsify(model)(inputs), model(inputs))


def test_a_gray_image_is_repeated_for_a_net_of_colors() -> None:
    config = {"name": "torchvision", "arch": "resnet18"}
    gray, color = build_model(config, (1, 32, 32), 10).eval(), build_model(config, (3, 32, 32), 10).eval()
    color.load_state_dict(gray.state_dict())
    images = torch.rand(2, 1, 32, 32)
    assert torch.equal(gray(images), color(images.expand(-1, 3, -1, -1)))


def test_a_net_with_auxiliary_classifiers_trains_on_all_of_its_outputs(fit_node: FitNode) -> None:
    """A stand-in of the same form: GoogLeNet itself takes half a minute."""

    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.second = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2))

        def forward(self, x: torch.Tensor) -> Any:
            return (self.main(x), None, self.second(x)) if self.training else self.main(x)

    made = build_task({"dataset": {"name": "digits"}, "model": {"name": "mlp"}, "num_clients": 2, "seed": 0})
    model = Auxiliary()
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    plain.load_state_dict(model.main.state_dict())
    start = model.second.get_parameter("1.weight").detach().clone()
    arrays, fit, _ = fit_node(made, 0, model=model)
    alone, other, _ = fit_node(made, 0, model=plain)
    assert (arrays["main.1.weight"] == alone["1.weight"]).all()
    assert fit.metrics["train-loss"] == other.metrics["train-loss"]
    assert (arrays["second.1.weight"] != start.numpy()).any()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 64, 64)])
def test_googlenet_gives_several_outputs_in_training_and_one_else(shape: tuple[int, ...]) -> None:
    model = build_model({"name": "torchvision", "arch": "googlenet"}, shape, 10)
    assert [each.shape for each in model(torch.rand(2, *shape))] == [(2, 10)] * 3
    assert model.eval()(torch.rand(2, *shape)).shape == (2, 10)


def test_a_language_model_of_transformers_predicts_tokens_and_is_read_from_its_folder(tmp_path: Path) -> None:
    model = build_model(GPT, (12,), 20, is_text=True).eval()
    text = torch.randint(0, 20, (2, 12))
    assert model(text).shape == (2, 12, 20)
    model.get_submodule("net").save_pretrained(tmp_path)  # type: ignore[operator]
    again = build_model({"name": "hf", "folder": str(tmp_path)}, (12,), 20, is_text=True).eval()
    torch.testing.assert_close(again(text), model(text))


def test_a_timm_model_takes_any_channels_and_size() -> None:
    pytest.importorskip("timm")
    for config in ({"name": "timm"}, {"name": "timm", "arch": "vit_tiny_patch16_224"}):
        assert build_model(config, (2, 48, 48), 6).eval()(torch.rand(2, 2, 48, 48)).shape == (2, 6)
    with pytest.raises(ValueError, match=r"model\.arch='resnet10tt' is no model of timm, as resnet10t"):
        build_model({"name": "timm", "arch": "resnet10tt"}, (3, 48, 48), 6)


@pytest.mark.parametrize(
    ("config", "shape", "said"),
    [
        ({"name": "mlp", "hidden": []}, (7,), r"model\.hidden=\[\] must be at least 1"),
        ({"name": "conv1d", "kernel": 4}, (3, 9), r"model\.kernel=4 must be an odd number"),
        ({"name": "conv1d", "width": 6}, (3, 9), r"model\.width=6 is not a multiple of 4"),
        ({"name": "conv1d"}, (3, 9, 9), r"does not read images; use model=cnn"),
        ({"name": "gru"}, (9,), r"does not read vectors; use model=mlp"),
        ({"name": "gru", "layers": 0}, (3, 9), r"model\.layers=0 must be at least 1"),
        ({"name": "unet", "depth": 4}, (3, 9, 9), r"model\.depth=4 must be .* of 9x9 .* lower it"),
        ({"name": "torchvision", "arch": "resnet18"}, (2, 32, 32), r"not 2 channels: use model\.channels=stem"),
        ({"name": "hf"}, (3, 32, 32), r"model\.folder, a local folder, or model\.arch"),
        ({"name": "hf", "arch": "vitt"}, (3, 32, 32), r"model\.arch='vitt' is no model type of transformers, as .*vit"),
    ],
)
def test_models_that_do_not_fit_say_why(config: dict[str, Any], shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build_model(config, shape, 6)


def test_a_folder_without_a_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no config\.json in"):
        build_model({"name": "hf", "folder": str(tmp_path)}, (3, 32, 32), 6)
