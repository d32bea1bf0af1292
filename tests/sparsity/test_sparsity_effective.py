"""Weights that are read past their layer's own forward pass."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils import parametrize, prune
from weight_readers import READERS, Cosine, X

from flsparse.sparsity import begin_fit, check_outputs, export_dense, power, prunable_names, sparsify


def pruned(model: nn.Module) -> list[nn.Parameter]:
    """Return the treated weights, every other value set to zero."""
    weights = [model.get_parameter(name) for name in prunable_names(model)]
    with torch.no_grad():
        for weight in weights:
            weight.view(-1)[::2] = 0
    begin_fit(model)
    return weights


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("beta", [1.0, 1.5, "spectral"])
def test_readers_compute_with_the_effective_weight(kind: type[nn.Module], beta: Any) -> None:
    torch.manual_seed(0)
    model = kind()
    expected = model(X)
    names = dict(model.named_parameters())
    sparsify(model, beta)
    assert dict(model.named_parameters()).keys() == names.keys()
    assert prunable_names(model)
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.forward(X), expected, rtol=1e-4, atol=1e-5)
    plain = export_dense(model)
    assert torch.equal(plain(X), model(X))
    check_outputs(plain, model, X)
    weights = pruned(model)
    model(X).square().sum().backward()
    assert all(weight.grad is not None and (weight.grad != 0).any() for weight in weights)
    if beta == 1.5:
        assert not any((weight.grad[weight == 0] != 0).any() for weight in weights if weight.grad is not None)


def test_outside_a_forward_pass_the_weight_is_the_parameter() -> None:
    model: Any = sparsify(Cosine())
    assert model.head.weight is dict(model.named_parameters())["head.weight"]
    assert model.get_parameter("head.weight") is model.head.weight
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        model(X[..., :3])
    assert isinstance(model.head.weight, nn.Parameter)  # after a failure, too
    model.head.weight = nn.Parameter(torch.ones(5, 8))
    assert model.state_dict()["head.weight"].eq(1).all()


def test_gradients_through_readers_are_those_of_the_power() -> None:
    torch.manual_seed(0)
    model: Any = Cosine().double()
    x = X.double()
    twin = copy.deepcopy(model)
    sparsify(model, 1.5)
    model(x).square().sum().backward()
    twin(x).square().sum().backward()
    v = model.head.weight.detach()
    torch.testing.assert_close(model.head.weight.grad, twin.head.weight.grad * 1.5 * v.abs().sqrt())


def test_torchs_pruning_and_parametrizations_on_top() -> None:
    torch.manual_seed(0)
    model: Any = sparsify(Cosine())
    prune.l1_unstructured(model.head, "weight", amount=0.5)
    model(X).sum().backward()
    assert model.head.weight_orig.grad[model.head.weight_mask == 0].eq(0).all()
    with pytest.raises(ValueError, match="head was parametrized or pruned by torch after sparsify"):
        export_dense(model)
    prune.remove(model.head, "weight")
    assert torch.equal(export_dense(model)(X), model(X))

    model = sparsify(Cosine())

    class Double(nn.Module):
        def forward(self, v: Tensor) -> Tensor:
            return 2 * v

    before = power(2 * model.head.weight.detach(), 1.25)
    parametrize.register_parametrization(model.head, "weight", Double())
    torch.testing.assert_close(model.head(X), F.linear(X, before, model.head.bias))
    with pytest.raises(ValueError, match="head was parametrized"):
        export_dense(model)


class Conv1D(nn.Module):
    """GPT-2's, as transformers.pytorch_utils has it."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) * 0.02), nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view((*x.shape[:-1], self.nf))


Conv1D.__module__, Conv1D.__qualname__ = "transformers.pytorch_utils", "Conv1D"


def test_conv1d_of_gpt2() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(Conv1D(12, 8), nn.ReLU(), Conv1D(8, 12)).double()
    twin = copy.deepcopy(model)
    x = X.double()
    assert prunable_names(model) == ["0.weight", "2.weight"]
    sparsify(model, 1.5)
    assert isinstance(model[0], Conv1D)
    torch.testing.assert_close(model(x), twin(x))
    model(x).square().sum().backward()
    twin(x).square().sum().backward()
    factor = 1.5 * model[0].weight.detach().abs().sqrt()
    torch.testing.assert_close(model[0].weight.grad, twin[0].weight.grad * factor)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    plain: Any = export_dense(model)
    assert type(plain[0]) is Conv1D
    torch.testing.assert_close(plain(x), model(x))


@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
def test_transposed_convolutions(kind: Any) -> None:
    torch.manual_seed(0)
    model = kind(4, 6, 3, stride=2, groups=2)
    x = torch.randn(2, 4, *(5,) * (model.weight.dim() - 2))
    expected = model(x)
    sparsify(model, 1.5)
    torch.testing.assert_close(model(x), expected)
    weights = pruned(model)
    model(x).square().sum().backward()
    assert weights[0].grad is not None
    assert not (weights[0].grad[weights[0] == 0] != 0).any()
    assert torch.equal(export_dense(model)(x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


class Video(nn.Conv3d):
    """A subclass that sets its arguments, as torchvision's video networks have them."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (1, 3, 3), padding=(0, 1, 1), bias=False)


def test_a_subclass_with_the_forward_pass_of_its_base_is_treated_as_it() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(Video(4), nn.ReLU(), Video(4)).double()
    twin, x = copy.deepcopy(model), torch.randn(2, 4, 3, 5, 5).double()
    sparsify(model, 1.5, example=x)
    assert isinstance(model[0], Video)
    assert prunable_names(model) == ["0.weight", "2.weight"]
    model(x).square().sum().backward()
    twin(x).square().sum().backward()
    factor = 1.5 * model[0].weight.detach().abs().sqrt()
    torch.testing.assert_close(model[0].weight.grad, twin[0].weight.grad * factor)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    assert type(export_dense(model)[0]) is Video  # type: ignore[index]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(8,), (4, 8), (2, 3, 8), (2, 1, 3, 8)])
def test_the_next_layer_may_change_the_result_in_place(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 8, bias=bias), nn.ReLU(inplace=True))
    model = sparsify(copy.deepcopy(plain), 1.0)
    x = torch.randn(shape)
    model(x).sum().backward()
    plain(x).sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_layers_beside_parametrizations_and_ensembles() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    parametrize.register_parametrization(layer, "bias", nn.Tanh())
    model: Any = nn.Sequential(layer, nn.Linear(8, 2))
    kind, state = type(layer), copy.deepcopy(model.state_dict())
    sparsify(model, example=X)
    assert prunable_names(model) == ["0.weight", "1.weight"]
    plain: Any = export_dense(model)
    assert type(plain[0]) is kind
    torch.testing.assert_close(plain.state_dict(), state)

    models = [sparsify(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))) for _ in range(3)]
    parameters, buffers = stack_module_state(models)
    y = vmap(lambda p, b: functional_call(models[0], (p, b), (X,)))(parameters, buffers)
    torch.testing.assert_close(y, torch.stack([each(X) for each in models]))

    twin = sparsify(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))
    twin.load_state_dict(models[0].state_dict(), assign=True)
    assert torch.equal(twin(X), models[0](X))
