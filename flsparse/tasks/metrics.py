"""Metrics of a model over some data, as sums: exact over batches and nodes, whatever their sizes.

Loss and accuracy are counted here; every other metric is a state of ``torchmetrics``, imported when one is asked for.
AUROC and average precision are of 200 thresholds evenly spaced in [0, 1].
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flsparse.clients.parts.questions import SUMS
from flsparse.tasks.objective import Form, Objective
from flsparse.tasks.torchvision_compat import import_torchvision

COUNTED = ("loss", "accuracy")
_LARGEST = 1e18  # of a sum that a node reports
_THRESHOLDS = 200
_CLASSES = {  # of torchmetrics, behind Binary, Multiclass or Multilabel
    "balanced_accuracy": "Accuracy",
    "f1": "F1Score",
    "dice": "F1Score",
    "recall": "Recall",
    "precision": "Precision",
    "iou": "JaccardIndex",
    "auroc": "AUROC",
    "average_precision": "AveragePrecision",
    "confusion_matrix": "ConfusionMatrix",
}
_NUMBERS = {"mae": "MeanAbsoluteError", "rmse": "MeanSquaredError", "r2": "R2Score"}


def known_metrics(objective: Objective) -> tuple[str, ...]:
    """Return the metrics that an objective's predictions have."""
    match objective.form:
        case "numbers":
            return ("loss", *_NUMBERS)
        case "labels":
            return (*COUNTED, *(name for name in _CLASSES if name != "balanced_accuracy"))
        case "classes":
            return (*COUNTED, *_CLASSES, "perplexity")


def check_metrics(objective: Objective, metrics: Iterable[str]) -> None:
    """Refuse metrics that an objective's predictions do not have; ValueError names those they have."""
    known = known_metrics(objective)
    for name in metrics:
        if name not in known:
            raise ValueError(f"metric={name!r} is none that objective={objective.name} has: {', '.join(known)}")


class Meter:
    """Metrics of one model: sums that batches, and other meters, add to.

    Parameters
    ----------
    objective : Objective
    num_outputs : int
        Of the model.
    metrics : sequence of str
        Names of :func:`known_metrics`; loss and, where a prediction is right or wrong, accuracy are always there. With
        two classes, F1, recall, precision, AUROC, average precision, IoU and Dice are those of class 1; with more, and
        with several labels, means over classes (macro).

    Raises
    ------
    ValueError
        The objective's predictions have no such metric.
    """

    def __init__(self, objective: Objective, num_outputs: int, metrics: Sequence[str] = ()) -> None:
        check_metrics(objective, metrics)
        self.objective, self.examples, self.loss, self.terms = objective, 0.0, 0.0, 0.0
        self.correct, self.predictions = 0.0, 0.0
        self.answers = torch.zeros(num_outputs if objective.form == "classes" else 0, dtype=torch.int64)
        self._metrics = {name: _made(name, objective.form, num_outputs) for name in metrics if name not in COUNTED}
        self._outputs = num_outputs

    def add(self, raw: Tensor, target: Tensor) -> None:
        """Add a batch: a model's outputs, and its targets as :meth:`Objective.target` gives them."""
        self.examples += len(target)
        self.loss += float(self.objective.loss(raw, target, reduction="sum"))
        self.terms += self.objective.terms(target)
        predicted, truth = self.objective.pairs(raw, target)
        if self.objective.form != "numbers":
            answers = predicted.argmax(-1) if self.objective.form == "classes" else predicted > 0.5
            self.correct += int((answers == truth).sum())
            self.predictions += truth.numel()
            if self.objective.form == "classes":
                self.answers += torch.bincount(answers, minlength=len(self.answers)).cpu()
        if self._metrics and len(truth):
            self._update(predicted.detach().cpu(), truth.cpu())

    def _update(self, predicted: Tensor, truth: Tensor) -> None:
        logits = predicted
        if self.objective.form == "numbers":
            predicted, truth = predicted.double(), truth.double()
        elif self.objective.form == "classes":
            predicted = logits.softmax(-1)
        binary = _binary(self.objective.form, self._outputs)
        for name, metric in self._metrics.items():
            if name == "perplexity":
                metric.update(logits.unsqueeze(0), truth.unsqueeze(0))
            elif binary and name != "balanced_accuracy":
                metric.update(predicted[:, -1], truth.reshape(-1))
            else:
                metric.update(predicted, truth)

    def scores(self) -> dict[str, Any]:
        """Return the metrics.

        Returns
        -------
        dict
            ``loss``, the objective's mean; ``num-examples``; of classes and labels ``accuracy`` in [0, 1]; of classes
            ``prediction-share``, of the class that is predicted most often, in (0, 1]; then what was asked for, floats.
            ``confusion_matrix`` is flat (see :meth:`matrix`).
        """
        found: dict[str, Any] = {"loss": self.loss / self.terms if self.terms else math.nan}
        found["num-examples"] = self.examples
        if self.predictions:
            found["accuracy"] = self.correct / self.predictions
        if self.predictions and len(self.answers):
            found["prediction-share"] = float(self.answers.max()) / self.predictions
        with warnings.catch_warnings():  # sums may have come by merge() alone, and a class may have no sample
            warnings.simplefilter("ignore")
            for name, metric in self._metrics.items():
                value = metric.compute()
                found[name] = value.flatten().tolist() if name == "confusion_matrix" else float(value)
        return found

    def matrix(self, flat: Sequence[int]) -> list[Any]:
        """Return a confusion matrix as nested lists: rows are the truth, columns the predictions; 2x2 a label."""
        side = self._outputs if self.objective.form == "classes" else 2
        shape = (-1, 2, 2) if self.objective.form == "labels" and self._outputs > 1 else (side, side)
        nested: list[Any] = torch.tensor(list(flat)).reshape(shape).tolist()
        return nested

    def sums(self) -> dict[str, list[float]]:
        """Return all sums by name, as a message carries them."""
        found = {name: [float(getattr(self, name))] for name in _OWN}
        found["answers"] = self.answers.tolist()
        for name, metric in self._metrics.items():
            found |= {f"{name}.{key}": value.flatten().tolist() for key, value in metric.metric_state.items()}
        return {SUMS + key: [float(each) for each in value] for key, value in found.items()}

    def merge(self, sums: Mapping[str, Sequence[float]], most: float = math.inf) -> None:
        """Add the sums of another meter of the same metrics.

        Parameters
        ----------
        sums : Mapping[str, Sequence[float]]
            Of :meth:`sums`.
        most : float
            Examples that they may be of.

        Raises
        ------
        ValueError
            One is missing, of another length, or absurd; nothing is added then.
        """
        own = {name: self._read(sums, name, torch.zeros(1)) for name in _OWN}
        answers = self._read(sums, "answers", self.answers)
        states = {
            name: {key: self._read(sums, f"{name}.{key}", value) for key, value in metric.metric_state.items()}
            for name, metric in self._metrics.items()
        }
        if not 0 < own["examples"] <= most:
            raise ValueError(f"its sums are of {float(own['examples']):g} examples, where it has {most:g}")
        for name, value in own.items():
            setattr(self, name, getattr(self, name) + float(value))
        self.answers += answers
        for name, state in states.items():
            self._metrics[name].merge_state(state)

    def _read(self, sums: Mapping[str, Sequence[float]], name: str, like: Tensor) -> Tensor:
        values = sums.get(SUMS + name)
        grows = like.ndim == 0 and values is not None and len(values) == self._outputs  # R2 learns its outputs late
        if values is None or not (len(values) == like.numel() or grows):
            raise ValueError(f"its sums lack {name}, or have another length than {like.numel()}")
        if not all(abs(value) <= _LARGEST for value in values):  # false for NaN, too
            raise ValueError(f"its sum {name} is not finite, or beyond {_LARGEST:g}")
        read = torch.tensor(list(values), dtype=torch.float64).to(like.dtype)
        return read if grows else read.reshape(like.shape)


_OWN = ("examples", "loss", "terms", "correct", "predictions")


def _binary(form: Form, num_outputs: int) -> bool:
    return num_outputs == (2 if form == "classes" else 1)


def _made(name: str, form: Form, num_outputs: int) -> Any:
    """Return the torchmetrics object of a metric; its state is sums alone."""
    import_torchvision()  # torchmetrics imports it, whichever torch it was compiled for
    from torchmetrics import classification, regression
    from torchmetrics.text import Perplexity

    if name == "perplexity":
        return Perplexity().set_dtype(torch.float64)
    if form == "numbers":
        options: dict[str, Any] = {"squared": False} if name == "rmse" else {}
        return getattr(regression, _NUMBERS[name])(**options).set_dtype(torch.float64)
    binned = {"thresholds": _THRESHOLDS} if name in ("auroc", "average_precision") else {}
    averaged = {} if name == "confusion_matrix" else {"average": "macro"}
    if _binary(form, num_outputs) and name != "balanced_accuracy":
        return getattr(classification, f"Binary{_CLASSES[name]}")(**binned)
    if form == "classes":
        return getattr(classification, f"Multiclass{_CLASSES[name]}")(num_classes=num_outputs, **averaged, **binned)
    return getattr(classification, f"Multilabel{_CLASSES[name]}")(num_labels=num_outputs, **averaged, **binned)
