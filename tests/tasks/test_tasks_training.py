from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flsparse.schedules import learning_rate
from flsparse.sparsity import begin_fit, sparsify
from flsparse.tasks import build_task
from flsparse.tasks.data import batches

FitNode = Callable[..., Any]


def test_learning_rate_by_round() -> None:
    assert learning_rate(1, 700, 0.5, 0.01) == 0.5
    assert learning_rate(351, 700, 0.5, 0.01) == pytest.approx((0.5 * 0.01) ** 0.5)
    assert learning_rate(700, 700, 0.5, 0.01) == pytest.approx(0.01, rel=0.01)
    assert learning_rate(30, 30, 0.5) == 0.5
    with pytest.raises(ValueError, match=r"client\.lr=0"):
        learning_rate(1, 10, 0.0)


@pytest.mark.parametrize(
    ("size", "batch_size", "sizes"),
    [(33, 16, [16, 17]), (34, 16, [16, 16, 2]), (1, 16, [1]), (3, 1, [1, 1, 1]), (5, 8, [5])],
)
def test_a_left_over_sample_joins_the_last_batch(size: int, batch_size: int, sizes: list[int]) -> None:
    found = list(batches(size, batch_size, torch.Generator().manual_seed(0), epochs=1))
    assert [len(batch) for batch in found] == sizes
    assert sorted(torch.cat(found).tolist()) == list(range(size))


def test_local_steps_go_over_as_many_epochs_as_it_takes() -> None:
    found = list(batches(20, 8, torch.Generator().manual_seed(0), epochs=1, steps=7))
    assert [len(batch) for batch in found] == [8, 8, 4, 8, 8, 4, 8]
    assert torch.cat(found[:3]).tolist() != torch.cat(found[3:6]).tolist()


def test_fit_learns_and_reports(digits_config: dict[str, Any], fit_node: FitNode) -> None:
    task = build_task(digits_config)
    before = task.evaluate(task.model(), task.train_data(0))
    _, fit, method = fit_node(task, 0, **{"local-epochs": 5})
    after = task.evaluate(fit.model, task.train_data(0))
    assert after["loss"] < 0.8 * before["loss"]
    assert after["accuracy"] > before["accuracy"]
    steps = int(fit.metrics["steps"])
    assert fit.step == steps == 5 * 4
    assert method.calls == ["before_fit", *["after_backward", "after_step"] * steps, "after_fit"]
    assert fit.metrics["num-examples"] == len(task.train_data(0))
    assert fit.metrics["step-seconds"] > 0
    assert fit.metrics["peak-memory-bytes"] > 1e7
    assert fit.metrics["flops-dense"] == fit.metrics["flops-sparse"] > 5 * len(task.train_data(0)) * 3 * 2 * 40_208
    assert {"train-loss", "train-accuracy"} <= fit.metrics.keys()


def test_training_that_diverged_is_refused_by_name_with_the_mend(
    digits_config: dict[str, Any], fit_node: FitNode
) -> None:
    task = build_task(digits_config)
    with pytest.raises(
        ValueError, match=r"training diverged: 0\.weight is not finite after \d+ steps at learning rate"
    ):
        fit_node(task, 0, lr=1e12)
    model = task.model()
    with torch.no_grad():
        next(model.parameters())[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"after 1 step at learning rate 0\.1; lower client\.lr"):
        fit_node(task, 0, model=model, **{"local-steps": 1})


def test_fit_is_the_same_twice_and_in_any_order(digits_config: dict[str, Any], fit_node: FitNode) -> None:
    task = build_task(digits_config)
    forward = {node: fit_node(task, node)[0] for node in (0, 1, 2)}
    torch.manual_seed(123)
    backward = {node: fit_node(task, node)[0] for node in (2, 1, 0)}
    for node, arrays in forward.items():
        for name, array in arrays.items():
            assert array.tobytes() == backward[node][name].tobytes()


def test_dropout_follows_the_seed_and_leaves_the_global_generator(
    digits_config: dict[str, Any], fit_node: FitNode
) -> None:
    task = build_task(digits_config)

    def fit(state: int) -> np.ndarray:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
        torch.manual_seed(state)
        before = torch.get_rng_state()
        arrays, _, _ = fit_node(task, 0, model=model)
        assert torch.equal(before, torch.get_rng_state())
        weight: np.ndarray = arrays["2.weight"]
        return weight

    assert np.array_equal(fit(1), fit(2))


def test_fit_is_plain_sgd(digits_config: dict[str, Any], fit_node: FitNode) -> None:
    task = build_task(digits_config)
    data = task.train_data(0)
    config = {"batch-size": len(data), "local-steps": 2, "momentum": 0.9, "weight-decay": 0.01, "lr": 0.05}
    arrays, _, _ = fit_node(task, 0, **config)
    model = task.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.prepare(data.inputs)), data.targets).backward()
        optimizer.step()
    for name, tensor in model.state_dict().items():
        np.testing.assert_allclose(arrays[name], tensor.numpy(), rtol=1e-4, atol=1e-6)


def test_clipping_bounds_a_step(digits_config: dict[str, Any], fit_node: FitNode) -> None:
    task = build_task(digits_config)
    start = task.model().state_dict()
    arrays, _, _ = fit_node(task, 0, **{"local-steps": 1, "lr": 1.0, "clip-grad": 0.01})
    moved = sum(float(((arrays[name] - start[name].numpy()) ** 2).sum()) for name in arrays) ** 0.5
    assert moved == pytest.approx(0.01, rel=1e-2)


def test_batch_norm_trains_with_one_sample_left_over(digits_config: dict[str, Any], fit_node: FitNode) -> None:
    task = build_task(digits_config)
    size = len(task.train_data(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    arrays, _, _ = fit_node(task, 0, model=model, **{"batch-size": size - 1})
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert int(arrays["2.num_batches_tracked"]) == 1


def test_evaluate_counts_every_sample_once_and_keeps_the_mode(digits_config: dict[str, Any]) -> None:
    task = build_task(digits_config)
    model, data = task.model().train(), task.test_data()
    found = task.evaluate(model, data)
    with torch.no_grad():
        logits = model(data.prepare(data.inputs))
    assert found["num-examples"] == 359
    assert found["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, data.targets)), rel=1e-5)
    assert found["accuracy"] == pytest.approx(float((logits.argmax(1) == data.targets).float().mean()))
    assert model.training


@pytest.mark.parametrize("change", [{"batch-size": 0}, {"local-epochs": 0}])
def test_no_work_is_refused(digits_config: dict[str, Any], fit_node: FitNode, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        fit_node(build_task(digits_config), 0, **change)


def test_sparse_flops_follow_the_weights(digits_config: dict[str, Any], fit_node: FitNode) -> None:
    task = build_task(digits_config)
    model = sparsify(task.model(), 1.25)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.flatten()[: round(0.9 * parameter.numel())] = 0
    begin_fit(model)
    _, fit, _ = fit_node(task, 0, model=model)
    assert fit.metrics["flops-sparse"] == pytest.approx(0.1 * fit.metrics["flops-dense"], rel=0.05)
