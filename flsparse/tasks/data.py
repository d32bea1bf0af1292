"""Data sets for the training loop: shared tensors, and index views into them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flsparse.tasks.lazy import rows_of


@dataclass(frozen=True)
class Normalize:
    """Turn stored pixels into a model's input: ``(x / 255 - mean) / std``, per channel.

    Attributes
    ----------
    scale, shift : Tensor
        float32, shape (channels, 1, 1).
    """

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, mean: float | Sequence[float], std: float | Sequence[float], largest: int = 255) -> "Normalize":
        """Build from means and standard deviations in [0, 1] units, one for all channels or one each.

        `largest` is the value of a white pixel.
        """
        means = torch.tensor(np.atleast_1d(mean), dtype=torch.float32).reshape(-1, 1, 1)
        stds = torch.tensor(np.atleast_1d(std), dtype=torch.float32).reshape(-1, 1, 1)
        return cls(scale=1 / (largest * stds), shift=-means / stds)

    def __call__(self, images: Tensor) -> Tensor:
        """Map stored images, shape (batch, channels, height, width), to float32 on the same device."""
        scale, shift = self.scale.to(images.device), self.shift.to(images.device)
        return images.to(torch.float32).mul_(scale).add_(shift)


def tokens(characters: Tensor) -> Tensor:
    """Turn stored uint8 character codes into the int64 that an embedding takes."""
    return characters.long()


@dataclass(frozen=True)
class Data:
    """One part of a data set (a node's, the test part...): an index view, so a thousand nodes cost no copies.

    Attributes
    ----------
    all_inputs, all_targets : Tensor
        The whole split, shared by all views: images uint8 (samples, channels, height, width) or characters uint8
        (samples, length), or float32 (samples, ...); targets int64 or uint8 classes, (samples,) or one for each
        position; float32 numbers, (samples,) or (samples, outputs); 0 and 1 (samples, labels). Inputs may be
        :class:`flsparse.tasks.lazy.Lazy`.
    index : Tensor
        int64 (size,), which samples belong to this part.
    prepare : callable
        Maps a batch of stored inputs to the model's input.
    """

    all_inputs: Tensor
    all_targets: Tensor
    index: Tensor
    prepare: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def inputs(self) -> Tensor:
        """This part's inputs as stored: a copy, or where they are read from files batch by batch, a view."""
        return rows_of(self.all_inputs, self.index)

    @property
    def targets(self) -> Tensor:
        """This part's targets as stored (a copy); the objective turns them into what its loss takes."""
        return self.all_targets[self.index]

    def class_counts(self, num_classes: int) -> np.ndarray:
        """Return the targets of each class, int64 (num_classes,); targets without a label are not counted."""
        targets = self.targets.numpy().reshape(-1)
        return np.bincount(targets[(targets >= 0) & (targets < num_classes)], minlength=num_classes)


@dataclass(frozen=True)
class Source:
    """A data set as its loader delivers it.

    Attributes
    ----------
    train_inputs, train_targets, test_inputs, test_targets : Tensor
        As in :class:`Data`.
    num_classes : int
        Number of classes, or of characters; 0 where the targets are no classes.
    prepare : callable
        As in :class:`Data`.
    train_groups, test_groups : np.ndarray, optional
        int64 (samples,), the natural node of each sample, where the data set knows one.
    in_time : bool
        Samples of a group stand in order of time, so a hold-out must be a group's tail, not a random pick.
    labels : tuple of str, optional
        Names of the classes, or of the outputs.
    objective : str
        What the targets suggest, a name of ``flsparse.tasks.objectives.OBJECTIVES``.
    notes : tuple of str
        What was done to the data that its owner should know, a line each.
    holds : Mapping
        What nodes with data of their own have to agree on (:mod:`flsparse.tasks.agreement`), as plain values.
    """

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    num_classes: int
    prepare: Callable[[Tensor], Tensor]
    train_groups: np.ndarray | None = None
    test_groups: np.ndarray | None = None
    in_time: bool = False
    labels: tuple[str, ...] | None = None
    objective: str = "classification"
    notes: tuple[str, ...] = ()
    holds: Mapping[str, Any] = field(default_factory=dict)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample: (channels, height, width), (length,) for text, (features,) for vectors."""
        return tuple(self.train_inputs.shape[1:])

    @property
    def is_text(self) -> bool:
        """Whether a sample is a sequence of character codes: a vector's numbers are floating."""
        return len(self.input_shape) == 1 and not self.train_inputs.is_floating_point()

    @property
    def num_outputs(self) -> int:
        """Outputs of a model: one a class, or one a number of a sample's target."""
        return self.num_classes or math.prod(self.train_targets.shape[1:])


def batches(size: int, batch_size: int, generator: torch.Generator, *, epochs: int, steps: int = 0) -> Iterator[Tensor]:
    """Yield shuffled batches of positions, reshuffled each epoch.

    Every sample is seen once an epoch. A single left-over sample joins the last batch: batch norm cannot train on one.

    Parameters
    ----------
    size : int
        Number of samples, at least 1.
    batch_size : int
        At least 1.
    generator : torch.Generator
        Drawn from once an epoch.
    epochs : int
        Passes over the data; ignored when `steps` is given.
    steps : int
        Number of batches, over as many epochs as needed; 0 for whole epochs.

    Yields
    ------
    Tensor
        int64 positions in [0, size), `batch_size` long (the last of an epoch 2 to ``batch_size + 1``).
    """
    sizes = [batch_size] * (size // batch_size)
    left = size % batch_size
    if left == 1 and sizes:
        sizes[-1] += 1
    elif left:
        sizes.append(left)
    remaining = steps if steps > 0 else epochs * len(sizes)
    while remaining > 0:
        order = torch.randperm(size, generator=generator)
        yield from torch.split(order, sizes)[:remaining]
        remaining -= len(sizes)
