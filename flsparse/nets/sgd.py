"""Stochastic gradient descent without the wait for `torch._dynamo`.

The first `torch.optim.SGD` of a process imports torch's compiler, two seconds in which nothing is compiled: torch wraps
three of the class's methods so that its compiler leaves them alone. What they wrap needs no compiler.
"""

from collections.abc import Callable
from typing import Any

import torch


def _unwrapped(method: Callable[..., Any]) -> Callable[..., Any]:
    return getattr(method, "__wrapped__", method)


class SGD(torch.optim.SGD):
    """`torch.optim.SGD`, its own code, which imports no compiler.

    Examples
    --------
    >>> p = torch.nn.Parameter(torch.tensor([1.0]))
    >>> p.grad = torch.tensor([0.5])
    >>> SGD([p], lr=0.5).step()
    >>> p.tolist()
    [0.75]
    """

    add_param_group = _unwrapped(torch.optim.SGD.add_param_group)
    zero_grad = _unwrapped(torch.optim.SGD.zero_grad)
    step = torch.no_grad()(_unwrapped(torch.optim.SGD.step))
