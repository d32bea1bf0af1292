"""MALCOM-PSGD on the server (arXiv 2311.05760): a relay between neighbors, no central model.

The algorithm runs on the nodes (:mod:`flsparse.clients.malcom_psgd`); here are its hyper-parameters::

    gamma  consensus rate        L   levels           mu   weight of the l1 norm
    W      topology              Q   norm, unit, scaling   eta  client.lr
"""

from typing import Any

from flsparse.clients.core.method import LocalMethod
from flsparse.clients.malcom_psgd import MalcomPSGDLocal
from flsparse.codec.residuals.dither import Dither, Norm, Scaling
from flsparse.codec.residuals.residual import CODERS, Coder
from flsparse.ranges import one_of, within
from flsparse.strategies.core.exchange import Node
from flsparse.strategies.core.gossip import Gossip


class QuantizedGossip(Gossip):
    """Gossip of quantized residuals.

    Parameters
    ----------
    levels : int (default: 2)
        L, quantization levels on either side of 0, at most 1024; 0 sends models whole.
    norm : {"max", "l2", "rms"} (default: "max")
        "max" and "l2": the scale of the levels, dithered. With "l2" and long vectors gamma must be small,
        about ``1 / (1 + sqrt(d) / L)``. "rms": steps of twice the root mean square, rounded to the nearest.
    unit : {"layer", "whole"} (default: "layer")
        One scale for each array, or one for the whole vector.
    scaling : {"least_squares", "contractive", "unbiased"} (default: "least_squares")
        Of the quantized residual; the default is a contraction for every draw of the dither.
    coder : {"golomb", "rans", "fixed"} (default: "golomb")
        The paper's source code, our own entropy coder, or fixed-width fields.
    **gossip
        Parameters of :class:`Gossip`.
    """

    name = "quantized_gossip"

    def __init__(
        self,
        *,
        levels: int = 2,
        norm: Norm = "max",
        unit: str = "layer",
        scaling: Scaling = "least_squares",
        coder: Coder = "golomb",
        **gossip: Any,
    ) -> None:
        super().__init__(**gossip)
        if levels:
            Dither(levels, norm, scaling)  # refuses unknown names
        one_of(("layer", "whole"), unit=unit)
        one_of(CODERS, coder=coder)
        self.levels, self.norm, self.unit, self.scaling, self.coder = levels, norm, unit, scaling, coder

    @property
    def quantizer(self) -> dict[str, Any]:
        """Rates, quantizer and coder, by the local method's field."""
        keys = ("gamma", "decay_rounds", "levels", "norm", "unit", "scaling", "coder")
        return {key: getattr(self, key) for key in keys}


class MalcomPSGD(QuantizedGossip):
    """Decentralized proximal SGD with quantized residuals.

    The default quantizer is ours; the paper's is dithered, ``norm="max"``.

    Parameters
    ----------
    mu : float (default: 1e-5)
        Weight of the l1 norm, at least 0.
    norm : {"max", "l2", "rms"} (default: "rms")
        See :class:`QuantizedGossip`.
    **quantized
        Parameters of :class:`QuantizedGossip`.
    """

    name = "malcom_psgd"

    def __init__(self, *, mu: float = 1e-5, norm: Norm = "rms", **quantized: Any) -> None:
        super().__init__(norm=norm, **quantized)
        within("[0, inf)", mu=mu)
        self.mu = mu

    def method(self, server_round: int, node: Node | None = None) -> LocalMethod:
        """Ask for the rates, the quantizer and the weight of the l1 norm."""
        return MalcomPSGDLocal(mu=self.mu, **self.quantizer)
