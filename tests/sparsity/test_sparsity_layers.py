import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flsparse.sparsity import begin_fit, power, prunable_names, prune_global, sparsify
from flsparse.sparsity.compact import MIN_SIZE

CONVOLUTIONS: list[tuple[type[nn.Module], tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    (nn.Conv1d, (4, 6, 3), {"stride": 2, "padding": 1, "groups": 2}, (3, 4, 9)),
    (nn.Conv1d, (4, 6, 4), {"padding": "same"}, (3, 4, 9)),
    (nn.Conv2d, (4, 6, 3), {"dilation": (1, 2), "padding": (2, 1), "bias": False}, (2, 4, 8, 9)),
    (nn.Conv2d, (4, 4, 3), {"groups": 4, "padding": "valid"}, (2, 4, 8, 9)),
    (nn.Conv2d, (4, 6, (3, 2)), {"padding": "same"}, (2, 4, 8, 9)),
    (nn.Conv2d, (4, 6, 3), {"padding": (1, 2), "padding_mode": "circular"}, (2, 4, 8, 9)),
    (nn.Conv2d, (4, 6, 3), {"padding": 1, "padding_mode": "reflect"}, (2, 4, 8, 9)),
    (nn.Conv2d, (4, 6, 3), {}, (4, 8, 9)),
    (nn.Conv3d, (2, 4, 3), {"stride": (1, 2, 1), "padding": (1, 0, 2)}, (2, 2, 5, 6, 4)),
    (nn.Linear, (5, 7), {}, (3, 5)),
    (nn.Linear, (5, 7), {"bias": False}, (2, 3, 5)),
    (nn.Linear, (5, 7), {}, (5,)),
]


def prune(model: nn.Module, sparsity: float) -> None:
    arrays = {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}
    pruned = prune_global(arrays, sparsity, prunable_names(model))
    model.load_state_dict({name: torch.from_numpy(value) for name, value in pruned.items()})


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # the plain layer copies its input, and says so
@pytest.mark.parametrize(("kind", "sizes", "options", "shape"), CONVOLUTIONS)
def test_outputs_and_gradients_equal_the_plain_layer(kind: Any, sizes: Any, options: Any, shape: Any) -> None:
    torch.manual_seed(0)
    plain = kind(*sizes, **options, dtype=torch.float64)
    layer: Any = sparsify(copy.deepcopy(plain))
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    target = torch.randn_like(plain(x))
    gradients = torch.autograd.grad((plain(x) * target).sum(), [x, *plain.parameters()])
    own = torch.autograd.grad((layer(x) * target).sum(), [x, *layer.parameters()])
    torch.testing.assert_close(layer(x), plain(x))
    v = layer.weight.detach()
    for (name, _), expected, found in zip([("x", x), *plain.named_parameters()], gradients, own, strict=True):
        factor = 1.25 * v.abs() ** 0.25 if name == "weight" else 1.0
        torch.testing.assert_close(found, expected * factor)
    assert torch.autograd.gradcheck(layer, x)


def test_beta_one_without_pruned_weights_is_the_plain_layer_exactly() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 4, 3)
    layer: Any = sparsify(copy.deepcopy(plain), 1.0)
    x = torch.randn(2, 3, 8, 8)
    plain(x).square().sum().backward()
    layer(x).square().sum().backward()
    for ours, theirs in zip(layer.parameters(), plain.parameters(), strict=True):
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


def test_a_zero_stays_a_zero_under_plain_sgd_with_weight_decay() -> None:
    torch.manual_seed(0)
    model = sparsify(nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5)))
    prune(model, 0.9)
    zeros = [parameter == 0 for parameter in model.parameters() if parameter.dim() > 1]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(16, 20)).square().sum().backward()
        optimizer.step()
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    assert all(torch.equal(weight == 0, zero) for weight, zero in zip(weights, zeros, strict=True))


class Tail(nn.Module):
    """A layer whose input is no leaf and is saved by nobody else, as after a norm or a pooling."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x + 0.0)
        return y


@pytest.mark.parametrize("density", [0.02, 0.1, 0.4, 0.9])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_weight_gradient_comes_from_the_pruned_input(density: float, exact: bool, channels_last: bool) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(8, 16, 3, padding=1)
    model = sparsify(Tail(convolution), activation_threshold="exact" if exact else "frozen")
    prune(model, 1 - density)
    x = torch.randn(8, 8, 24, 24, requires_grad=True)
    assert x.numel() >= MIN_SIZE
    if channels_last:
        x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    y = model(x)
    target = torch.randn_like(y)
    grad_x, grad_v, grad_bias = torch.autograd.grad(y, [x, *convolution.parameters()], target)

    v = convolution.weight.detach()
    kept = round(x.numel() * int((v != 0).sum()) / v.numel())
    threshold = x.detach().abs().flatten().topk(kept).values[-1]
    pruned = torch.where(x.detach().abs() >= threshold, x.detach(), 0.0)
    w = power(v, 1.25).requires_grad_()
    torch.testing.assert_close(y, torch.conv2d(x, w, convolution.bias, padding=1))
    dense = torch.conv2d(x, w, padding=1)
    torch.testing.assert_close(grad_x, torch.autograd.grad(dense, x, target)[0])
    (grad_w,) = torch.autograd.grad(torch.conv2d(pruned, w, padding=1), w, target)
    torch.testing.assert_close(grad_v, grad_w * 1.25 * v.abs() ** 0.25, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grad_bias, target.sum((0, 2, 3)), rtol=1e-4, atol=1e-4)


def test_the_threshold_is_frozen_until_the_next_fit() -> None:
    torch.manual_seed(0)
    layer: Any = nn.Linear(100, 10)
    layer.weight.data[:5] = 0
    sparsify(layer)
    layer.eval()(torch.randn(8, 100))
    assert layer.powerprop.threshold is None  # evaluation prunes nothing
    layer.train()(torch.randn(8, 100))
    first: Any = layer.powerprop.threshold
    assert first == pytest.approx(0.67, abs=0.1)  # the median of |normal|
    layer(torch.randn(8, 100) * 10)
    assert layer.powerprop.threshold == first
    begin_fit(layer)
    layer(torch.randn(8, 100) * 10)
    assert layer.powerprop.threshold == pytest.approx(10 * first, rel=0.2)


def test_no_gradient_is_lost_when_weights_or_inputs_want_none() -> None:
    layer: Any = sparsify(nn.Linear(6, 4))
    x = torch.randn(3, 6)
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.bias.grad is not None
    y = layer(x.requires_grad_())
    y.sum().backward()
    torch.testing.assert_close(x.grad, power(layer.weight, 1.25).sum(0).expand(3, 6))


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_relu_with_bits_equals_relu(inplace: bool, channels_last: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    relu: Any = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace))
    relu[0].weight.data.zero_()
    sparsify(relu)
    assert relu[1].as_bits
    x = torch.randn(4, 5, 30, 31, dtype=dtype)
    x[0, 0] = 0.0
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    target = torch.randn(x.shape, dtype=dtype)  # of another memory order than a channels-last output
    (expected,) = torch.autograd.grad(torch.relu(x * 2), x, target)
    y = relu[1](x * 2)
    assert "BitReLU" in y.grad_fn.name()
    assert torch.equal(y, torch.relu(x * 2))
    assert torch.equal(torch.autograd.grad(y, x, target)[0], expected)


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    own = {parameter.data_ptr() for parameter in model.parameters()}
    saved: dict[int, Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.setdefault(tensor.data_ptr(), tensor), lambda tensor: tensor
    ):
        model(x).sum().backward()
    return sum(tensor.untyped_storage().nbytes() for address, tensor in saved.items() if address not in own)


def test_saved_bytes_shrink() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    plain = nn.Sequential(*layers)
    x = torch.randn(8, 8, 32, 32)
    dense, reparametrized, pruned = plain, copy.deepcopy(plain), copy.deepcopy(plain)
    sparsify(reparametrized, activation_pruning=False)
    prune(sparsify(pruned), 0.95)
    base = saved_bytes(dense, x)
    weights = sum(4 * p.numel() for p in reparametrized.parameters() if p.dim() > 1)
    assert saved_bytes(reparametrized, x) <= base + 2 * weights  # of small layers w and dw/dv
    # The inputs of the batch norms are half of it and stay; the batch itself is counted, too.
    assert saved_bytes(pruned, x) < 0.65 * base


def test_nothing_is_stored_twice_after_a_functional_relu() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(8, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(torch.relu(x * 2))
            return y

    torch.manual_seed(0)
    model = Net()
    x = torch.randn(8, 8, 32, 32, requires_grad=True)
    base = saved_bytes(model, x)
    prune(sparsify(model), 0.9)
    assert saved_bytes(model, x) == base


def test_autocast() -> None:
    torch.manual_seed(0)
    model = sparsify(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36 * 36, 2)))
    prune(model, 0.9)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(torch.randn(2, 3, 38, 38))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_diverged_activations_do_not_raise() -> None:
    model: Any = Tail(nn.Linear(100, 10))
    model.layer.weight.data[:5] = 0
    sparsify(model, activation_threshold="exact")
    assert model(torch.full((200, 100), float("nan"))).isnan().all()
