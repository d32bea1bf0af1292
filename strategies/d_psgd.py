"""D-PSGD on the server (Lian et al. 2017, arXiv 1705.09056): a relay; see :mod:`flsparse.clients.d_psgd`."""

from flsparse.clients.core.method import LocalMethod
from flsparse.clients.d_psgd import DPSGDLocal
from flsparse.strategies.core.exchange import Node
from flsparse.strategies.core.gossip import Gossip


class DPSGD(Gossip):
    """Whole models to the neighbors, then their average. Parameters are those of :class:`Gossip`."""

    name = "d_psgd"

    def method(self, server_round: int, node: Node | None = None) -> LocalMethod:
        """Ask for the rates."""
        return DPSGDLocal(gamma=self.gamma, decay_rounds=self.decay_rounds)
