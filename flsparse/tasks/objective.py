"""What an objective is: a loss, and the predictions that metrics take.

A model gives a batch's raw outputs, the data set keeps targets, both of shape (samples, ...). An objective says how
many outputs a model needs, and turns both into a loss and into predictions.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flsparse.tasks.data import Source

Form = Literal["classes", "labels", "numbers"]


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """The loss of a learning problem, and its predictions.

    Attributes
    ----------
    name : str
        As in ``objective=``.
    form : {"classes", "labels", "numbers"}
        What a prediction is: one of several classes, yes or no, or a number.
    metric : str
        The KPI that a run goes by where none is named (:mod:`flsparse.kpi`).
    """

    name: ClassVar[str]
    form: ClassVar[Form]
    metric: ClassVar[str]

    def check(self, source: Source) -> None:
        """Refuse targets that the loss cannot take.

        Raises
        ------
        ValueError
            Of a target, named by its place, or of a setting that does not fit the data.
        """
        for part, targets in (("training", source.train_targets), ("test", source.test_targets)):
            if targets.is_floating_point() and not bool(torch.isfinite(targets).all()):
                place = int((~torch.isfinite(targets)).flatten(1 if targets.ndim > 1 else 0).nonzero()[0, 0])
                value = targets[place].flatten()
                bad = float(value[~torch.isfinite(value)][0])
                raise ValueError(f"the target of {part} sample {place} is {bad}: leave such samples out")
            self._check_targets(part, targets, source)

    @abstractmethod
    def _check_targets(self, part: str, targets: Tensor, source: Source) -> None:
        """Refuse targets of a part of the data, which are finite."""

    def num_outputs(self, source: Source) -> int:
        """Return how many outputs a model needs; by default one for each number of a sample's target."""
        return prod(source.train_targets.shape[1:])

    def target(self, stored: Tensor, inputs: Tensor) -> Tensor:
        """Return a batch of targets as :meth:`loss` takes them, shape (samples, ...), on the same device.

        Parameters
        ----------
        stored : Tensor
            As the data set keeps them.
        inputs : Tensor
            The batch as the model takes it.
        """
        return stored.to(torch.float32)

    @abstractmethod
    def loss(self, raw: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        """Return a batch's loss: its mean over :meth:`terms`, or with ``reduction="sum"`` the sum."""

    def terms(self, target: Tensor) -> float:
        """Return what the sum of a batch's loss is divided by for the mean."""
        return target.numel()

    @abstractmethod
    def pairs(self, raw: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return predictions with what is true of them, those without a target left out.

        Returns
        -------
        predictions, truths : Tensor
            Classes: logits (n, classes) and int64 (n,). Labels: probabilities (n, labels) and int64 0 or 1 of the same
            shape. Numbers: float32 (n, outputs), both.
        """

    def blind(self, target: Tensor) -> Tensor | None:
        """Return raw outputs that answer every target with their mean; None where that says nothing."""
        return None

    @property
    def even(self) -> bool:
        """Whether all samples of one shape weigh the same in the mean loss."""
        return True
