"""Cutting models by layer names, and the advice where to cut."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from flsparse.app.cut_adviser import advice_table, advise, choose_settings, relative_error
from flsparse.codec import MaskEncoding
from flsparse.nets.cutting import candidates, cut_model, default_head
from flsparse.tasks.models import build_model


class Crossing(nn.Module):
    """A long skip connection: no cut between its ends."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        first = self.a(x).relu()
        return self.d(self.c(self.b(first)) * self.scale + first)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2)

    def forward(self, x):
        return self.a(x) if x.sum() > 0 else x


def model(name, shape):
    torch.manual_seed(0)
    return build_model({"name": name}, shape, 10)


@pytest.mark.parametrize(
    ("name", "shape", "cuts"),
    [
        ("cnn", (1, 28, 28), ["2"]),
        ("cnn", (1, 8, 8), ["5", "11"]),
        ("resnet18", (3, 16, 16), ["layer2"]),
        ("resnet18", (3, 16, 16), ["relu", "layer3", "avgpool"]),
        ("resnet20", (3, 16, 16), ["4", "8"]),
        ("vit_tiny", (3, 32, 32), ["blocks.2"]),
    ],
)
def test_parts_one_after_the_other_are_the_model(name, shape, cuts):
    whole = model(name, shape)
    parts = cut_model(whole, cuts)
    assert len(parts) == len(cuts) + 1
    keys = [key for part in parts for key in part.state_dict()]
    assert sorted(keys) == sorted(whole.state_dict())
    whole.eval()
    x = torch.randn(2, *shape)
    out = x
    for part in parts:
        out = part.eval()(out)
    torch.testing.assert_close(out, whole(x), rtol=0, atol=0)
    assert {p.data_ptr() for part in parts for p in part.parameters()} == {p.data_ptr() for p in whole.parameters()}


def test_a_skip_connection_over_the_cut_is_refused():
    crossing = Crossing()
    assert [each.name for each in candidates(crossing)] == ["a"]
    with pytest.raises(ValueError, match="cut=b: more than this layer's output crosses"):
        cut_model(crossing, ["b"])


def test_free_parameters_go_where_they_are_used():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.scale = nn.Linear(3, 3), nn.Linear(3, 3), nn.Parameter(torch.full((3,), 2.0))

        def forward(self, x):
            return self.b(self.a(x) * self.scale)

    whole = Scaled()
    bottom, top = cut_model(whole, ["a"])
    assert "scale" in top.state_dict()
    assert "scale" not in bottom.state_dict()
    x = torch.randn(2, 3)
    torch.testing.assert_close(top(bottom(x)), whole(x))


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match="cannot trace"):
        cut_model(Branching(), ["a"])
    with pytest.raises(ValueError, match=r"no layer 'layer9'; did you mean layer1.*cut at one of conv1, bn1"):
        cut_model(model("resnet18", (3, 16, 16)), ["layer9"])
    with pytest.raises(ValueError, match="order in which"):
        cut_model(model("cnn", (1, 8, 8)), ["5", "2"])


@pytest.mark.parametrize(
    ("name", "cuts", "message"),
    [
        ("cnn", ["12"], r"cut=12: no parameters behind 12; cut at one of 0, 1.*, 11$"),
        ("mlp", ["0"], r"cut=0: no parameters before 0; cut at one of 1, 2"),
        ("cnn", ["2", "12"], r"cut=12: no parameters behind 12; cut at one of 0"),
        ("cnn", ["1", "2"], r"cut=1: no parameters behind 1 up to 2; cut at one of 0"),
    ],
)
def test_a_part_without_parameters_is_refused(name, cuts, message):
    with pytest.raises(ValueError, match=message):
        cut_model(model(name, (1, 8, 8)), cuts)


def test_every_candidate_leaves_parameters_on_both_sides():
    for name, shape in (("cnn", (1, 8, 8)), ("mlp", (1, 8, 8)), ("resnet20", (3, 16, 16))):
        whole = model(name, shape)
        for each in candidates(whole):
            assert len(cut_model(whole, [each.name])) == 2


def test_a_layer_that_is_used_twice_is_no_cut():
    relu = nn.ReLU()
    twice = nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu, nn.Linear(2, 2))
    with pytest.raises(ValueError, match="used 2 times"):
        cut_model(twice, ["1"])


def test_candidates_know_what_cannot_be_negative():
    found = {each.name: each.rectified for each in candidates(model("cnn", (1, 28, 28)))}
    assert list(found) == ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"]
    assert [name for name, rectified in found.items() if rectified] == ["2", "5", "8", "9", "11"]
    assert {each.name: each.rectified for each in candidates(model("resnet18", (3, 16, 16)))}["layer2"]


def test_the_default_head_leaves_the_last_parameters():
    assert default_head(model("cnn", (1, 8, 8)), "2") == "11"
    assert default_head(model("resnet18", (3, 16, 16)), "layer1") == "avgpool"
    with pytest.raises(ValueError, match="cut='11'"):
        default_head(model("cnn", (1, 8, 8)), "11")


def test_a_weight_of_both_sides_is_refused():
    first, last = nn.Linear(4, 4), nn.Linear(4, 4)
    net = nn.Sequential(OrderedDict(a=first, b=nn.ReLU(), c=last))
    last.weight = first.weight
    with pytest.raises(ValueError, match=r"weight c.weight is used on both sides"):
        cut_model(net, ["b"])


def test_advice_measures_each_cut():
    cnn, x = model("cnn", (1, 28, 28)), torch.randn(4, 1, 28, 28)
    rows = {row.cut: row for row in advise(cnn, x)}
    first = rows["0"]  # a 5x5 convolution of 16 channels on 14x14 places
    assert (first.shape, first.parameters) == ((16, 14, 14), 400)
    assert first.flops == (2 + 1) * 2 * 4 * 16 * 14 * 14 * 25  # no gradient for the images
    assert first.dense_bytes == 4 * 4 * 16 * 14 * 14
    assert rows["5"].memory_bytes > rows["2"].memory_bytes > first.memory_bytes
    assert rows["2"].rectified
    assert rows["2"].bits < 2.4
    assert 0 < rows["2"].error < 1
    assert advice_table(list(rows.values()), 4).row_count == len(rows)


def test_advice_leaves_the_model_alone():
    net = model("resnet20", (3, 16, 16))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.eval()
    inputs, drawn = torch.randn(2, 3, 16, 16), torch.get_rng_state()
    next(net.parameters()).requires_grad_(False)
    advise(net, inputs, cuts=["2", "3"])
    assert not any(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_chooser_takes_the_fewest_bytes_that_reach_the_target():
    x = np.maximum(np.random.default_rng(0).standard_normal((4, 8, 8, 8)), 0).astype(np.float32)
    settings, size, error = choose_settings(x, 0.1)
    assert error <= 0.1
    for sparsity, bits in [(0.9, 2), (0.99, 3), (0.99, 4)]:
        other = MaskEncoding(sparsity, bits)
        payload = other.encode(x)
        assert len(payload) >= size or relative_error(other.decode(payload, x.shape), x) > 0.1
    assert settings.bits >= 2
    with pytest.raises(ValueError, match="least error of the grid"):
        choose_settings(x, 1e-9)
    with pytest.raises(ValueError, match="target_error=0"):
        choose_settings(x, 0)
