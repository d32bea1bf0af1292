"""Objectives and their metrics: against numbers worked out by scikit-learn, and exact over parts of any size."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import nn
from torch.nn.functional import cross_entropy

from flsparse.tasks import build_task
from flsparse.tasks import task as tasks
from flsparse.tasks.data import Data, Source
from flsparse.tasks.metrics import Meter, known_metrics
from flsparse.tasks.objective import Objective
from flsparse.tasks.objectives import (
    OBJECTIVES,
    BinarySegmentation,
    Classification,
    Forecasting,
    MultiLabel,
    NextToken,
    Reconstruction,
    Regression,
    Segmentation,
)
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


def source(inputs: Sequence[int], targets: torch.Tensor, num_classes: int = 0) -> Source:
    """Return a data set of given targets, in training and test, with inputs of a shape."""
    empty = torch.zeros(len(targets), *inputs)
    return Source(empty, targets, empty, targets, num_classes, as_stored)


def everything(source: Source) -> Data:
    return Data(source.test_inputs, source.test_targets, torch.arange(len(source.test_inputs)), source.prepare)


def measured(objective: Objective, raw: torch.Tensor, target: torch.Tensor, *names: str) -> dict[str, Any]:
    """Return the metrics of given outputs, from parts of 1, 3 and all other samples that travel as sums."""
    outputs = raw.shape[1]
    whole = Meter(objective, outputs, names)
    for part in (slice(0, 1), slice(1, 4), slice(4, None)):
        meter = Meter(objective, outputs, names)
        meter.add(raw[part], target[part])
        whole.merge(meter.sums())
    at_once = Meter(objective, outputs, names)
    at_once.add(raw, target)
    together, alone = whole.scores(), at_once.scores()
    assert together.pop("confusion_matrix", None) == alone.get("confusion_matrix")
    assert together == pytest.approx({key: alone[key] for key in together}, rel=1e-6)
    return alone


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
    assert after["rmse"] == pytest.approx(after["loss"] ** 0.5, rel=1e-5)
    assert "accuracy" not in after
    assert "train-accuracy" not in fit.metrics


def test_numbers_are_measured_as_by_scikit_learn() -> None:
    draw = torch.Generator().manual_seed(1)
    truth = 100 + torch.randn(50, 3, generator=draw)
    guess = truth + torch.randn(50, 3, generator=draw)
    found = measured(Regression(), guess, truth, "mae", "rmse", "r2")
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(truth, guess), rel=1e-6)
    assert found["rmse"] == pytest.approx(sk.mean_squared_error(truth, guess) ** 0.5, rel=1e-6)
    assert found["r2"] == pytest.approx(sk.r2_score(truth, guess), rel=1e-6)
    assert found["loss"] == pytest.approx(float(np.mean((truth - guess).numpy() ** 2)), rel=1e-6)


def test_the_root_of_several_outputs_is_of_all_of_them_together() -> None:
    """RMSE is a root of a mean, not a mean of roots."""
    found = measured(Regression(), torch.tensor([[0.0, 3.0]] * 5), torch.zeros(5, 2), "rmse")
    assert found["rmse"] == pytest.approx(4.5**0.5)


def test_errors_of_regression_are_squared_absolute_or_both() -> None:
    raw, truth = torch.tensor([[0.0], [3.0]]), torch.tensor([0.5, 0.0])
    assert float(Regression().loss(raw, truth)) == pytest.approx((0.25 + 9) / 2)
    assert float(Regression(error="mae").loss(raw, truth)) == pytest.approx(3.5 / 2)
    assert float(Regression(error="huber", delta=1.0).loss(raw, truth)) == pytest.approx((0.125 + 2.5) / 2)


@pytest.mark.parametrize("classes", [2, 4])
def test_classes_are_measured_as_by_scikit_learn(classes: int) -> None:
    draw = torch.Generator().manual_seed(classes)
    truth = torch.multinomial(torch.arange(1.0, classes + 1), 300, replacement=True, generator=draw)
    raw = torch.randn(300, classes, generator=draw)
    raw[torch.arange(300), truth] += 1
    answers, chances = raw.argmax(1), raw.softmax(1)
    names = [name for name in known_metrics(Classification()) if name not in ("loss", "accuracy")]
    found = measured(Classification(), raw, truth, *names)
    average = "binary" if classes == 2 else "macro"
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, answers))
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, answers))
    assert found["f1"] == found["dice"] == pytest.approx(sk.f1_score(truth, answers, average=average))
    assert found["recall"] == pytest.approx(sk.recall_score(truth, answers, average=average))
    assert found["precision"] == pytest.approx(sk.precision_score(truth, answers, average=average))
    assert found["iou"] == pytest.approx(sk.jaccard_score(truth, answers, average=average))
    assert found["confusion_matrix"] == sk.confusion_matrix(truth, answers).flatten().tolist()
    assert found["perplexity"] == pytest.approx(float(cross_entropy(raw, truth).exp()), rel=1e-5)
    scores = chances[:, 1] if classes == 2 else chances
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(truth, scores, multi_class="ovr"), abs=0.005)
    hot = truth if classes == 2 else np.eye(classes)[truth]
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(hot, scores), abs=0.01)


def test_labels_are_measured_as_by_scikit_learn() -> None:
    draw = torch.Generator().manual_seed(3)
    truth = (torch.rand(200, 5, generator=draw) < 0.3).float()
    raw = torch.randn(200, 5, generator=draw) + truth
    names = [name for name in known_metrics(MultiLabel()) if name not in ("loss", "accuracy")]
    found = measured(MultiLabel(), raw, truth, *names)
    answers = (raw > 0).long()
    assert found["accuracy"] == pytest.approx(float((answers == truth).double().mean()))
    assert found["f1"] == pytest.approx(sk.f1_score(truth, answers, average="macro"))
    assert found["recall"] == pytest.approx(sk.recall_score(truth, answers, average="macro"))
    assert found["iou"] == pytest.approx(sk.jaccard_score(truth, answers, average="macro"))
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(truth, raw.sigmoid()), abs=0.005)
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(truth, raw.sigmoid()), abs=0.01)
    assert found["confusion_matrix"] == sk.multilabel_confusion_matrix(truth, answers).flatten().tolist()


def test_masks_are_measured_by_pixel() -> None:
    draw = torch.Generator().manual_seed(4)
    truth = (torch.rand(8, 6, 5, generator=draw) < 0.2).to(torch.uint8)
    objective = BinarySegmentation()
    target = objective.target(truth, torch.zeros(8, 3, 6, 5))
    raw = torch.randn(8, 1, 6, 5, generator=draw) + 2 * truth.unsqueeze(1)
    found = measured(objective, raw, target, "dice", "iou", "precision")
    answers = (raw > 0).flatten().long()
    assert found["dice"] == pytest.approx(sk.f1_score(truth.flatten(), answers))
    assert found["iou"] == pytest.approx(sk.jaccard_score(truth.flatten(), answers))
    assert found["precision"] == pytest.approx(sk.precision_score(truth.flatten(), answers))


def test_a_class_for_each_pixel_is_measured_without_the_pixels_to_ignore() -> None:
    draw = torch.Generator().manual_seed(5)
    truth = torch.randint(0, 3, (8, 6, 5), generator=draw).to(torch.uint8)
    truth[:, 0] = 255
    raw = torch.randn(8, 3, 6, 5, generator=draw)
    objective = Segmentation(ignore_label=255)
    target = objective.target(truth, raw)
    found = measured(objective, raw, target, "iou")
    known = truth.flatten() != 255
    answers = raw.argmax(1).flatten()[known]
    assert found["iou"] == pytest.approx(sk.jaccard_score(truth.flatten()[known], answers, average="macro"))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth.flatten()[known], answers))
    assert found["loss"] == pytest.approx(float(cross_entropy(raw, target, ignore_index=255)), rel=1e-5)


def test_the_weighted_loss_is_the_mean_over_the_weights_of_all_parts_together() -> None:
    draw = torch.Generator().manual_seed(6)
    raw, truth = torch.randn(30, 3, generator=draw), torch.randint(0, 3, (30,), generator=draw)
    truth[7] = -1
    objective = Classification(class_weights=[1.0, 2.0, 5.0], label_smoothing=0.1, ignore_label=-1)
    found = measured(objective, raw, truth)
    weight = torch.tensor([1.0, 2.0, 5.0])
    whole = cross_entropy(raw, truth, weight=weight, label_smoothing=0.1, ignore_index=-1)
    assert found["loss"] == pytest.approx(float(whole), rel=1e-5)
    assert not objective.even


def test_a_batch_without_a_label_moves_nothing() -> None:
    raw = torch.randn(4, 3, requires_grad=True)
    loss = Classification(ignore_label=-1).loss(raw, torch.full((4,), -1))
    loss.backward()
    assert float(loss.detach()) == 0
    assert raw.grad is not None
    assert not raw.grad.any()


def test_text_is_measured_by_position() -> None:
    draw = torch.Generator().manual_seed(7)
    raw, truth = torch.randn(6, 9, 4, generator=draw), torch.randint(0, 4, (6, 9), generator=draw)
    whole = Meter(NextToken(), 4, ["perplexity"])
    whole.add(raw, truth)
    found = whole.scores()
    assert found["num-examples"] == 6
    assert found["perplexity"] == pytest.approx(
        float(cross_entropy(raw.flatten(0, 1), truth.flatten()).exp()), rel=1e-5
    )
    assert found["accuracy"] == pytest.approx(float((raw.argmax(-1) == truth).float().mean()))


def test_reconstruction_is_held_against_the_input() -> None:
    inputs = torch.rand(6, 2, 3)
    objective = Reconstruction()
    assert objective.num_outputs(source((2, 3), torch.zeros(6))) == 6
    target = objective.target(torch.zeros(6), inputs)
    assert float(objective.loss(inputs.flatten(1), target)) == 0
    assert float(objective.loss(torch.zeros(6, 6), target)) == pytest.approx(float((inputs**2).mean()))


def test_outputs_that_do_not_fit_are_refused_and_not_broadcast() -> None:
    with pytest.raises(ValueError, match="the model gives 1 outputs for a sample, and its target has 3"):
        evaluate(nn.Linear(5, 1), everything(numbers(outputs=3)), Meter(Regression(), 3))
    with pytest.raises(ValueError, match="the model gives 1x2x4x4 for a mask of 8x8: use model=unet"):
        Segmentation().loss(torch.zeros(3, 2, 4, 4), torch.zeros(3, 8, 8, dtype=torch.long))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda sums: sums.pop("sums.f1.tp"), "lack f1.tp"),
        (lambda sums: sums.update({"sums.f1.tp": [1.0] * 3}), "lack f1.tp, or have another length"),
        (lambda sums: sums.update({"sums.loss": [float("nan")]}), "loss is not finite"),
        (lambda sums: sums.update({"sums.answers": [1e30] * 4}), "answers is not finite, or beyond"),
        (lambda sums: sums.update({"sums.examples": [99.0]}), "99 examples, where it has 10"),
        (lambda sums: sums.update({"sums.examples": [0.0]}), "0 examples, where it has 10"),
    ],
)
def test_sums_that_cannot_be_are_refused_and_leave_nothing(change: Any, said: str) -> None:
    meter, other = (Meter(Classification(), 4, ["f1"]) for _ in range(2))
    for each in (meter, other):
        each.add(torch.eye(4).repeat(3, 1)[:10], torch.arange(10) % 3)
    before, sums = meter.scores(), other.sums()
    change(sums)
    with pytest.raises(ValueError, match=said):
        meter.merge(sums, 10)
    assert meter.scores() == before


def test_classes_may_be_stored_as_bytes() -> None:
    stored = torch.tensor([[1, 2], [0, 1]], dtype=torch.uint8)
    assert Classification().target(stored, stored).dtype == torch.int64


IMAGE = (3, 4, 4)


@pytest.mark.parametrize(
    ("objective", "data", "said"),
    [
        (
            Classification(),
            source((5,), torch.tensor([1, 2, 3]), 3),
            "training sample 2 is 3, and there are 3 classes",
        ),
        (Classification(), source((5,), torch.tensor([0, -1]), 3), r"objective\.ignore_label=-1"),
        (Classification(), source((5,), torch.tensor([0.5, 1.0])), "use objective=regression"),
        (Classification(class_weights=[1.0]), source((5,), torch.tensor([0, 1]), 2), "one for each of 2 classes"),
        (Regression(), source((5,), torch.tensor([[1.0], [float("nan")]])), "training sample 1 is nan"),
        (Forecasting(), source((5,), torch.tensor([float("inf"), 0.0])), "training sample 0 is inf"),
        (MultiLabel(), source((5,), torch.tensor([[0.0, 1.0], [0.0, 2.0]])), "sample 1 holds 2: a label is 0"),
        (MultiLabel(), source((5,), torch.tensor([0.0, 1.0])), "of shape .samples, labels., not 2"),
        (MultiLabel(positive_weights=[2.0]), source((5,), torch.eye(2)), "one for each of 2 labels"),
        (BinarySegmentation(), source(IMAGE, torch.full((2, 4, 4), 255, dtype=torch.uint8)), "sample 0 holds 255"),
        (Segmentation(), source(IMAGE, torch.zeros(2, 4, 5, dtype=torch.uint8), 3), "as large as each image, 4x4"),
        (
            Segmentation(),
            source(IMAGE, torch.full((2, 4, 4), 7, dtype=torch.uint8), 3),
            "sample 0 is 7, and there",
        ),
    ],
)
def test_targets_that_cannot_be_learned_are_refused_by_their_place(
    objective: Objective, data: Source, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        objective.check(data)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_metric_that_an_objective_does_not_have_is_refused_with_those_it_has(name: str) -> None:
    objective = OBJECTIVES[name]()
    assert objective.metric in known_metrics(objective)
    wrong = "f1" if objective.form == "numbers" else "rmse"
    with pytest.raises(ValueError, match=f"metric='{wrong}' is none that objective={name} has: loss"):
        Meter(objective, 2, [wrong])
