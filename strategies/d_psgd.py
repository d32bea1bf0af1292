"""D-PSGD on the server (Lian et al. 2017, arXiv 1705.09056): a relay; see :mod:`flsparse.clients.d_psgd`."""

from flsparse.strategies.core.gossip import Gossip


class DPSGD(Gossip):
    """Whole models to the neighbors, then their average. Parameters are those of :class:`Gossip`."""

    name = "d_psgd"
