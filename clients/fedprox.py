"""FedProx on the device (Li et al. 2020, arXiv 1812.06127): local SGD held near the received model.

g <- grad f(w) + mu (w - x)               every step; x: the received weights
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from flsparse.clients.core.fit import Fit
from flsparse.clients.core.method import LocalMethod, register


@register
@dataclass(kw_only=True)
class FedProxLocal(LocalMethod):
    """Local SGD with a proximal term of weight ``mu``, at least 0."""

    name: ClassVar[str] = "fedprox"
    mu: float = 0.01

    def after_backward(self, fit: Fit) -> None:
        """Add the gradient of ``mu / 2 ||w - x||^2``."""
        for name, w in fit.model.named_parameters():
            if w.grad is not None:
                w.grad += self.mu * (w.detach() - torch.from_numpy(fit.received[name]).to(w))
