"""A module's and an optimizer's tensors as NumPy arrays by name, and back."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

Arrays = dict[str, np.ndarray]
_SEPARATOR = "|"


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor as a NumPy array of its own; bfloat16, which NumPy lacks, as float32."""
    tensor = tensor.detach().cpu()
    return np.array((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


def state_arrays(model: nn.Module) -> Arrays:
    """Return a module's state as NumPy arrays of their own, by state-dict key.

    An extra state that is no tensor is left out: it stays the module's own.
    """
    state = model.state_dict().items()
    return {name: to_array(value) for name, value in state if isinstance(value, torch.Tensor)}


def load_arrays(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Load NumPy arrays into a module; names and shapes must be the module's own.

    The versions that a state dict carries (``_metadata``), and an extra state that is no tensor, are the module's own.

    Raises
    ------
    ValueError
        A name is missing or unknown, or a shape differs.
    """
    state = model.state_dict()
    for name in [name for name, value in state.items() if isinstance(value, torch.Tensor)]:
        del state[name]
    state.update({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the arrays do not fit the model: {error}") from error


def parameter_arrays(model: nn.Module) -> Arrays:
    """Return a module's parameters, without its buffers, as NumPy arrays of their own."""
    return {name: to_array(p) for name, p in model.named_parameters()}


def load_parameters(model: nn.Module, arrays: Arrays) -> None:
    """Load parameters by name and leave buffers as they are."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(arrays[name]))


def optimizer_arrays(model: nn.Module, optimizer: torch.optim.Optimizer) -> Arrays:
    """Return an optimizer's tensors as ``{"momentum_buffer|conv.weight": array}``."""
    return {
        f"{key}{_SEPARATOR}{name}": to_array(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, arrays: Arrays) -> None:
    """Load arrays of :func:`optimizer_arrays`; other names are ignored."""
    parameters = dict(model.named_parameters())
    for full_name, array in arrays.items():
        key, found, name = full_name.partition(_SEPARATOR)
        if found and name in parameters:
            value = torch.from_numpy(np.array(array))
            optimizer.state[parameters[name]][key] = value if key == "step" else value.to(parameters[name].device)
