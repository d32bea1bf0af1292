"""D-PSGD on the device (Lian et al. 2017, arXiv 1705.09056): decentralized SGD without compression.

    x_i = sum_j W_ij x_half_j            over the neighbors and the node itself

The copies are the models as they were sent, at 4 bytes a parameter; gamma is 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from flsparse.clients.core.gossip import GossipLocal, Layout
from flsparse.clients.core.method import register
from flsparse.clients.core.neighborhood import Exchange
from flsparse.codec.residuals.dither import Vector


@register
@dataclass(kw_only=True)
class DPSGDLocal(GossipLocal):
    """Average with the neighbors after the exchange."""

    name: ClassVar[str] = "d_psgd"

    def after_exchange(self, exchange: Exchange, weights: Mapping[int, float], layout: Layout) -> Vector:
        """Take the consensus step; without neighbors' news the model stays."""
        return self.consensus(exchange.x, exchange.own, exchange.neighbors, weights, exchange.round)
