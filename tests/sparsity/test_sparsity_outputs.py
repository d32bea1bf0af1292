"""The comparison of outputs: what it sees, what it names, what it leaves behind."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flsparse.sparsity import check_outputs, export_dense, sparsify

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Captured(nn.Module):
    """A function holds the parameter itself: no reparametrization can reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        weight = self.layer.weight
        self.function = lambda x: F.linear(x, weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.function(self.layer(x))
        return y


def net() -> Any:
    torch.manual_seed(0)
    head = nn.Linear(8, 2)
    nn.init.zeros_(head.weight)  # hides from the last output what is wrong before it
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), Captured(), nn.Dropout(0.5), head)


def test_a_change_is_refused_by_name_and_undone() -> None:
    model = net()
    state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    kinds = [type(module) for module in model.modules()]
    generator = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"changes the outputs of 2 \(Captured\) by 0\.\d+, more than"):
        sparsify(model, example=X)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in model.modules()] == modes
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._load_state_dict_post_hooks for module in model.modules())
    sparsify(model)  # without an example nobody looks


def test_two_modules_are_compared() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))
    twin = copy.deepcopy(model)
    check_outputs(twin, sparsify(model, 2.0), X)
    check_outputs(export_dense(model), model, (X,))
    with torch.no_grad():
        model[2].bias += 0.01
    with pytest.raises(ValueError, match=r"outputs of 2 \(Linear\) by 0\.01"):
        check_outputs(twin, model, X)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, x: Tensor, *, scale: float) -> dict[str, Any]:
        return {"logits": self.layer(x) * scale, "classes": [torch.arange(2), None]}


def test_named_inputs_and_structured_outputs() -> None:
    model: Any = sparsify(Named(), example={"x": X, "scale": 2.0})
    broken = copy.deepcopy(model)
    broken.layer.weight.data.mul_(2)
    with pytest.raises(ValueError, match=r"outputs of layer \(Linear\)"):
        check_outputs(model, broken, {"x": X, "scale": 2.0})


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("trainable", [True, False])
def test_encoders_with_a_fused_path_are_compared(trainable: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).requires_grad_(trainable)
    padding = torch.zeros(1, 4, dtype=torch.bool)
    padding[0, 3] = True
    example = {"src": X[None], "src_key_padding_mask": padding}
    sparsify(model, 1.5, example=example)
    assert torch.backends.mha.get_fastpath_enabled()
    broken: Any = copy.deepcopy(model)
    broken.layers[1].linear2.__class__ = nn.Linear
    with pytest.raises(ValueError, match=r"layers\.1\.linear2"):
        check_outputs(model, broken, example)
