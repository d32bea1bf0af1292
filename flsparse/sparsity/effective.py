"""A treated weight as others read it: the parameter ``v``, and inside a forward pass ``w = sign(v)|v|^beta``.

A module's forward pass may read the weight of a layer past that layer's own: attention that hands ``self.qkv.weight``
to a function, cosine heads, decoders that share by hand. It has to compute with ``w``. Whoever trains, loads, prunes or
lists parameters does so outside a forward pass, and finds ``v``, the parameter itself.
"""

import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from flsparse.sparsity.powerprop import power

_CALL = nn.Module._call_impl.__code__


def in_forward() -> bool:
    """Tell whether the caller runs inside a module's forward pass, in this thread.

    Compiled code counts as one, and so does the backward pass, in which gradient checkpointing computes again.
    """
    if torch.compiler.is_compiling() or torch._C._current_graph_task_id() != -1:
        return True
    # The stack is the one record of it that no exception, thread, copy or pickle can leave in a wrong state.
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _CALL or frame.f_code.co_name == "forward":
            return True
        frame = frame.f_back
    return False


def stored(module: nn.Module, name: str) -> Any:
    """Return ``v`` as the module holds it: a parameter, or a tensor that took its place (replicas, torch's pruning).

    Raises
    ------
    AttributeError
        When the module holds none of that name.
    """
    for place in (module._parameters, module.__dict__):
        if name in place:
            return place[name]
    raise AttributeError(f"{type(module).__name__!r} object has no attribute {name!r}")


def effective(name: str) -> property:
    """Return a property that reads a treated layer's weight of this name as the module's docstring says."""

    def read(module: nn.Module) -> Any:
        v = stored(module, name)
        state = module.__dict__.get("powerprop")
        if isinstance(state, dict):
            state = state.get(name)
        if v is None or state is None or not in_forward():
            return v
        once = module.__dict__.get("_computed", {})
        return once[name] if name in once else power(v, state.beta)

    def write(module: nn.Module, value: Tensor) -> None:  # torch has dealt with parameters before
        module.__dict__[name] = value

    def delete(module: nn.Module) -> None:
        del module.__dict__[name]

    return property(read, write, delete)
