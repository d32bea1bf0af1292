"""CHOCO-SGD on the device (Koloskova et al. 2019, arXiv 1902.00340): the comparison of the MALCOM paper.

    x       = x_half + gamma * sum_j W_ij (xhat_j - xhat_i)       with the copies of the round before
    q_i     = Q(x - xhat_i);  xhat_j += q_j                       on every holder

It differs from MALCOM-PSGD in the order, consensus before the exchange, and in having no proximal step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from flsparse.clients.core.method import register
from flsparse.clients.core.neighborhood import Neighborhood
from flsparse.clients.malcom_psgd import QuantizedGossipLocal
from flsparse.codec.residuals.dither import Vector


@register
@dataclass(kw_only=True)
class ChocoSGDLocal(QuantizedGossipLocal):
    """Consensus with the old copies, then the residual."""

    name: ClassVar[str] = "choco_sgd"

    def before_send(self, x: Vector, hood: Neighborhood, weights: Mapping[int, float], server_round: int) -> Vector:
        """Mix with the neighbors that took part in the last round, if this node did."""
        live = {j: hood.copies[j] for j in hood.live}
        return self.consensus(x, hood.copies[hood.node], live, weights, server_round)
