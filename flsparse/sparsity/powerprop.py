"""Powerpropagation: a layer computes with a power of its stored parameter.

    w = sign(v) |v|^beta,        dL/dv = dL/dw * beta |v|^(beta - 1)        (Schwarz et al., 2021; SparsyFed, section 3)

With ``beta > 1`` large weights learn faster than small ones, and a weight that is exactly zero has a zero gradient:
under plain SGD a zero stays a zero.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_FIXED_POINT_STEPS = 8


def transformed() -> bool:
    """Tell whether a transform of `torch.func` (vmap, grad, ...) runs: numpy cannot see the memory of its tensors."""
    return torch._C._are_functorch_transforms_active()


def power_factor(v: Tensor, beta: float) -> Tensor:
    """Return ``p = |v|^(beta - 1)``, so that ``w = v p`` and ``dw/dv = beta p``.

    Parameters
    ----------
    v : Tensor
        Stored parameters, any shape, floating.
    beta : float
        Exponent, at least 1.

    Returns
    -------
    Tensor
        Same shape and dtype as ``v``, without a gradient history; 0 where ``v`` is 0 (1 everywhere when ``beta`` is 1).
    """
    v = v.detach()
    if beta == 1.0:
        return torch.ones_like(v)
    numbers = v.device.type == "cpu" and v.dtype in (torch.float32, torch.float64)
    if beta == 1.25 and numbers and not (transformed() or torch.compiler.is_compiling()):
        # Two square roots are three times as fast as a power, and numpy's do not slow down on zeros as torch's do.
        magnitude = v.abs()
        values = magnitude.numpy()
        np.sqrt(values, out=values)
        np.sqrt(values, out=values)
        return magnitude
    return v.abs().pow_(beta - 1.0)


class _Power(torch.autograd.Function):
    """``w = sign(v) |v|^beta``; plain autograd through it would give NaN at 0."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, beta: float) -> Tensor:
        factor = power_factor(v, beta)
        ctx.beta = beta
        ctx.save_for_backward(factor)
        return v * factor

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return (grad * factor).mul_(ctx.beta), None


class _TransformedPower(torch.autograd.Function):
    """The same, as the transforms of `torch.func` ask for it: each call takes torch longer."""

    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, beta: float) -> Tensor:
        return v * power_factor(v, beta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        v, ctx.beta = inputs
        ctx.save_for_backward(v)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        return grad * power_factor(v, ctx.beta).mul_(ctx.beta), None


_power: Callable[[Tensor, float], Tensor] = _Power.apply
_transformed_power: Callable[[Tensor, float], Tensor] = _TransformedPower.apply


def power(v: Tensor, beta: float) -> Tensor:
    """Return the weights ``w = sign(v) |v|^beta`` that the stored parameters ``v`` stand for, differentiable once.

    Examples
    --------
    >>> power(torch.tensor([-4.0, 0.0, 9.0]), 1.5)
    tensor([-8.,  0., 27.])
    """
    if beta == 1.0:
        return v
    if transformed() or torch.compiler.is_compiling():
        return _transformed_power(v, beta)
    return _power(v, beta) if torch.is_grad_enabled() else v * power_factor(v, beta)


def inverse_power(w: Tensor, beta: float) -> Tensor:
    """Return the stored parameters ``v = sign(w) |w|^(1/beta)`` of the weights ``w``, without a gradient history.

    Examples
    --------
    >>> inverse_power(torch.tensor([-8.0, 0.0, 27.0]), 1.5)
    tensor([-4.,  0.,  9.])
    """
    w = w.detach()
    # float64 inside: the round trip w -> v -> w then changes a float32 weight by a few units in the last place at most.
    return (w.sign().double() * w.double().abs().pow(1.0 / beta)).to(w.dtype)


def spectral_exponent(v: Tensor) -> float:
    """Return the exponent that a layer derives from its own parameters: ``1 + mean(|V|) / sigma_max(|V|)``.

    ``sigma_max`` is estimated by one power iteration on ``|V|`` flattened to (out, rest), started at the vector of ones
    so that server and devices find the same number; it is clamped to at least 1e-12.

    Parameters
    ----------
    v : Tensor
        Stored parameters with two dimensions or more.

    Returns
    -------
    float
        In [1, 2]; 1 for a layer of zeros.
    """
    magnitude = v.detach().abs().flatten(1).float()
    right = magnitude.sum(0)
    left = magnitude @ (right / right.norm().clamp_min(1e-12))
    sigma = float(left.norm().clamp_min(1e-12))
    return 1.0 + min(float(magnitude.mean()) / sigma, 1.0)


def spectral_inverse(w: Tensor) -> tuple[Tensor, float]:
    """Return ``(v, beta)`` with ``beta = spectral_exponent(v)`` and ``power(v, beta)`` close to ``w``.

    The exponent depends on ``v`` and ``v`` on the exponent; the fixed point is reached in a few steps since the
    exponent of a layer lies within ``1 / sqrt(out * rest)`` of 1.
    """
    v, beta = w.detach().clone(), 1.0
    for _ in range(_FIXED_POINT_STEPS):
        beta, before = spectral_exponent(v), beta
        v = inverse_power(w, beta)
        if abs(beta - before) < 1e-9:
            break
    return v, beta
