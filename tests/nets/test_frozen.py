"""Frozen arrays compute as before, and are in no state dict, no optimizer and no sparsified layer."""

import copy

import pytest
import torch
from torch import nn

from flsparse.nets.arrays import state_arrays
from flsparse.nets.frozen import digest, freeze
from flsparse.nets.hidden import hidden_arrays
from flsparse.sparsity import prunable_names, sparsify


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 8), nn.Linear(8, 3)
    )


def test_what_is_frozen_computes_as_before_and_does_not_travel() -> None:
    plain, model = net().eval(), net().eval()
    names = freeze(model, ["0.*", "1.*", "4.weight"])
    images = torch.rand(5, 1, 8, 8)
    assert torch.equal(model(images), plain(images))
    assert names == [name for name in plain.state_dict() if name[0] in "01" or name == "4.weight"]
    assert list(model.state_dict()) == ["4.bias", "5.weight", "5.bias"]
    assert prunable_names(model) == ["5.weight"]
    whole = state_arrays(model) | hidden_arrays(model, names)
    assert {name: array.tolist() for name, array in whole.items()} == {
        name: value.tolist() for name, value in plain.state_dict().items()
    }
    torch.testing.assert_close(sparsify(copy.deepcopy(model))(images), plain(images))


def test_training_moves_neither_weights_nor_statistics_of_a_frozen_norm() -> None:
    model = copy.deepcopy(net())
    names = freeze(model, ["0.*", "1.*"])
    before = digest(hidden_arrays(model, names))
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.rand(5, 1, 8, 8)).square().sum().backward()
        optimizer.step()
    assert not model[1].training
    assert model[4].training
    assert digest(hidden_arrays(model, names)) == before
    assert digest(hidden_arrays(net(), names)) == before


def test_a_recurrent_layer_can_be_frozen() -> None:
    torch.manual_seed(1)
    gru = nn.GRU(3, 4, batch_first=True)
    model = nn.ModuleDict({"gru": gru, "head": nn.Linear(4, 2)})
    x = torch.rand(2, 5, 3)
    before = gru(x)[0]
    names = freeze(model, ["gru.*"])
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied["gru"](x)[0], before)
    copied["head"](copied["gru"](x)[0]).sum().backward()
    assert len(names) == 4
    assert list(copied.state_dict()) == ["head.weight", "head.bias"]


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (["backbone.*"], r"model\.freeze: 'backbone\.\*' names no array of the model"),
        (["0.weigth"], r"did you mean 0\.weight"),
        (["*"], r"model\.freeze=\['\*'\] leaves nothing to train: freeze less"),
    ],
)
def test_patterns_that_cannot_be_are_refused(patterns: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        freeze(net(), patterns)
