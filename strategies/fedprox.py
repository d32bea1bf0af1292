"""FedProx on the server (Li et al. 2020, arXiv 1812.06127): FedAvg of nodes that are held near the model."""

from typing import Any

from flsparse.clients.core.method import LocalMethod
from flsparse.clients.fedprox import FedProxLocal
from flsparse.ranges import within
from flsparse.strategies.core.exchange import Node
from flsparse.strategies.fedavg import FedAvg


class FedProx(FedAvg):
    """FedAvg with a proximal term on the device.

    Parameters
    ----------
    mu : float (default: 0.01)
        Weight of the proximal term, at least 0; 0 is FedAvg.
    **fedavg
        Parameters of :class:`FedAvg`.
    """

    name = "fedprox"

    def __init__(self, *, mu: float = 0.01, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        within("[0, inf)", mu=mu)
        self.mu = mu

    def method(self, server_round: int, node: Node | None = None) -> LocalMethod:
        """Ask for the proximal term."""
        return FedProxLocal(mu=self.mu)
