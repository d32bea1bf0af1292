"""Stochastic gradient descent without the wait for `torch._dynamo`.

The first `torch.optim.SGD` of a process imports torch's compiler, two seconds in which nothing is compiled. This one
takes the same steps, to the bit, and imports nothing.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer


class SGD(torch.optim.SGD):
    """`torch.optim.SGD` with ``lr``, ``momentum`` and ``weight_decay``, a parameter after the other.

    For parameter p with gradient g: ``g <- g + weight_decay p``; with momentum, ``b <- momentum b + g`` (g itself in
    the first step) and ``g <- b``; ``p <- p - lr g``. State, groups and hooks are those of the class it stands for.

    Examples
    --------
    >>> p = torch.nn.Parameter(torch.tensor([1.0]))
    >>> p.grad = torch.tensor([0.5])
    >>> SGD([p], lr=0.5).step()
    >>> p.tolist()
    [0.75]
    """

    def __init__(
        self, params: Iterable[torch.nn.Parameter], lr: float, *, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    # torch wraps these so that its compiler leaves them alone; what it wraps needs no compiler
    add_param_group = getattr(Optimizer.add_param_group, "__wrapped__", Optimizer.add_param_group)
    zero_grad = getattr(Optimizer.zero_grad, "__wrapped__", Optimizer.zero_grad)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; the closure, where there is one, computes the gradients and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)
        return loss

    def _step(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        if group["momentum"]:
            state = self.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = gradient.detach().clone()
            else:
                state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
            gradient = state["momentum_buffer"]
        parameter.add_(gradient, alpha=-group["lr"])
