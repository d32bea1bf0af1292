"""Arrays taken out of a model's state dict and its parameters, where they compute as before.

To all that averages, prunes or sends a model, hidden arrays are no part of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn

from flsparse.configs import did_you_mean
from flsparse.nets.arrays import Arrays, to_array


def named_by(model: nn.Module, patterns: Sequence[str], key: str) -> list[str]:
    """Return the state-dict keys that patterns match, in state-dict order, with the other names of a tied array.

    Parameters
    ----------
    model : nn.Module
    patterns : sequence of str
        As in ``fnmatch``, such as ``features.*``.
    key : str
        Key of the configuration, for errors.

    Raises
    ------
    ValueError
        A pattern matches no array.
    """
    found = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise ValueError(f"{key}: {pattern!r} names no array of the model{did_you_mean(pattern, found)}")
    chosen = {id(value) for name, value in found.items() if any(fnmatchcase(name, each) for each in patterns)}
    return [name for name, value in found.items() if id(value) in chosen]


def hide(model: nn.Module, names: Iterable[str]) -> None:
    """Make the arrays of these state-dict keys buffers that no state dict has; a parameter goes on needing gradients.

    Where they are all that a batch norm knows of its data, see :func:`hides_statistics`.
    """
    for name in names:
        module, last = _place(model, name)
        array = getattr(module, last)
        delattr(module, last)
        module.register_buffer(last, array, persistent=False)


def hidden_arrays(model: nn.Module, names: Iterable[str]) -> Arrays:
    """Return hidden arrays by the state-dict keys that they had, as NumPy arrays of their own."""
    return {name: to_array(tensor) for name, tensor in _tensors(model, names).items()}


def hidden_parameters(model: nn.Module, names: Iterable[str]) -> list[Tensor]:
    """Return the hidden arrays that need gradients, a tied one once."""
    found = {id(tensor): tensor for tensor in _tensors(model, names).values() if tensor.requires_grad}
    return list(found.values())


def load_hidden(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Load hidden arrays by the state-dict keys that they had.

    Raises
    ------
    ValueError
        A shape differs.
    """
    with torch.no_grad():
        for name, tensor in _tensors(model, arrays).items():
            if tensor.shape != arrays[name].shape:
                raise ValueError(f"array {name!r} is {arrays[name].shape}, not {tuple(tensor.shape)} as in the model")
            tensor.copy_(torch.from_numpy(np.array(arrays[name])))


def hides_statistics(norm: nn.Module) -> bool:
    """Tell whether a batch norm's running statistics are hidden."""
    return "running_mean" in norm._non_persistent_buffers_set


def _tensors(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    places = {name: _place(model, name) for name in names}
    return {name: getattr(module, last) for name, (module, last) in places.items()}


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    parent, _, last = name.rpartition(".")
    return model.get_submodule(parent), last
