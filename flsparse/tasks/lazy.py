"""Samples that are read when a batch asks for them: a folder of images, a memory-mapped file, windows of a series."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lazy:
    """Samples that stand where a tensor of them would: they have its shape, and give tensors by positions.

    Attributes
    ----------
    read : callable
        Maps int64 positions, shape (n,), to the stored samples, a tensor (n, ...) on the CPU.
    sample_shape : tuple of int
        Shape of one sample.
    dtype : torch.dtype
        Of the samples.
    index : Tensor
        int64 (samples,), the positions of these samples for `read`.
    device : torch.device
        Where batches are wanted.

    """

    read: Callable[[Tensor], Tensor]
    sample_shape: tuple[int, ...]
    dtype: torch.dtype
    index: Tensor
    device: torch.device

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> torch.Size:
        """(samples, ...), as of a tensor."""
        return torch.Size((len(self.index), *self.sample_shape))

    def is_floating_point(self) -> bool:
        """Whether the samples are floating numbers."""
        return self.dtype.is_floating_point

    def to(self, device: torch.device) -> "Lazy":
        """Return the samples with their batches on another device."""
        return replace(self, device=device)

    def __getitem__(self, positions: Tensor | Sequence[int]) -> Tensor:
        """Read samples, int64 positions (n,) among these."""
        chosen = torch.as_tensor(positions, dtype=torch.int64, device="cpu")
        return self.read(self.index[chosen]).to(self.device)


def lazily(read: Callable[[Tensor], Tensor], samples: int, sample_shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return all samples of a reader, in order: a :class:`Lazy`, by its interface a tensor.

    Examples
    --------
    >>> squares = lazily(lambda positions: (positions**2)[:, None], 10, (1,), torch.int64)
    >>> some = rows_of(squares, torch.tensor([3, 5, 7]))
    >>> some.shape, some[[0, -1]].flatten().tolist()
    (torch.Size([3, 1]), [9, 49])
    """
    return cast("Tensor", Lazy(read, sample_shape, dtype, torch.arange(samples), torch.device("cpu")))


def rows_of(samples: Tensor | Lazy, index: Tensor) -> Tensor:
    """Return some of the samples, int64 positions (n,): a copy, or where they are read from files a view, unread."""
    if isinstance(samples, Lazy):
        return cast("Tensor", replace(samples, index=samples.index[index]))
    return samples[index]
