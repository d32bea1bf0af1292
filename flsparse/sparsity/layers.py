"""Linear and convolution layers that compute with ``w = sign(v)|v|^beta`` and save a pruned input.

The output uses the dense input. The weight gradient uses a *saved* input, pruned to the layer's own weight sparsity
(SparsyFed, step 3) and stored as values and positions; the backward pass rebuilds one layer's input at a time. There
the weights are not saved but computed again from ``v``, which stays in memory anyway. Where no input is pruned, a small
layer is torch's own operation on ``w``: a copy of a few weights costs less than a backward pass in Python.

A plain layer becomes one of these by exchanging its class, so that parameters, state-dict keys, hooks and buffers stay.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, SupportsIndex, cast

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
from flsparse.sparsity.effective import effective, stored
from flsparse.sparsity.powerprop import power, power_factor, transformed

# Their result is saved for their own backward pass, and views of it cost nothing: a compact copy would only add to it.
_SAVES_RESULT = {"ReluBackward0", "TanhBackward0", "SigmoidBackward0", "SoftmaxBackward0", "AccumulateGrad"}
_SMALL = 1 << 16  # weights of a layer
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

    def threshold_for(self, x: Tensor) -> float:
        """Return the magnitude below which the saved input of this batch is dropped."""
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
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.beta, ctx.threshold, ctx.geometry, ctx.dtype = beta, None, geometry, dtype
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
        y = geometry.forward(x, w.to(dtype), bias)
        # A linear layer's result may be a view, which torch would not let the next layer change in place.
        return torch.ops.aten._unsafe_view(y, y.shape) if y._is_view() else y

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
        factor = None if ctx.beta == 1.0 else power_factor(v, ctx.beta)
        w = v if factor is None else v * factor
        grad_x, grad_v, grad_bias = ctx.geometry.backward(grad, x, w.to(ctx.dtype), needs)
        if needs[1]:
            grad_v = grad_v.to(v.dtype)
            if factor is not None:
                grad_v = grad_v.mul_(factor).mul_(ctx.beta)
        return grad_x, grad_v, grad_bias, None, None, None, None, None


_power_layer: Callable[..., Tensor] = _PowerLayer.apply


def _apply(layer: nn.Module, x: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry | LinearGeometry) -> Tensor:
    state: LayerState = layer.__dict__["powerprop"]
    dtype = v.dtype
    if torch.is_autocast_enabled(x.device.type) and torch.float64 not in (x.dtype, dtype):
        # Inside a Function autocast would hide the casts from the backward pass. The power is taken before its cast.
        dtype = torch.get_autocast_dtype(x.device.type)
        x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
    pruning = layer.training and state.pruning and state.sparsity > 0.0
    compiling = torch.compiler.is_compiling()
    # Under vmap and its like nothing may depend on the data: there the reparametrization stands alone.
    alone = not pruning and (compiling or v.numel() <= _SMALL)
    if alone or transformed() or not torch.is_grad_enabled():
        return geometry.forward(x, power(v, state.beta).to(dtype), bias)
    function = torch.compiler.disable(_pruned) if compiling else _pruned
    return function(state, pruning, x, v, bias, geometry, dtype)


def _pruned(
    state: LayerState,
    pruning: bool,
    x: Tensor,
    v: Tensor,
    bias: Tensor | None,
    geometry: Geometry | LinearGeometry,
    dtype: torch.dtype,
) -> Tensor:
    threshold = state.threshold_for(x) if pruning else None
    return _power_layer(x, v, bias, state.beta, threshold, _kept_elsewhere(x), geometry, dtype)


def _kept_elsewhere(x: Tensor) -> bool:
    """Tell whether ``x`` stays in memory until the backward pass whatever this layer does."""
    node = x.grad_fn
    while node is not None and node.name() in _VIEWS:
        node = node.next_functions[0][0]
    return node is None or node.name() in _SAVES_RESULT


class _Reparametrized(nn.Module):
    powerprop: LayerState
    weight = effective("weight")

    @property
    def _v(self) -> Tensor:
        try:
            v: Tensor = stored(self, "weight")
        except AttributeError:  # torch's parametrize, on top of ours
            v = self.weight
        return v


class PowerLinear(_Reparametrized, nn.Linear):
    """`torch.nn.Linear` whose ``weight`` holds ``v``."""

    def forward(self, input: Tensor) -> Tensor:
        return _apply(self, input, self._v, self.bias, LinearGeometry())


class PowerConv1D(_Reparametrized):
    """The Conv1D of GPT-2, a linear layer with its ``weight`` (in, out) transposed, which holds ``v``.

    The transformers library, which has it, need not be there: `power_subclass` makes the class from the plain one.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _apply(self, x, self._v.t(), cast(Tensor, self.bias), LinearGeometry())


class _PowerConv(_Reparametrized, nn.modules.conv._ConvNd):
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
        y = _apply(self, x, self._v, self.bias, Geometry(self.stride, padding, self.dilation, self.groups))
        return y if x.dim() == input.dim() else y.squeeze(0)


class PowerConv1d(_PowerConv, nn.Conv1d):
    """`torch.nn.Conv1d` whose ``weight`` holds ``v``."""


class PowerConv2d(_PowerConv, nn.Conv2d):
    """`torch.nn.Conv2d` whose ``weight`` holds ``v``."""


class PowerConv3d(_PowerConv, nn.Conv3d):
    """`torch.nn.Conv3d` whose ``weight`` holds ``v``."""


_subclasses: dict[type[nn.Module], type[nn.Module]] = {}


def power_subclass(power: type[nn.Module], plain: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of a class above and of a plain class; its attribute ``plain`` is the latter."""
    if plain not in _subclasses:
        kind = type(f"Power{plain.__name__}", (power, plain), {"plain": plain, "__reduce_ex__": _reduce})
        _subclasses[plain] = kind
    return _subclasses[plain]


def _reduce(module: Any, _protocol: SupportsIndex) -> Any:
    kind = type(module)
    return _empty, (kind.__mro__[1], kind.plain), module.__dict__


def _empty(power: type[nn.Module], plain: type[nn.Module]) -> nn.Module:
    kind = power_subclass(power, plain)
    return kind.__new__(kind)


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
        if self.as_bits and self.training and input.requires_grad and input.numel() >= MIN_SIZE and not transformed():
            return _bit_relu(input, self.inplace)
        return super().forward(input)
