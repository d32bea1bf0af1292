"""CHOCO-SGD on the server (Koloskova et al. 2019, arXiv 1902.00340): a relay; see :mod:`flsparse.clients.choco_sgd`."""

from flsparse.strategies.malcom_psgd import QuantizedGossip


class ChocoSGD(QuantizedGossip):
    """Gossip with the old copies, then the residual. Parameters are those of :class:`QuantizedGossip`."""

    name = "choco_sgd"
