"""FedAvg on the device (McMahan et al. 2017, arXiv 1602.05629): plain local SGD, the whole model is sent.

w <- w - lr * grad f(w)        local_epochs times over the local data, from the received w
"""

from dataclasses import dataclass
from typing import ClassVar

from flsparse.clients.core.method import LocalMethod, register


@register
@dataclass(kw_only=True)
class FedAvgLocal(LocalMethod):
    """Plain local training: no hook does anything."""

    name: ClassVar[str] = "fedavg"
