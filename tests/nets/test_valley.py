"""Mean Valley on functions whose walls are known, and on a net."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flsparse.nets.valley import batch_statistics, component_norms, line, loss_on, mean_valley, valley_of_curves

ZERO = {"a.weight": np.zeros((2, 2), np.float32), "b.weight": np.zeros(3, np.float32)}


def bowl(c: float, a: float) -> Any:
    return lambda x: c + a * sum(float(np.sum(v.astype(np.float64) ** 2)) for v in x.values())


def away(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: (scale * rng.normal(size=x.shape)).astype(np.float32) for n, x in ZERO.items()}


@pytest.mark.parametrize(("c", "a", "kappa"), [(1.0, 4.0, 2.0), (0.1, 0.5, 2.0), (0.02, 1.0, 3.0)])
def test_the_wall_of_a_bowl_is_where_algebra_puts_it(c: float, a: float, kappa: float) -> None:
    found = mean_valley(bowl(c, a), ZERO, [away(1), away(2, 30.0)], kappa=kappa, halvings=16)
    assert found.distances == pytest.approx([np.sqrt((kappa - 1) * c / a)] * 2, rel=1e-4)
    assert found.reached == [True, True]
    assert found.mean_valley == -found.inverse_mean_valley
    assert found.average_loss == c


def test_losses_at_every_step_give_the_same_wall_to_interpolation() -> None:
    losses = [1 + 4 * (0.1 * i) ** 2 for i in range(1, 21)]
    found = valley_of_curves(1.0, [losses, [1.0, 1.0]], kappa=2.0, step=0.1)
    assert found.distances == pytest.approx([0.5, 0.2], abs=1e-6)
    assert found.reached == [True, False]
    assert found.curves[0][:2] == [(0.0, 1.0), (0.1, pytest.approx(1.04))]


def test_a_flat_valley_costs_a_bounded_walk() -> None:
    calls = []

    def loss(arrays: Mapping[str, np.ndarray]) -> float:
        calls.append(1)
        return 1.0

    found = mean_valley(loss, ZERO, [away(1)], max_steps=7)
    assert found.distances == [pytest.approx(0.7)]
    assert (found.reached, len(calls)) == ([False], 8)


def test_a_loss_that_is_nan_is_a_wall() -> None:
    found = mean_valley(lambda x: 1.0 if abs(x["b.weight"]).max() == 0 else float("nan"), ZERO, [away(1)])
    assert found.reached == [True]
    assert found.distances[0] < 0.01


def test_a_worker_on_the_average_is_left_out() -> None:
    assert mean_valley(bowl(1, 1), ZERO, [ZERO, away(1)]).reached == [True]
    assert np.isnan(mean_valley(bowl(1, 1), ZERO, [ZERO]).mean_valley)


def test_a_subset_walks_along_its_own_parameters_alone() -> None:
    ray = line(ZERO, away(1), ["b.weight"], normalize=False)
    assert ray is not None
    point = ray.point(2.0)
    assert not point["a.weight"].any()
    assert np.linalg.norm(point["b.weight"]) == pytest.approx(2.0)
    with pytest.raises(ValueError, match=r"'c\.weight' is none of the parameters a\.weight, b\.weight"):
        line(ZERO, away(1), ["c.weight"])


def test_components_are_layers_and_have_norm_one_in_the_average() -> None:
    average = {"fc.weight": np.full((1, 2), 3.0), "fc.bias": np.array([0.0]), "n.weight": np.array([4.0])}
    assert component_norms(average) == {"fc": pytest.approx(18**0.5), "n": 4.0}
    worker = {"fc.weight": average["fc.weight"], "fc.bias": np.array([0.0]), "n.weight": np.array([6.0])}
    ray = line(average, worker)
    assert ray is not None
    assert ray.length == pytest.approx(0.5)
    assert ray.point(1.0)["n.weight"] == pytest.approx([8.0])  # one unit doubles the component


def test_rescaling_a_scale_invariant_net_leaves_its_valley() -> None:
    """A convolution before batch norm may be scaled by anything: the function is the same, and so is the valley."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        )
        batches = [(torch.randn(30, 1, 6, 6), torch.randint(0, 3, (30,)))]
    loss = loss_on(model, batches)
    average = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    rng = np.random.default_rng(0)
    worker = {n: x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for n, x in average.items()}
    scaled = [{n: x * np.float32(10 if n == "0.weight" else 1) for n, x in m.items()} for m in (average, worker)]
    first = mean_valley(loss, average, [worker], max_steps=80)
    second = mean_valley(loss, scaled[0], [scaled[1]], max_steps=80)
    assert first.reached == [True]
    assert second.mean_valley == pytest.approx(first.mean_valley, rel=1e-2)


def test_batch_statistics_touch_nothing() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5)).train()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    with torch.no_grad(), batch_statistics(model):
        out = model(torch.tensor([[0.0, 10.0], [2.0, 30.0]]))
    assert torch.allclose(out, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), atol=1e-4)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("bad", [{"kappa": 1.0}, {"step": 0.0}, {"max_steps": 0}, {"halvings": -1}])
def test_impossible_bounds_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        mean_valley(bowl(1, 1), ZERO, [away(1)], **bad)
