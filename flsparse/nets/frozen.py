"""Frozen arrays: a part of a model that never trains, nor travels; both sides make it, and compare a hash of it."""

import hashlib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Self

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from flsparse.configs import did_you_mean
from flsparse.nets.arrays import Arrays, to_array


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
    names = [name for name, value in model.state_dict().items() if isinstance(value, Tensor)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"model.freeze: {pattern!r} names no array of the model{did_you_mean(pattern, names)}")
    frozen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    for name in frozen:
        module, last = _place(model, name)
        array: Tensor = getattr(module, last)
        array.requires_grad_(False)  # where a recurrent layer holds it in a list, too
        delattr(module, last)
        module.register_buffer(last, array.detach(), persistent=False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"model.freeze={list(patterns)} leaves nothing to train: freeze less")
    for prefix, module in model.named_modules():
        if isinstance(module, _BatchNorm) and f"{prefix}.running_mean".lstrip(".") in frozen:
            module.__class__ = type(f"Still{type(module).__name__}", (_Still, type(module)), {})
            module.eval()
    return frozen


def frozen_arrays(model: nn.Module, names: Iterable[str]) -> Arrays:
    """Return the arrays that were frozen, by state-dict key, as NumPy arrays of their own."""
    places = {name: _place(model, name) for name in names}
    return {name: to_array(getattr(module, last)) for name, (module, last) in places.items()}


def digest(arrays: Arrays) -> str:
    """Return a hash of arrays with their names, 16 hexadecimal digits; the same on every processor."""
    state = hashlib.sha256()
    for name, array in arrays.items():
        state.update(f"{name}{array.shape}".encode())
        state.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return state.hexdigest()[:16]


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    parent, _, last = name.rpartition(".")
    return model.get_submodule(parent), last
