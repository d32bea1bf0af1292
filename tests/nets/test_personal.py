"""Personal arrays train beside a model that does not have them."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from flsparse.nets.arrays import load_arrays, state_arrays
from flsparse.nets.batch_norm import batch_norm_statistics
from flsparse.nets.frozen import freeze
from flsparse.nets.hidden import hidden_arrays, hidden_parameters, load_hidden
from flsparse.nets.personal import keep_local
from flsparse.sparsity import prunable_names, sparsify


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def train(model: nn.Module, parameters: list[torch.Tensor]) -> None:
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    stream = torch.Generator().manual_seed(1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.rand(5, 1, 8, 8, generator=stream)).square().sum().backward()
        optimizer.step()


def test_a_model_with_personal_arrays_trains_as_without_and_shows_the_others_alone() -> None:
    plain, model = net(), net()
    names = keep_local(model, ["1.*", "4.bias"])
    assert names == [name for name in plain.state_dict() if name[0] == "1" or name == "4.bias"]
    assert list(model.state_dict()) == ["0.weight", "0.bias", "4.weight"]
    assert [name for name, _ in model.named_parameters()] == list(model.state_dict())
    model = copy.deepcopy(model)
    train(plain, list(plain.parameters()))
    train(model, [*model.parameters(), *hidden_parameters(model, names)])
    whole = state_arrays(model) | hidden_arrays(model, names)
    assert {name: array.tolist() for name, array in whole.items()} == {
        name: value.tolist() for name, value in plain.state_dict().items()
    }


def test_personal_arrays_are_put_back_and_the_model_from_elsewhere_leaves_them() -> None:
    model, other = net(), net()
    names = keep_local(model, ["1.*"])
    keep_local(other, ["1.*"])
    train(model, [*model.parameters(), *hidden_parameters(model, names)])
    own = hidden_arrays(model, names)
    load_arrays(model, state_arrays(other))
    assert {name: array.tolist() for name, array in hidden_arrays(model, names).items()} == {
        name: array.tolist() for name, array in own.items()
    }
    load_hidden(other, own)
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(model.eval()(images), other.eval()(images))
    with pytest.raises(ValueError, match=r"array '1.weight' is \(5,\), not \(4,\) as in the model"):
        load_hidden(other, {"1.weight": np.zeros(5, np.float32)})


def test_a_personal_layer_is_left_dense_in_a_sparsified_model() -> None:
    plain, model = net(), net()
    keep_local(model, ["4.*"])
    assert prunable_names(model) == ["0.weight"]
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(sparsify(copy.deepcopy(model)).eval()(images), plain.eval()(images))


def test_both_names_of_a_tied_array_are_hidden() -> None:
    embedding, head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
    head.weight = embedding.weight
    model = nn.ModuleDict({"embedding": embedding, "body": nn.Linear(4, 4), "head": head})
    names = keep_local(model, ["head.*"])
    assert names == ["embedding.weight", "head.weight"]
    assert len(hidden_parameters(model, names)) == 1
    assert list(model.state_dict()) == ["body.weight", "body.bias"]
    assert copy.deepcopy(model)["head"].weight.requires_grad


@pytest.mark.parametrize("hidden", [keep_local, freeze])
def test_the_hidden_statistics_of_a_batch_norm_are_not_estimated(
    hidden: Callable[[nn.Module, list[str]], list[str]],
) -> None:
    model = net()
    names = hidden(model, ["1.*"])
    before = hidden_arrays(model, names)
    assert batch_norm_statistics(model, [torch.rand(8, 1, 8, 8)]) == {}
    assert all(np.array_equal(array, before[name]) for name, array in hidden_arrays(model, names).items())
    assert list(batch_norm_statistics(net(), [torch.rand(8, 1, 8, 8)])) == ["1.running_mean", "1.running_var"]


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (["head.*"], r"model\.local: 'head\.\*' names no array of the model"),
        (["4.wieght"], r"did you mean .*4\.weight"),
        (["*"], r"model\.local=\['\*'\] leaves no array that nodes would learn together: keep fewer"),
    ],
)
def test_patterns_that_cannot_be_are_refused(patterns: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        keep_local(net(), patterns)
