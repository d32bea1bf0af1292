"""MALCOM-PSGD on the device (arXiv 2311.05760): decentralized proximal SGD with quantized residuals.

    x_half  = x_i - eta * g_i(x_i)                                            local_steps times
    q_i     = Q(x_half - xhat_i)                                              sent to the neighbors
    xhat_j += q_j                                                             for j in N(i) and i
    x_i     = soft(x_half + gamma * sum_j W_ij (xhat_j - xhat_i),  eta * mu)  soft(z, t) = sign(z) max(|z| - t, 0)

x_i is sparse, for the local losses plus ``mu ||x||_1``. Biases and norms are not thresholded. With several local steps
between two exchanges the threshold is the sum over them, ``local_steps * eta * mu``, so that mu keeps its meaning.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from flsparse.clients.core.fit import Fit
from flsparse.clients.core.gossip import GossipLocal, Layout
from flsparse.clients.core.method import register
from flsparse.clients.core.neighborhood import Exchange
from flsparse.codec.residuals.dither import Dither, Norm, Scaling, Vector
from flsparse.codec.residuals.residual import Coder, ResidualCodec
from flsparse.ranges import within
from flsparse.sparsity import soft_threshold


@dataclass(kw_only=True)
class QuantizedGossipLocal(GossipLocal):
    """Gossip of quantized residuals: the quantizer and the coder.

    Attributes
    ----------
    levels : int
        L, quantization levels on either side of 0; 0 sends the model whole.
    norm : {"max", "l2", "rms"}
        Scale of the quantization steps; see :class:`flsparse.codec.residuals.dither.Dither`.
    unit : {"layer", "whole"}
        One scale for each array, or one for the whole vector.
    scaling : {"least_squares", "contractive", "unbiased"}
        See :class:`flsparse.codec.residuals.dither.Dither`.
    coder : {"golomb", "rans", "fixed"}
        See :mod:`flsparse.codec.residuals.residual`.
    """

    levels: int = 2
    norm: Norm = "max"
    unit: Literal["layer", "whole"] = "layer"
    scaling: Scaling = "least_squares"
    coder: Coder = "golomb"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.quantizer()  # refuses levels out of range, and a scaling that the norm does not have

    def quantizer(self) -> Dither | None:
        """Return the quantizer; None sends the model whole."""
        return Dither(self.levels, self.norm, self.scaling) if self.levels else None

    def residual_codec(self, sizes: Sequence[int]) -> ResidualCodec:
        """Return the codec of the quantizer's integers."""
        return ResidualCodec(sizes, self.quantizer(), self.unit == "whole", self.coder)


@register
@dataclass(kw_only=True)
class MalcomPSGDLocal(QuantizedGossipLocal):
    """Consensus and proximal step after the exchange.

    Attributes
    ----------
    mu : float
        Weight of the l1 norm, at least 0.
    """

    name: ClassVar[str] = "malcom_psgd"
    mu: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        within("[0, inf)", mu=self.mu)

    def threshold(self, fit: Fit) -> float:
        """Return ``eta_t * mu`` for each local step."""
        return float(fit.optimizer.param_groups[0]["lr"]) * self.mu * fit.step

    def after_exchange(self, exchange: Exchange, weights: Mapping[int, float], layout: Layout) -> Vector:
        """Take the consensus step, then the proximal one."""
        x = self.consensus(exchange.x, exchange.own, exchange.neighbors, weights, exchange.round)
        if exchange.threshold > 0:
            x[layout.prunable] = soft_threshold(x[layout.prunable], exchange.threshold)
        return x
