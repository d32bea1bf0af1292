"""Compact forms of tensors saved for the backward pass: a boolean mask as bits, a pruned tensor as its kept values.

A tensor is addressed in the order of its own storage, so that channels-last activations need no copy. On the CPU
numpy does the work: its comparisons and bit packing are several times as fast as torch's on booleans.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flsparse.sparsity.topk import kept_count, magnitude_threshold, set_positions

# Below this size a saved tensor stays as it is: compacting would cost more calls than it saves bytes.
MIN_SIZE = 8192
# A compact form that is larger than this fraction of the dense tensor is not worth its time.
_WORTH = 0.6
# Positions are stored as 16-bit offsets into runs of this many elements.
_RUN = 1 << 16

_NUMPY_DTYPES = (torch.float32, torch.float64, torch.float16)
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def storage_order(x: Tensor) -> Tensor:
    """Return ``x`` without gradient history, copied only when its elements do not lie side by side in memory."""
    x = x.detach()
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if x.is_contiguous() or (last is not None and x.is_contiguous(memory_format=last)):
        return x
    return x.contiguous()


def _flat(x: Tensor) -> Tensor:
    return x.as_strided((x.numel(),), (1,))


def pack_positive(x: Tensor) -> Tensor:
    """Return the bits (uint8, eight to a byte) of ``x > 0`` in storage order; ``x`` as `storage_order` returns it."""
    if _by_numpy(x):
        return torch.from_numpy(np.packbits(_flat(x).numpy() > 0))
    return _pack_torch(_flat(x) > 0)


def zero_where_unset(grad: Tensor, bits: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Return ``grad`` where the bit is set, else 0; ``stride`` is the stride of the tensor that the bits came from."""
    # All ones or all zeros, ANDed with the number's own bits: ten times as fast as multiplying by a boolean.
    integers = _INTEGERS[grad.element_size()]
    ones = _unpack(bits, grad.numel()).view(torch.int8).to(integers).neg_().as_strided(grad.shape, stride)
    return torch.bitwise_and(grad.view(integers), ones, out=ones).view(grad.dtype)


def _by_numpy(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in _NUMPY_DTYPES


def _pack_torch(mask: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(mask.to(torch.uint8), (0, -mask.numel() % 8))
    shifts = torch.arange(7, -1, -1, device=mask.device, dtype=torch.uint8)
    return (padded.view(-1, 8) << shifts).sum(1, dtype=torch.uint8)


def _unpack(bits: Tensor, size: int) -> Tensor:
    """Return ``size`` booleans."""
    if bits.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(bits.numpy(), count=size)).view(torch.bool)
    shifts = torch.arange(7, -1, -1, device=bits.device, dtype=torch.uint8)
    return ((bits[:, None] >> shifts) & 1).view(-1)[:size].bool()


def activation_threshold(x: Tensor, sparsity: float) -> float:
    """Return the magnitude at which exactly the wanted fraction of ``x`` is kept, ties included (methods.md, step 3).

    Parameters
    ----------
    x : Tensor
        Activations of a batch, any shape.
    sparsity : float
        Fraction to drop, in [0, 1); ``max(1 - sparsity, 1e-7)`` is kept, one value at least.

    Returns
    -------
    float
        0 when fewer values are not zero (then all of them are kept), or when a value is NaN: a diverging run is for the
        training loop to notice.
    """
    x = storage_order(x)
    k = kept_count(x.numel(), min(sparsity, 1.0 - 1e-7))
    if _by_numpy(x):
        try:
            return magnitude_threshold([_flat(x).numpy()], k)
        except ValueError:
            return 0.0
    return float(_flat(x).abs().float().kthvalue(x.numel() - k + 1).values.nan_to_num(0.0))


def prune_below(x: Tensor, threshold: float) -> Tensor:
    """Return ``x`` with the magnitudes below ``threshold`` set to 0."""
    if x.dtype not in (torch.float32, torch.float64):
        return torch.where(x.abs() >= threshold, x, 0.0)
    # One vectorized pass; it drops |x| <= lambda, so lambda is the number just below the threshold.
    below = torch.nextafter(torch.tensor(threshold, dtype=x.dtype), torch.zeros((), dtype=x.dtype))
    return torch.nn.functional.hardshrink(x, float(below))


@dataclass(frozen=True)
class Layout:
    """Layout of a compacted tensor: its geometry, and the form of its kept positions.

    Attributes
    ----------
    shape, stride
        Of the tensor.
    blocks : tuple[int, ...] | None
        How many positions fall into each run of 65,536 elements; the positions are 16-bit offsets into their run.
        None when the positions are stored as bits (CPU) or as whole indices (elsewhere).
    """

    shape: torch.Size
    stride: tuple[int, ...]
    blocks: tuple[int, ...] | None

    def rebuild(self, values: Tensor, where: Tensor) -> Tensor:
        """Return the dense tensor with zeros where nothing was kept."""
        flat = torch.zeros(self.shape.numel(), dtype=values.dtype, device=values.device)
        if self.blocks is not None:
            positions = np.repeat(np.arange(len(self.blocks)) * _RUN, self.blocks)
            positions += where.numpy().view(np.uint16)
        elif where.dtype == torch.uint8:
            positions = np.flatnonzero(np.unpackbits(where.numpy(), count=flat.numel()).view(np.bool_))
        else:
            return flat.index_copy_(0, where.long(), values).as_strided(self.shape, self.stride)
        return flat.index_copy_(0, torch.from_numpy(positions), values).as_strided(self.shape, self.stride)


def compact(x: Tensor, threshold: float) -> tuple[Tensor, Tensor, Layout] | None:
    """Return kept values, their positions and the layout; None where these are hardly smaller than ``x``.

    Values with ``|x| >= threshold`` are kept, at a threshold of 0 all that are not 0. Positions are 16-bit offsets or
    bits, whichever is smaller.
    """
    x = storage_order(x)
    flat = _flat(x)
    if not _by_numpy(x):
        chosen = (flat.abs() >= threshold if threshold > 0 else flat != 0).nonzero().view(-1)
        if chosen.numel() * (x.element_size() + 4) > _WORTH * x.nbytes:
            return None
        return flat[chosen], chosen.int(), Layout(x.shape, x.stride(), None)
    mask = flat.numpy() >= threshold if threshold > 0 else flat.numpy() != 0
    if threshold > 0:
        mask |= flat.numpy() <= -threshold
    kept = int(np.count_nonzero(mask))
    if kept * x.element_size() + min(mask.size / 8, kept * 2) > _WORTH * x.nbytes:
        return None
    bits = np.packbits(mask)
    positions = set_positions(mask, bits)
    values = flat.index_select(0, torch.from_numpy(positions))
    if kept * 16 > mask.size:
        return values, torch.from_numpy(bits), Layout(x.shape, x.stride(), None)
    borders = np.searchsorted(positions, np.arange(0, mask.size + _RUN, _RUN))
    offsets = torch.from_numpy(positions.astype(np.uint16).view(np.int16))
    return values, offsets, Layout(x.shape, x.stride(), tuple(np.diff(borders).tolist()))
