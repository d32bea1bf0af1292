"""CHOCO-SGD on the server (Koloskova et al. 2019, arXiv 1902.00340): a relay; see :mod:`flsparse.clients.choco_sgd`."""

from flsparse.clients.choco_sgd import ChocoSGDLocal
from flsparse.clients.core.method import LocalMethod
from flsparse.strategies.core.exchange import Node
from flsparse.strategies.malcom_psgd import QuantizedGossip


class ChocoSGD(QuantizedGossip):
    """Gossip with the old copies, then the residual. Parameters are those of :class:`QuantizedGossip`."""

    name = "choco_sgd"

    def method(self, server_round: int, node: Node | None = None) -> LocalMethod:
        """Ask for the rates and the quantizer."""
        return ChocoSGDLocal(**self.quantizer)
