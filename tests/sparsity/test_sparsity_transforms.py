"""Sparsified modules under torch's own machinery: functional calls, compilation, autocast, checkpointing, replicas."""

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint
from weight_readers import READERS, Attention, X

from flsparse.sparsity import begin_fit, export_dense, prunable_names, sparsify


class Net(nn.Module):
    """Convolutions, attention that reads past its layers, a recurrent layer and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.attention, self.recurrent = Attention(), nn.GRU(8, 8, batch_first=True)
        self.heads = nn.ModuleList([nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.convolutions(x).flatten(2).mT
        h = self.recurrent(self.attention(h))[0]
        y: Tensor = self.heads[1](self.heads[0](h, h, h)[0]).mean(1)
        return y


def sparse(model: nn.Module, **options: Any) -> Any:
    sparsify(model, **options)
    with torch.no_grad():
        for name in prunable_names(model):
            weight = model.get_parameter(name)
            weight.view(-1)[::3] = 0
    begin_fit(model)
    return model


def gradients(model: nn.Module, y: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    y.float().square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def net(**options: Any) -> Any:
    torch.manual_seed(0)
    return sparse(Net(), **options)


IMAGES = torch.randn(8, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def test_functional_call_exchanges_the_weights() -> None:
    model, other = net(), sparse(Net())
    torch.testing.assert_close(functional_call(model, other.state_dict(), (IMAGES,)), other(IMAGES))


@pytest.mark.parametrize("kind", [*READERS[:3], nn.Conv1d])
def test_per_sample_gradients(kind: Any) -> None:
    torch.manual_seed(0)
    model = sparse(kind(6, 8, 3) if kind is nn.Conv1d else kind())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        y: Tensor = functional_call(model, parameters, (x[None],))
        return y.square().sum()

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    found = vmap(grad(loss), (None, 0))(parameters, X)
    model.eval()  # per-sample gradients are those of the whole inputs
    for i, x in enumerate(X):
        expected = gradients(model, model(x[None]))
        for name, value in expected.items():
            torch.testing.assert_close(found[name][i], value, rtol=1e-4, atol=1e-5)


def test_second_derivatives_are_refused() -> None:
    model: Any = sparsify(nn.Linear(3, 1))
    (first,) = torch.autograd.grad(model(torch.ones(2, 3)).square().sum(), model.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize("pruning", [False, True])
@pytest.mark.filterwarnings("ignore")  # of the compiler, about operations that it does not know
def test_compiled_modules(pruning: bool) -> None:
    model, x = net(activation_pruning=pruning).double(), IMAGES.double()
    y = model(x)
    expected = gradients(model, y)
    compiled: Any = torch.compile(model, backend="aot_eager")
    begin_fit(model)
    torch.testing.assert_close(compiled(x), y)
    begin_fit(model)  # or an input at the old threshold may fall below it by rounding
    found = gradients(model, compiled(x))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert isinstance(model.attention.qkv.weight, nn.Parameter)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_takes_the_power_before_the_cast(dtype: torch.dtype) -> None:
    model = net(activation_pruning=False)
    plain = export_dense(model)
    with torch.autocast("cpu", dtype):
        y, expected = model(IMAGES), plain(IMAGES)
    assert torch.equal(y, expected)
    theirs, ours = gradients(plain, expected), gradients(model, y)
    eps = torch.finfo(dtype).eps
    for name, value in ours.items():
        assert value.dtype == torch.float32
        if name not in prunable_names(model):
            torch.testing.assert_close(value, theirs[name], rtol=8 * eps, atol=8 * eps)


def test_autocast_leaves_doubles_alone() -> None:
    model = sparsify(nn.Linear(3, 2).double())
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.ones(1, 3).double()).dtype == torch.float64


class Checkpointed(nn.Module):
    """Computes its parts again in the backward pass: modules, and a function that reads weights."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.first, self.block, self.head = nn.Linear(8, 8), Attention(), nn.Linear(8, 8)
        self.reentrant = reentrant

    def run(self, part: Any, x: Tensor) -> Tensor:
        y: Tensor = part(x) if self.reentrant is None else checkpoint(part, x, use_reentrant=self.reentrant)
        return y

    def tail(self, x: Tensor) -> Tensor:
        y: Tensor = F.linear(x, self.head.weight) + self.head(x)
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.tail, self.run(self.block, self.first(x)))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("size", [4, 400])
def test_gradient_checkpointing(reentrant: bool, size: int) -> None:
    torch.manual_seed(0)
    model, x = sparse(Checkpointed(None)), torch.randn(size, 6, 8)
    expected = gradients(model, model(x))
    begin_fit(model)
    model.reentrant = reentrant
    for name, value in gradients(model, model(x)).items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("kind", [*READERS, nn.Conv1d])
def test_replicas_of_data_parallel(kind: Any) -> None:
    torch.manual_seed(0)
    model = sparse(kind(6, 8, 3) if kind is nn.Conv1d else kind(), activation_pruning=False)
    replicas = [replica_of(model) for _ in range(2)]
    outputs = [replica(x) for replica, x in zip(replicas, (X[:2], X[2:]), strict=True)]
    torch.testing.assert_close(torch.cat(outputs, 0), torch.cat([model(X[:2]), model(X[2:])]))
    outputs[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.dim() > 1)


def replica_of(model: nn.Module) -> Any:
    """Return what torch.nn.parallel.replicate makes on another device, with copies of the parameters on this one."""
    replicas = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in replicas.items():
        replica._former_parameters = {}
        for name, child in module._modules.items():
            setattr(replica, name, replicas[child] if child is not None else None)
        for name, parameter in module._parameters.items():
            setattr(replica, name, None if parameter is None else parameter.clone())
    return replicas[model]


def test_threads_run_one_module_beside_each_other() -> None:
    model = net(activation_pruning=False)
    expected = model(IMAGES)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(y, expected) for y in pool.map(model, [IMAGES] * 8))


def test_inference_mode() -> None:
    model, twin = net(), Net()
    expected = model.eval()(IMAGES)
    with torch.inference_mode():
        torch.testing.assert_close(model(IMAGES), expected)
        before = twin.eval()(IMAGES)
        sparsify(twin)
        torch.testing.assert_close(twin(IMAGES), before)
        made = Net()
    twin.train()(IMAGES).sum().backward()
    with pytest.raises(ValueError, match="made in inference mode"):
        sparsify(made)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Net().to(dtype).eval()
    x = IMAGES.to(dtype)
    sparsify(model, example=x)
    assert torch.equal(export_dense(model)(x), model(x))
    assert all(p.dtype == dtype for p in model.parameters())


def test_double_precision_stays_close() -> None:
    torch.manual_seed(0)
    model = Net().double().eval()
    expected = model(IMAGES.double())
    torch.testing.assert_close(sparsify(copy.deepcopy(model))(IMAGES.double()), expected, rtol=1e-12, atol=1e-12)
