from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flsparse.metering.flops import step_flops, training_flops
from flsparse.sparsity import begin_fit, layer_densities, sparsify
from flsparse.tasks.models import build_model


def test_three_products_of_a_linear_layer() -> None:
    x = torch.ones(4, 10, requires_grad=True)
    dense, sparse = training_flops(nn.Linear(10, 6), x, {"": (0.1, 0.5)})
    assert dense == 3 * 2 * 60
    assert sparse == pytest.approx(2 * 60 * (2 * 0.1 + 0.5))


def test_the_first_layer_has_no_input_gradient() -> None:
    dense, sparse = training_flops(nn.Linear(10, 6), torch.ones(4, 10), {"": (0.1, 0.5)})
    assert dense == 2 * 2 * 60
    assert sparse == pytest.approx(2 * 60 * (0.1 + 0.5))


def net() -> Any:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))


def test_a_model_and_its_sparsified_form_count_the_same() -> None:
    model, x = net(), torch.randn(2, 3, 8, 8)
    first, last = 2 * 3 * 8 * 9 * 64, 2 * 512 * 10
    assert training_flops(model, x, {}) == (2 * first + 3 * last, 2 * first + 3 * last)
    model[4].weight.data[:9] = 0.0
    sparsify(model)
    statistics, state = model[1].running_mean.clone(), torch.random.get_rng_state()
    flops = training_flops(model, x, layer_densities(model))
    assert flops.dense == 2 * first + 3 * last
    assert flops.sparse == pytest.approx(2 * first + 3 * last * 0.1)
    assert torch.equal(model[1].running_mean, statistics)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model[4].powerprop.threshold is None
    assert all(parameter.grad is None for parameter in model.parameters())


def test_without_activation_pruning_the_weight_gradient_is_dense() -> None:
    model = net()
    model[4].weight.data[:9] = 0.0
    sparsify(model, activation_pruning=False)
    flops = training_flops(model, torch.randn(2, 3, 8, 8), layer_densities(model))
    assert flops.dense - flops.sparse == pytest.approx(2 * 2 * 512 * 10 * 0.9)


@pytest.mark.parametrize("activation_pruning", [True, False])
def test_one_count_is_good_for_all_densities(activation_pruning: bool) -> None:
    model, x = net(), torch.randn(2, 3, 8, 8)
    sparsify(model, activation_pruning=activation_pruning)
    counted = step_flops(model, x)
    for kept in (9, 5, 1, 0):
        model[4].weight.data[kept:] = 0.0
        model[0].weight.data[kept:] = 0.0
        begin_fit(model)
        assert counted.at(layer_densities(model)) == training_flops(model, x, layer_densities(model))


MODELS = {
    "convolutions": (lambda: nn.Sequential(net(), nn.Linear(10, 2)), lambda: torch.randn(2, 3, 8, 8)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 2), lambda: torch.randn(2, 3, 8, 8, requires_grad=True)),
    "attention": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), lambda: torch.randn(2, 5, 8)),
    "text": (lambda: nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9)), lambda: torch.randint(9, (2, 6))),
}


@pytest.mark.parametrize("name", MODELS)
def test_products_are_those_of_torchs_own_counter(name: str) -> None:
    make_model, make_input = MODELS[name]
    model, x = make_model().train(), make_input()
    counted = step_flops(model, x)
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    by_module = {module: sum(counts.values()) for module, counts in counter.get_flop_counts().items()}
    assert counted.dense == by_module["Global"] > 0
    root = type(model).__name__
    for module, _ in model.named_modules():
        assert counted.products[module][1] == by_module.get(f"{root}.{module}" if module else root, 0)


def test_a_layer_that_runs_once_a_character_counts_its_own_products() -> None:
    model, x = build_model({"name": "char_lstm", "hidden": 16}, (20,), 30), torch.randint(30, (2, 20))
    sparsify(model, activation_pruning=False)
    counted, dense = step_flops(model, x), layer_densities(model)
    assert counted.at(dense).sparse == counted.at(dense).dense
    whole = counted.dense / counted.examples
    for kept in (0.5, 0.05, 0.0):
        flops = counted.at(dict.fromkeys(dense, (kept, 1.0)))
        # Two of three products have the weights' density; the first step of a recurrence lacks one.
        assert flops.sparse == pytest.approx(whole * (2 * kept + 1) / 3, rel=0.03)
