"""Objectives: what a model's outputs are held against, as a loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss


class Objective(ABC):
    """The loss of a learning problem, and the form in which it takes outputs and targets.

    Attributes
    ----------
    name : str
        As in ``objective=``.
    """

    name: ClassVar[str]

    @abstractmethod
    def target(self, stored: Tensor) -> Tensor:
        """Return a batch of targets as the loss takes them, on the same device.

        Parameters
        ----------
        stored : Tensor
            As the data set keeps them, shape (samples, ...).
        """

    @abstractmethod
    def output(self, raw: Tensor) -> Tensor:
        """Return a model's outputs, shape (samples, ...), in the form that goes with :meth:`target`."""

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        """Return the mean loss of a batch, or with ``reduction="sum"`` its sum.

        Parameters
        ----------
        output, target : Tensor
            Of :meth:`output` and :meth:`target`.
        """

    def correct(self, output: Tensor, target: Tensor) -> Tensor | None:
        """Return how many predictions are right, int64; None where a prediction is not right or wrong."""
        return None


class Classification(Objective):
    """One class for each prediction, by cross-entropy (nats): of a sample, or of each position of a text.

    Outputs are logits (predictions, classes), targets int64 (predictions,).
    """

    name = "classification"

    def target(self, stored: Tensor) -> Tensor:
        return stored.long().flatten()

    def output(self, raw: Tensor) -> Tensor:
        return raw.flatten(0, -2)

    def loss(self, output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        return cross_entropy(output, target, reduction=reduction)

    def correct(self, output: Tensor, target: Tensor) -> Tensor:
        return (output.argmax(-1) == target).sum()


class Regression(Objective):
    """Numbers, by the mean squared error over samples and outputs.

    Outputs and targets are float32 (samples, outputs); a data set with one output may keep its targets as (samples,).
    """

    name = "regression"

    def target(self, stored: Tensor) -> Tensor:
        return stored.to(torch.float32).reshape(len(stored), -1)

    def output(self, raw: Tensor) -> Tensor:
        return raw.reshape(len(raw), -1)

    def loss(self, output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        if output.shape != target.shape:  # else they would be broadcast
            raise ValueError(
                f"the model has {output.shape[1]} outputs a sample, the targets {target.shape[1]}: let them be the same"
            )
        return mse_loss(output, target, reduction=reduction)


OBJECTIVES: dict[str, Callable[..., Objective]] = {each.name: each for each in (Classification, Regression)}
