"""Frozen arrays: a part of a model that never trains, nor travels; both sides make it, and compare a hash of it."""

import hashlib
from collections.abc import Sequence
from typing import Self

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from flsparse.nets.arrays import Arrays
from flsparse.nets.hidden import hidden_parameters, hide, named_by


class _Still(nn.Module):
    """Mixed into a norm whose statistics are frozen: it computes with them in training, too."""

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Take arrays out of a model's state dict, and out of training, where they compute as before.

    Parameters
    ----------
    model : nn.Module
        Its frozen parameters become buffers that no state dict has; a batch norm with frozen statistics stays in
        evaluation mode.
    patterns : sequence of str
        Of state-dict keys, such as ``features.*``.

    Returns
    -------
    list of str
        The keys that were frozen, in state-dict order.

    Raises
    ------
    ValueError
        A pattern matches no array, or nothing is left to train.
    """
    frozen = named_by(model, patterns, "model.freeze")
    hide(model, frozen)
    for tensor in hidden_parameters(model, frozen):
        tensor.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"model.freeze={list(patterns)} leaves nothing to train: freeze less")
    for prefix, module in model.named_modules():
        if isinstance(module, _BatchNorm) and f"{prefix}.running_mean".lstrip(".") in frozen:
            module.__class__ = type(f"Still{type(module).__name__}", (_Still, type(module)), {})
            module.eval()
    return frozen


def digest(arrays: Arrays) -> str:
    """Return a hash of arrays with their names, 16 hexadecimal digits; the same on every processor."""
    state = hashlib.sha256()
    for name, array in arrays.items():
        state.update(f"{name}{array.shape}".encode())
        state.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return state.hexdigest()[:16]
