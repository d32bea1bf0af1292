from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flsparse.tasks import build_task
from flsparse.tasks import task as tasks
from flsparse.tasks.data import Data, Source
from flsparse.tasks.objectives import Classification, Regression
from flsparse.tasks.training import evaluate

FitNode = Callable[..., Any]


def as_stored(batch: torch.Tensor) -> torch.Tensor:
    return batch


def numbers(*, outputs: int = 1) -> Source:
    """Return a linear problem of 80 + 20 samples of 5 features, whose targets are float32."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(100, 5, generator=draw)
    targets = inputs @ torch.randn(5, outputs, generator=draw) + 3
    targets = targets[:, 0] if outputs == 1 else targets
    return Source(inputs[:80], targets[:80], inputs[80:], targets[80:], 0, as_stored, objective="regression")


def everything(source: Source) -> Data:
    return Data(source.test_inputs, source.test_targets, torch.arange(len(source.test_inputs)), source.prepare)


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setitem(tasks.LOADERS, "numbers", numbers)

    def build(outputs: int = 1) -> Any:
        return build_task(
            {
                "dataset": {"name": "numbers", "outputs": outputs},
                "model": {"name": "mlp"},
                "partition": {"kind": "iid"},
                "num_clients": 2,
                "seed": outputs,
            }
        )

    return build


@pytest.mark.parametrize("outputs", [1, 3])
def test_regression_learns_numbers_that_are_no_integers(linear: Any, fit_node: FitNode, outputs: int) -> None:
    task = linear(outputs)
    assert task.objective.name == "regression"
    model = nn.Linear(5, outputs)
    before = task.evaluate(model, task.test_data())
    _, fit, _ = fit_node(task, 0, model=model, **{"local-epochs": 60})
    after = task.evaluate(model, task.test_data())
    assert after["loss"] < 1e-3 * before["loss"]
    assert "accuracy" not in after
    assert "train-accuracy" not in fit.metrics


def test_the_loss_of_regression_is_the_mean_square_over_samples_and_outputs() -> None:
    source = numbers(outputs=3)
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    found = evaluate(model, everything(source), Regression())
    errors = (model(source.test_inputs) - source.test_targets).detach().numpy()
    assert found["loss"] == pytest.approx(float(np.mean(errors**2)), rel=1e-6)


def test_outputs_that_do_not_fit_are_refused_and_not_broadcast() -> None:
    with pytest.raises(ValueError, match="the model has 1 outputs a sample, the targets 3"):
        evaluate(nn.Linear(5, 1), everything(numbers(outputs=3)), Regression())


def test_classes_may_be_stored_as_bytes() -> None:
    stored = torch.tensor([[1, 2], [0, 1]], dtype=torch.uint8)
    assert Classification().target(stored).dtype == torch.int64
    assert Classification().target(stored).tolist() == [1, 2, 0, 1]
