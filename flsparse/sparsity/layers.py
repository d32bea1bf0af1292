"""Linear and convolution layers that compute with ``w = sign(v)|v|^beta`` and save a pruned input.

The output uses the dense input. The weight gradient uses a *saved* input, pruned to the layer's own weight sparsity
(SparsyFed, step 3) and stored as values and positions; the backward pass rebuilds one layer's input at a time. The
weights are not saved but computed again from ``v``, which stays in memory anyway.

A plain layer becomes one of these by exchanging its class, so that parameters, state-dict keys, hooks and buffers stay.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flsparse.sparsity.compact import (
    MIN_SIZE,
    activation_threshold,
    compact,
    pack_positive,
    prune_below,
    storage_order,
    zero_where_unset,
)
from flsparse.sparsity.powerprop import power, power_factor

# Their result is saved for their own backward pass, and views of it cost nothing: a compact copy would only add to it.
_SAVES_RESULT = {"ReluBackward0", "TanhBackward0", "SigmoidBackward0", "SoftmaxBackward0", "AccumulateGrad"}
_VIEWS = {"ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "UnsqueezeBackward0", "TransposeBackward0"}


@dataclass
class LayerState:
    """State of a layer besides its parameters; all of it can be derived again, so it is in no state dict.

    Attributes
    ----------
    beta : float
        The exponent now, at least 1.
    spectral : bool
        Whether ``beta`` is derived from the parameters at the start of each fit.
    pruning : bool
        Whether saved inputs are pruned.
    exact : bool
        Whether the threshold is found for every batch.
    sparsity : float
        Fraction of zeros among the layer's weights at the start of the fit.
    threshold : float | None
        The frozen threshold; None before the first training batch of a fit.
    """

    beta: float
    spectral: bool
    pruning: bool
    exact: bool
    sparsity: float = 0.0
    threshold: float | None = None

    def threshold_for(self, x: Tensor) -> float | None:
        """Return the magnitude below which the saved input of this batch is dropped; None for a layer that is dense."""
        if not self.pruning or self.sparsity <= 0.0:
            return None
        if self.exact:
            return activation_threshold(x, self.sparsity)
        if self.threshold is None:
            self.threshold = activation_threshold(x, self.sparsity)
        return self.threshold


@dataclass(frozen=True)
class Geometry:
    """The numbers of a convolution; padding is symmetric and by zeros, anything else was padded before."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def forward(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        zeros = (0,) * len(self.stride)
        return torch.convolution(x, w, bias, self.stride, self.padding, self.dilation, False, zeros, self.groups)

    def backward(
        self, grad: Tensor, x: Tensor, w: Tensor, needs: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        geometry = (self.stride, self.padding, self.dilation, False, (0,) * len(self.stride), self.groups)
        result = torch.ops.aten.convolution_backward(grad, x, w, (w.shape[0],), *geometry, needs)
        return cast(tuple[Tensor | None, Tensor | None, Tensor | None], result)


class LinearGeometry:
    """Forward and backward operations of a linear layer."""

    def forward(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, w, bias)

    def backward(
        self, grad: Tensor, x: Tensor, w: Tensor, needs: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows = grad.reshape(-1, w.shape[0])
        return (
            grad @ w if needs[0] else None,
            rows.t() @ x.reshape(-1, w.shape[1]) if needs[1] else None,
            rows.sum(0) if needs[2] else None,
        )


class _PowerLayer(torch.autograd.Function):
    """``y = layer(x, sign(v)|v|^beta) + bias`` with a pruned ``x`` in the gradient of ``v``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        v: Tensor,
        bias: Tensor | None,
        beta: float,
        threshold: float | None,
        kept_elsewhere: bool,
        geometry: Geometry | LinearGeometry,
    ) -> Tensor:
        ctx.beta, ctx.threshold, ctx.geometry = beta, None, geometry
        ctx.shape, ctx.layout = x.shape, None
        small = None
        if threshold is not None and not kept_elsewhere and x.numel() >= MIN_SIZE:
            small = compact(x, threshold)
        if not ctx.needs_input_grad[1]:
            ctx.save_for_backward(v)
        elif small is not None:
            values, where, ctx.layout = small
            ctx.save_for_backward(v, values, where)
        else:
            ctx.threshold = threshold
            ctx.save_for_backward(v, x)
        w = v if beta == 1.0 else power_factor(v, beta).mul_(v)
        return geometry.forward(x, w, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        v, *saved = ctx.saved_tensors
        if ctx.layout is not None:
            x = ctx.layout.rebuild(*saved)
        elif saved:
            x = saved[0] if ctx.threshold is None else prune_below(saved[0], ctx.threshold)
        else:  # only the shape counts: the parameters are frozen
            x = grad.new_empty(ctx.shape)
        needs = ctx.needs_input_grad[:3]
        if ctx.beta == 1.0:
            return *ctx.geometry.backward(grad, x, v, needs), None, None, None, None
        factor = power_factor(v, ctx.beta)
        grad_x, grad_w, grad_bias = ctx.geometry.backward(grad, x, v * factor, needs)
        grad_v = grad_w.mul_(factor).mul_(ctx.beta) if needs[1] else None
        return grad_x, grad_v, grad_bias, None, None, None, None


_power_layer: Callable[..., Tensor] = _PowerLayer.apply


def _apply(
    layer: "PowerLinear | _PowerConv", x: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry | LinearGeometry
) -> Tensor:
    state = layer.powerprop
    if torch.is_autocast_enabled(
        x.device.type
    ):  # inside a Function autocast would hide the casts from the backward pass
        dtype = torch.get_autocast_dtype(x.device.type)
        x, v, bias = x.to(dtype), v.to(dtype), None if bias is None else bias.to(dtype)
    if not torch.is_grad_enabled():
        return geometry.forward(x, power(v, state.beta), bias)
    threshold = state.threshold_for(x) if layer.training else None
    return _power_layer(x, v, bias, state.beta, threshold, _kept_elsewhere(x), geometry)


def _kept_elsewhere(x: Tensor) -> bool:
    """Tell whether ``x`` stays in memory until the backward pass whatever this layer does."""
    node = x.grad_fn
    while node is not None and node.name() in _VIEWS:
        node = node.next_functions[0][0]
    return node is None or node.name() in _SAVES_RESULT


class PowerLinear(nn.Linear):
    """`torch.nn.Linear` whose ``weight`` holds ``v``."""

    powerprop: LayerState

    def forward(self, input: Tensor) -> Tensor:
        return _apply(self, input, self.weight, self.bias, LinearGeometry())


class _PowerConv(nn.modules.conv._ConvNd):
    powerprop: LayerState

    def forward(self, input: Tensor) -> Tensor:
        dimensions = len(self.kernel_size)
        x = input if input.dim() == dimensions + 2 else input.unsqueeze(0)
        padding: tuple[int, ...] = (0,) * dimensions
        pads = self._reversed_padding_repeated_twice  # (last dimension low, high, ..., first dimension low, high)
        if self.padding_mode != "zeros":
            x = F.pad(x, pads, mode=self.padding_mode)
        elif pads[::2] != pads[1::2]:  # "same" with an even kernel
            x = F.pad(x, pads)
        else:
            padding = tuple(pads[::-2])
        y = _apply(self, x, self.weight, self.bias, Geometry(self.stride, padding, self.dilation, self.groups))
        return y if x.dim() == input.dim() else y.squeeze(0)


class PowerConv1d(_PowerConv, nn.Conv1d):
    """`torch.nn.Conv1d` whose ``weight`` holds ``v``."""


class PowerConv2d(_PowerConv, nn.Conv2d):
    """`torch.nn.Conv2d` whose ``weight`` holds ``v``."""


class PowerConv3d(_PowerConv, nn.Conv3d):
    """`torch.nn.Conv3d` whose ``weight`` holds ``v``."""


class _BitReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        x = x if inplace else storage_order(x)
        y = x.relu_() if inplace else x.relu()
        if inplace:
            ctx.mark_dirty(x)
        ordered = storage_order(y)
        ctx.stride = ordered.stride()
        ctx.save_for_backward(pack_positive(ordered))
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return zero_where_unset(grad, ctx.saved_tensors[0], ctx.stride), None


_bit_relu: Callable[[Tensor, bool], Tensor] = _BitReLU.apply


class BitReLU(nn.ReLU):
    """`torch.nn.ReLU` that saves one bit per value instead of its result.

    The plain one saves its result, which costs nothing as long as the next layer saves the same tensor as its input;
    once that layer saves a pruned one, it is the ReLU that holds the memory.
    """

    as_bits: bool

    def forward(self, input: Tensor) -> Tensor:
        if self.as_bits and self.training and input.requires_grad and input.numel() >= MIN_SIZE:
            return _bit_relu(input, self.inplace)
        return super().forward(input)
