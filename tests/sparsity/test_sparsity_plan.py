"""What sparsify leaves dense, and says so by name."""

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.nn import qat
from torch.ao.quantization import get_default_qat_qconfig
from torch.nn.utils import parametrizations, parametrize, prune

from flsparse.sparsity import export_dense, prunable_names, sparsify

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Lora(nn.Module):
    """A frozen layer with an adapter whose second matrix starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
        self.base.requires_grad_(False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.b(self.a(x))
        return y


class Autoencoder(nn.Module):
    """The decoder's parameter is a transposed view of the encoder's."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(8, 3), nn.Linear(3, 8)
        self.decoder.weight = nn.Parameter(self.encoder.weight.t())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.decoder(self.encoder(x).relu())
        return y


class View(nn.Module):
    """A plain attribute is a view of a layer's parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.transposed = self.layer.weight.detach().t()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.layer(x), self.transposed)


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x[:, None])[0]
        return y


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer: Any = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x, x, x)[0]
        return y


class Quantized(nn.Parameter):
    """Stands for the parameters of quantization libraries, which compute in ways of their own."""


def quantized() -> nn.Module:
    layer = nn.Linear(8, 8)
    layer.weight = Quantized(layer.weight.data)
    return nn.Sequential(layer)


def twice() -> nn.Module:
    layer = nn.Linear(8, 8)
    return nn.Sequential(layer, nn.Tanh(), layer)


def pruned() -> nn.Module:
    layer = nn.Linear(8, 8)
    prune.l1_unstructured(layer, "weight", amount=0.5)
    return nn.Sequential(layer)


def parametrized_twice() -> nn.Module:
    layer = parametrizations.weight_norm(nn.Linear(8, 8))
    parametrize.register_parametrization(layer, "weight", nn.Tanh())
    return nn.Sequential(layer)


def attention(change: Any) -> nn.Module:
    model = Attention()
    change(model.layer)
    return model


def recurrent(change: Any) -> nn.Module:
    layer = nn.LSTM(8, 8, batch_first=True)
    change(layer)
    return Recurrent(layer)


CASES: dict[str, tuple[Any, list[str], list[str]]] = {
    "LoRA": (Lora, ["b (Linear), starts at zero"], ["base.weight", "a.weight"]),
    "tied by a view": (Autoencoder, ["encoder (Linear), tied weights", "decoder (Linear), tied weights"], []),
    "seen by an attribute": (View, ["layer (Linear), tied weights"], []),
    "used twice": (twice, ["0 (Linear), tied weights"], []),
    "of another class": (quantized, ["0 (Linear), weights of class Quantized"], []),
    "pruned": (pruned, ["0 (Linear)"], []),
    "parametrized twice": (parametrized_twice, ["0.parametrizations.weight (ParametrizationList)"], []),
    "orthogonal": (
        lambda: nn.Sequential(nn.Linear(8, 8), parametrizations.orthogonal(nn.Linear(8, 8))),
        ["1.parametrizations.weight (ParametrizationList)"],
        ["0.weight"],
    ),
    "old weight_norm": (
        lambda: nn.Sequential(nn.Linear(8, 8), nn.utils.weight_norm(nn.Linear(8, 8))),
        ["1 (Linear)"],
        ["0.weight"],
    ),
    "old spectral_norm": (lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(8, 8))), ["0 (Linear)"], []),
    "weight_norm of an LSTM": (
        lambda: recurrent(lambda layer: nn.utils.weight_norm(layer, "weight_hh_l0")),
        ["layer (LSTM)"],
        [],
    ),
    "zero matrix of an LSTM": (
        lambda: recurrent(lambda layer: nn.init.zeros_(layer.weight_hh_l0)),
        ["layer (LSTM), weight_hh_l0: starts at zero"],
        ["layer.weight_ih_l0"],
    ),
    "zero projection of attention": (
        lambda: attention(lambda layer: nn.init.zeros_(layer.out_proj.weight)),
        ["layer.out_proj (NonDynamicallyQuantizableLinear), starts at zero"],
        ["layer.in_proj_weight"],
    ),
    "weight_norm of attention's projection": (
        lambda: attention(lambda layer: parametrizations.weight_norm(layer.out_proj)),
        ["layer.out_proj.parametrizations.weight (ParametrizationList)"],
        ["layer.in_proj_weight"],
    ),
    "quantization-aware": (
        lambda: nn.Sequential(nn.Linear(8, 8), qat.Linear(8, 8, qconfig=get_default_qat_qconfig())),
        ["1 (Linear)"],
        ["0.weight"],
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("make", "dense", "names"), CASES.values(), ids=CASES)
def test_left_dense_by_name(make: Any, dense: list[str], names: list[str], caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = make().eval()
    expected = model(X)
    assert prunable_names(model) == names
    with caplog.at_level(logging.INFO, logger="flsparse"):
        sparsify(model, 1.5, example=X)
    assert caplog.messages[0].partition("left dense: ")[2] == "; ".join(dense)
    assert prunable_names(model) == names
    torch.testing.assert_close(model(X), expected)
    model(X)
    assert torch.equal(export_dense(model)(X), model(X))  # tensors that were computed in a forward pass are copied, too


def test_an_adapter_that_starts_at_zero_learns() -> None:
    torch.manual_seed(0)
    model: Any = sparsify(Lora())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = model.base.weight.clone()
    for _ in range(3):
        optimizer.zero_grad()
        (model(X) - 1).square().sum().backward()
        optimizer.step()
    assert model.b.weight.abs().min() > 0
    assert torch.equal(model.base.weight, before)
    assert prunable_names(model) == ["base.weight", "a.weight"]


def test_a_treated_layer_that_was_pruned_to_nothing_stays_treated() -> None:
    model: Any = sparsify(nn.Sequential(nn.Linear(8, 8)))
    model.load_state_dict({"0.weight": torch.zeros(8, 8), "0.bias": torch.zeros(8)})
    assert prunable_names(model) == ["0.weight"]
    assert model[0].powerprop.sparsity == 1.0


@pytest.mark.parametrize(
    "layer",
    [
        nn.Embedding(3, 4),
        nn.EmbeddingBag(3, 4),
        nn.Bilinear(2, 2, 2),
        nn.LSTMCell(2, 2),
        nn.GRUCell(2, 2),
        nn.LSTM(2, 2, dtype=torch.complex64),
        nn.Linear(2, 2, dtype=torch.complex64),
        nn.Linear(2, 2).to(torch.float8_e4m3fn),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_whole_layers_that_are_left_dense(layer: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    before = {name: p.clone() for name, p in layer.named_parameters()}
    with caplog.at_level(logging.INFO, logger="flsparse"):
        sparsify(nn.Sequential(layer))
    assert f"left dense: 0 ({type(layer).__name__})" in caplog.text
    assert not any((p != before[name]).any() for name, p in layer.named_parameters() if p.dtype != torch.float8_e4m3fn)
    assert prunable_names(layer) == []


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.LazyLinear(3)), r"0 \(LazyLinear\) has no weights yet: run a batch"),
        (nn.Linear(2, 2, device="meta"), "weight is on the meta device: load the model's weights"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_weights_that_are_not_there_yet_are_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sparsify(module)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_an_example_makes_the_weights_of_lazy_layers() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyConv1d(2, 1))
    sparsify(model, example=torch.randn(2, 5, 4))
    assert prunable_names(model) == ["0.weight", "1.weight"]


class Keeper(nn.Module):
    """Keeps what it computed, as caches and memory banks do."""

    def __init__(self, kept: Any) -> None:
        super().__init__()
        self.layer, self.kept = nn.Linear(8, 8), kept

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        self.kept = {"last": [(y,)]}
        return y


def test_tensors_that_were_computed_are_copied_without_history() -> None:
    model = sparsify(Keeper(None))
    y = model(X)
    plain: Any = export_dense(model)
    assert torch.equal(plain.kept["last"][0][0], y)
    assert torch.equal(plain(X), y)


def test_what_cannot_be_copied_is_refused_by_name() -> None:
    model = sparsify(nn.Sequential(Keeper(n for n in range(3))))
    with pytest.raises(ValueError, match=r"^0\.kept cannot be copied: cannot pickle 'generator' object$"):
        export_dense(model)
