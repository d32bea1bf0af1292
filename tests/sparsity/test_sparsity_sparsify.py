import copy
import io
import logging
import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flsparse.sparsity import begin_fit, export_dense, layer_densities, prunable_names, sparsify


def net() -> Any:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(8 * 9, 10),
    ]
    return nn.Sequential(*layers)


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("beta", [1.0, 1.25, 2.0, "spectral"])
def test_outputs_stay_and_export_is_plain(beta: Any) -> None:
    model = net().eval()
    expected, keys = model(X), list(model.state_dict())
    same = [id(parameter) for parameter in model.parameters()]
    assert sparsify(model, beta) is model
    assert [id(parameter) for parameter in model.parameters()] == same
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == keys
    plain: Any = export_dense(model)
    assert torch.equal(plain(X), model(X))
    assert [type(module) for module in plain.modules()] == [type(module) for module in net().modules()]
    assert vars(plain[0]).keys() == vars(net()[0]).keys()
    sparsify(plain)  # a plain module in every respect


def test_state_dict_of_the_export_loads_into_the_original() -> None:
    model = sparsify(net()).eval()
    original = net().eval()
    original.load_state_dict(export_dense(model).state_dict())
    assert torch.equal(original(X), model(X))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict"])
def test_copies_and_saving(how: str) -> None:
    model: Any = sparsify(net(), 1.5).eval()
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        twin = sparsify(net(), 1.5).eval()
        twin.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    assert torch.equal(twin(X), model(X))
    twin[0].weight.data.zero_()
    begin_fit(twin)
    assert model[0].powerprop.sparsity == 0.0
    assert twin[0].powerprop.sparsity == 1.0


def test_hooks_buffers_and_dtypes_survive() -> None:
    model = net().double().eval()
    seen: list[torch.Size] = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    model[3].register_buffer("extra", torch.arange(3))
    sparsify(model)
    model(X.double())
    assert seen == [(4, 8, 8, 8)]
    assert model.state_dict()["3.extra"].tolist() == [0, 1, 2]
    assert model[6].weight.dtype == torch.float64


def test_names_before_and_after() -> None:
    names = ["0.weight", "3.weight", "6.weight"]
    assert prunable_names(net()) == prunable_names(sparsify(net())) == names
    assert prunable_names(nn.Linear(2, 2)) == ["weight"]


def test_twice_is_refused_and_bad_options_named() -> None:
    with pytest.raises(ValueError, match="sparsified already"):
        sparsify(sparsify(net()))
    with pytest.raises(ValueError, match=r"beta=0\.5 is neither"):
        sparsify(net(), 0.5)
    with pytest.raises(ValueError, match="activation_threshold='often' is none of"):
        sparsify(net(), activation_threshold="often")  # type: ignore[arg-type]


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.decoder = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.decoder(self.embedding(tokens))
        return logits


@pytest.mark.parametrize(
    ("module", "label"),
    [
        (Doubled(3, 3), "layer (Doubled)"),
        (Tied(), "layer.decoder (Linear), tied weights"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), "layer.parametrizations.weight (ParametrizationList)"),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), "layer.parametrizations.weight"),
    ],
)
def test_what_is_left_dense_is_named_in_one_line(
    module: nn.Module, label: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(OrderedDict(first=nn.Linear(3, 3), layer=module))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with caplog.at_level(logging.INFO, logger="flsparse"):
        sparsify(model)
    assert len(caplog.records) == 1
    assert label in caplog.text
    assert prunable_names(model) == ["first.weight"]
    for name, value in model.state_dict().items():
        assert name == "first.weight" or torch.equal(value, before[name])


def test_a_plain_model_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="flsparse"):
        sparsify(net())
    assert not caplog.records


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_get_the_reparametrization(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    layer = kind(3, 5, num_layers=2, bidirectional=True)
    x = torch.randn(4, 2, 3)
    expected = layer(x)[0]
    with caplog.at_level(logging.INFO, logger="flsparse"):
        sparsify(layer)
    assert "reparametrization alone: (root)" in caplog.text
    torch.testing.assert_close(layer(x)[0], expected)
    assert len(prunable_names(layer)) == 8
    with torch.no_grad():
        layer.weight_hh_l1[2] = 0.0
    layer(x)[0].sum().backward()
    assert (layer.weight_hh_l1.grad[2] == 0).all()
    assert (layer.weight_hh_l1.grad != 0).any()
    plain = export_dense(copy.deepcopy(layer))
    assert type(plain) is kind
    assert torch.equal(plain(x)[0], layer(x)[0])


@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 4}])
def test_attention_gets_the_reparametrization(sizes: dict[str, int]) -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True, **sizes)
    q = torch.randn(2, 5, 8)
    k, v = torch.randn(2, 5, sizes.get("kdim", 8)), torch.randn(2, 5, sizes.get("vdim", 8))
    expected = layer(q, k, v)[0]
    sparsify(layer, 1.5)
    assert prunable_names(layer)[-1] == "out_proj.weight"
    torch.testing.assert_close(layer(q, k, v)[0], expected)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(q, k, v)[0], expected)
    assert all(isinstance(parameter, nn.Parameter) for parameter in layer.parameters())
    layer(q, k, v)[0].sum().backward()
    assert layer.out_proj.weight.grad is not None


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # the plain module's fast path
@pytest.mark.parametrize("padded", [False, True])
def test_transformer_encoders_do_not_slip_past_in_eval_mode(padded: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    x = torch.randn(3, 5, 16)
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[1, 3:] = padded
    sparsify(model, 2.0)
    trained = model.train()(x, src_key_padding_mask=mask)
    with torch.no_grad():
        evaluated = model.eval()(x, src_key_padding_mask=mask)
    torch.testing.assert_close(evaluated[~mask], trained[~mask])
    plain: Any = export_dense(model)
    with torch.no_grad():
        torch.testing.assert_close(plain(x, src_key_padding_mask=mask)[~mask], evaluated[~mask])
    assert plain.use_nested_tensor
    assert plain.layers[0].activation_relu_or_gelu == 1


def test_loading_starts_a_new_fit() -> None:
    model: Any = sparsify(net(), "spectral")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["6.weight"][:9] = 0.0
    before = model[6].powerprop.beta
    model[6].powerprop.threshold = 0.5
    model.load_state_dict(state)
    assert model[6].powerprop.sparsity == pytest.approx(0.9)
    assert model[6].powerprop.threshold is None
    assert model[6].powerprop.beta != before


def test_layer_densities() -> None:
    model: Any = nn.Sequential(nn.Linear(10, 10), nn.LSTM(3, 5))
    model[0].weight.data[:8] = 0.0
    sparsify(model)
    assert layer_densities(model) == {"0": (0.2, 0.2), "1": (1.0, 1.0)}
    attention: Any = nn.Sequential(nn.MultiheadAttention(8, 2))
    attention[0].out_proj.weight.data[:4] = 0.0  # 32 of 256 weights
    assert layer_densities(sparsify(attention)) == {"0": (0.875, 1.0)}
