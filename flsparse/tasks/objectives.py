"""Objectives: what a model's outputs are held against."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, huber_loss, l1_loss, mse_loss

from flsparse.nets.losses import class_loss
from flsparse.ranges import within
from flsparse.tasks.data import Source
from flsparse.tasks.objective import Objective


@dataclass(frozen=True, kw_only=True)
class Classification(Objective):
    """One class for each prediction, by cross-entropy (nats): of a sample, or of each position of a text.

    Raw outputs are logits (samples, ..., classes); targets are whole numbers (samples, ...) from 0.

    Parameters
    ----------
    class_weights : sequence of float, optional
        Weight of each class in the loss, at least 0, in the order of the classes: 1 each by default.
    label_smoothing : float
        Share of each target that is spread over all classes, in [0, 1).
    ignore_label : int, optional
        Label of what has no target: it is neither in the loss nor in the metrics.
    """

    name = "classification"
    form = "classes"
    metric = "accuracy"

    class_weights: Sequence[float] | None = None
    label_smoothing: float = 0.0
    ignore_label: int | None = None

    def __post_init__(self) -> None:
        within("[0, 1)", label_smoothing=self.label_smoothing)
        for weight in self.class_weights or ():
            within("[0, inf)", class_weights=weight)

    def _check_targets(self, part: str, targets: Tensor, source: Source) -> None:
        if targets.is_floating_point() or not source.num_classes:
            raise ValueError(
                f"objective={self.name} takes classes, and the targets are numbers ({targets.dtype}): use "
                f"objective=regression"
            )
        weights = self.class_weights
        if weights is not None and len(weights) != source.num_classes:
            raise ValueError(
                f"objective.class_weights has {len(weights)} weights: give one for each of {source.num_classes} classes"
            )
        odd = (targets.long() < 0) | (targets.long() >= source.num_classes)
        if self.ignore_label is not None:
            odd &= targets != self.ignore_label
        if bool(odd.any()):
            place = int(odd.flatten(1).any(1).nonzero()[0, 0]) if odd.ndim > 1 else int(odd.nonzero()[0, 0])
            label = int(targets[place][odd[place]].flatten()[0])
            raise ValueError(
                f"the label of {part} sample {place} is {label}, and there are {source.num_classes} classes: number "
                f"them from 0 to {source.num_classes - 1}, or set objective.ignore_label={label}"
            )

    def num_outputs(self, source: Source) -> int:
        return source.num_classes

    def target(self, stored: Tensor, inputs: Tensor) -> Tensor:
        return stored.long()

    def loss(self, raw: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        logits = self._last(raw)
        if logits.shape[:-1].numel() != target.numel():
            raise ValueError(
                f"the model gives {_shape(raw[:1])} outputs for a sample, and its target is {_shape(target[:1])}: the "
                f"model is for another objective than {self.name}"
            )
        options: dict[str, Any] = {"label_smoothing": self.label_smoothing}
        if self.class_weights is not None:
            options["weight"] = torch.tensor(self.class_weights, dtype=raw.dtype, device=raw.device)
        if self.ignore_label is None:
            return class_loss(logits, target, reduction, **options)
        total = class_loss(logits, target, "sum", ignore_index=self.ignore_label, **options)
        return total if reduction == "sum" else total / max(self.terms(target), 1e-12)  # a batch may have no label

    def known(self, target: Tensor) -> Tensor:
        """Return the labels without those that are to be ignored, flattened where there may be such."""
        return target if self.ignore_label is None else target[target != self.ignore_label]

    def terms(self, target: Tensor) -> float:
        labels = self.known(target)
        if self.class_weights is None:
            return labels.numel()
        return float(torch.tensor(self.class_weights, device=target.device)[labels].double().sum())

    def pairs(self, raw: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits, labels = self._last(raw).flatten(0, -2), target.flatten()
        if self.ignore_label is None:
            return logits, labels
        known = labels != self.ignore_label
        return logits[known], labels[known]

    @property
    def even(self) -> bool:
        return self.class_weights is None and self.ignore_label is None

    def _last(self, raw: Tensor) -> Tensor:
        """Return the logits with the classes in the last dimension."""
        return raw


@dataclass(frozen=True, kw_only=True)
class NextToken(Classification):
    """The next token at each position of a sequence, by cross-entropy; a run goes by perplexity."""

    name = "next_token"
    metric = "perplexity"


@dataclass(frozen=True, kw_only=True)
class Segmentation(Classification):
    """A class for each pixel, by cross-entropy; a run goes by the intersection over union, mean over classes.

    Raw outputs are logits (samples, classes, height, width), targets whole numbers (samples, height, width).
    """

    name = "segmentation"
    metric = "iou"

    def _check_targets(self, part: str, targets: Tensor, source: Source) -> None:
        _check_masks(self.name, targets, source)
        super()._check_targets(part, targets, source)

    def loss(self, raw: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        _check_size(raw, target)
        return super().loss(raw, target, reduction)

    def _last(self, raw: Tensor) -> Tensor:
        return raw.movedim(1, -1)


@dataclass(frozen=True, kw_only=True)
class MultiLabel(Objective):
    """Several labels, each of which a sample has or has not, by binary cross-entropy (nats); a run goes by F1.

    Raw outputs are logits (samples, labels); targets are 0 or 1, of the same shape.

    Parameters
    ----------
    positive_weights : sequence of float, optional
        Weight of a label's positives against its negatives, above 0, in the order of the labels: 1 each by default.
    """

    name = "multi_label"
    form = "labels"
    metric = "f1"

    positive_weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for weight in self.positive_weights or ():
            within("(0, inf)", positive_weights=weight)

    def _check_targets(self, part: str, targets: Tensor, source: Source) -> None:
        if targets.ndim != 2:
            raise ValueError(f"objective={self.name} takes targets of shape (samples, labels), not {_shape(targets)}")
        _check_binary(part, targets)
        weights = self.positive_weights
        if weights is not None and len(weights) != targets.shape[1]:
            raise ValueError(
                f"objective.positive_weights has {len(weights)} weights: give one for each of {targets.shape[1]} labels"
            )

    def loss(self, raw: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        weights = self.positive_weights
        weight = None if weights is None else torch.tensor(weights, dtype=raw.dtype, device=raw.device)
        return binary_cross_entropy_with_logits(*_alike(raw, target), pos_weight=weight, reduction=reduction)

    def pairs(self, raw: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return raw.reshape(target.shape).sigmoid(), target.long()

    def blind(self, target: Tensor) -> Tensor:
        return target.mean(0).logit().expand_as(target)


@dataclass(frozen=True, kw_only=True)
class BinarySegmentation(Objective):
    """Object or background for each pixel, by binary cross-entropy (nats); a run goes by the Dice score.

    Raw outputs are logits (samples, 1, height, width); targets are 0 or 1, (samples, height, width).

    Parameters
    ----------
    positive_weight : float
        Weight of the object's pixels against the background's, above 0.
    """

    name = "binary_segmentation"
    form = "labels"
    metric = "dice"

    positive_weight: float = 1.0

    def __post_init__(self) -> None:
        within("(0, inf)", positive_weight=self.positive_weight)

    def _check_targets(self, part: str, targets: Tensor, source: Source) -> None:
        _check_masks(self.name, targets, source)
        _check_binary(part, targets)

    def num_outputs(self, source: Source) -> int:
        return 1

    def loss(self, raw: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        _check_size(raw, target)
        weight = torch.tensor(self.positive_weight, dtype=raw.dtype, device=raw.device)
        return binary_cross_entropy_with_logits(raw.squeeze(1), target, pos_weight=weight, reduction=reduction)

    def pairs(self, raw: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return raw.sigmoid().reshape(-1, 1), target.long().reshape(-1, 1)

    def blind(self, target: Tensor) -> Tensor:
        return target.mean().logit().expand_as(target).unsqueeze(1)


_LOSSES: dict[str, Callable[..., Tensor]] = {"mse": mse_loss, "mae": l1_loss, "huber": huber_loss}


@dataclass(frozen=True, kw_only=True)
class Regression(Objective):
    """Numbers, by a mean over samples and outputs; a run goes by the root of the mean squared error.

    Raw outputs and targets are float32 (samples, outputs); targets with one output may be (samples,).

    Parameters
    ----------
    error : {"mse", "huber", "mae"}
        Squared errors; squared below ``delta`` and linear beyond; absolute errors.
    delta : float
        Of the Huber loss, in the targets' unit, above 0.
    """

    name = "regression"
    form = "numbers"
    metric = "rmse"

    error: Literal["mse", "huber", "mae"] = "mse"
    delta: float = 1.0

    def __post_init__(self) -> None:
        within("(0, inf)", delta=self.delta)

    def _check_targets(self, part: str, targets: Tensor, source: Source) -> None:
        """Any number will do."""

    def loss(self, raw: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        options = {"delta": self.delta} if self.error == "huber" else {}
        return _LOSSES[self.error](*_alike(raw, target), reduction=reduction, **options)

    def pairs(self, raw: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return _alike(raw, target)

    def blind(self, target: Tensor) -> Tensor | None:
        return target.mean(0).expand_as(target)


@dataclass(frozen=True, kw_only=True)
class Forecasting(Regression):
    """The next values of a series: targets are (samples, horizon) or (samples, horizon, channels)."""

    name = "forecasting"


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Regression):
    """The model's own input: what an autoencoder learns, whose errors tell the unusual. Targets are not used."""

    name = "reconstruction"

    def check(self, source: Source) -> None:
        """Take any data: their targets are not used."""

    def num_outputs(self, source: Source) -> int:
        return prod(source.input_shape)

    def target(self, stored: Tensor, inputs: Tensor) -> Tensor:
        return inputs

    def blind(self, target: Tensor) -> None:
        return None


OBJECTIVES: dict[str, type[Objective]] = {
    each.name: each
    for each in (
        *(Classification, NextToken, MultiLabel, Regression, Forecasting, Reconstruction),
        *(Segmentation, BinarySegmentation),
    )
}


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def _alike(raw: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as (samples, outputs); ValueError where they do not fit, and would be broadcast."""
    output, wanted = raw.reshape(len(raw), -1), target.reshape(len(target), -1)
    if output.shape != wanted.shape:
        raise ValueError(
            f"the model gives {output.shape[1]} outputs for a sample, and its target has {wanted.shape[1]}: let them "
            f"be as many"
        )
    return output, wanted


def _check_size(raw: Tensor, target: Tensor) -> None:
    if raw.ndim != 4 or raw.shape[2:] != target.shape[1:]:
        raise ValueError(
            f"the model gives {_shape(raw[:1])} for a mask of {_shape(target[0])}: use model=unet, which keeps the size"
        )


def _check_masks(name: str, targets: Tensor, source: Source) -> None:
    if targets.ndim != 3 or targets.shape[1:] != source.input_shape[-2:]:
        height, width = source.input_shape[-2:]
        raise ValueError(
            f"objective={name} takes a mask as large as each image, {height}x{width}: the targets are {_shape(targets)}"
        )


def _check_binary(part: str, targets: Tensor) -> None:
    odd = ((targets != 0) & (targets != 1)).flatten(1).any(1)
    if bool(odd.any()):
        place = int(odd.nonzero()[0, 0])
        values = targets[place].flatten()
        value = float(values[(values != 0) & (values != 1)][0])
        raise ValueError(f"the target of {part} sample {place} holds {value:g}: a label is 0 (no) or 1 (yes)")
