"""Top-K on the device: plain local SGD, then a magnitude prune of the weights.

    w   <- SGD from the received w
    w_k <- w_k if |w_k| is among the (1 - sparsity) N largest, else 0       over all prunable weights, or per layer

The baseline of the SparsyFed paper (arXiv 2504.05153): SparsyFed with beta = 1 and without activation pruning.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from flwr.app import ConfigRecord

from flsparse.clients.core.compress import CompressMod
from flsparse.clients.core.method import Fit, LocalMethod, register
from flsparse.nets.arrays import Arrays, state_arrays
from flsparse.ranges import within
from flsparse.sparsity import prune_global, prune_per_layer, regrowth


def prune(arrays: Mapping[str, np.ndarray], sparsity: float, scope: str, names: list[str]) -> Arrays:
    """Prune to a target sparsity by magnitude.

    Parameters
    ----------
    arrays : Mapping[str, np.ndarray]
        Arrays by name; those not named pass unchanged.
    sparsity : float
        Fraction of zeros among the named arrays, in [0, 1).
    scope : {"global", "layer"}
        One ranking over all named arrays, or one for each.
    names : list[str]
        The prunable arrays.
    """
    if scope not in ("global", "layer"):
        raise ValueError(f"scope {scope!r} is neither 'global' nor 'layer'")
    return (prune_global if scope == "global" else prune_per_layer)(arrays, sparsity, names)


Scope = Literal["global", "layer"]


@register
@dataclass(kw_only=True)
class TopKLocal(LocalMethod):
    """Prune what was trained to the sparsity that the server asked for.

    Attributes
    ----------
    sparsity : float
        Fraction of zeros among the prunable weights after training, in [0, 1).
    scope : {"global", "layer"}
        One magnitude ranking over all layers, or one for each.
    """

    name: ClassVar[str] = "topk"
    sparsity: float = 0.95
    scope: Scope = "global"

    def __post_init__(self) -> None:
        within("[0, 1)", "the fraction of zeros", sparsity=self.sparsity)

    def after_fit(self, fit: Fit) -> Arrays:
        """Prune; report regrowth, measured before the prune as the paper does."""
        trained = state_arrays(fit.model)
        fit.metrics["regrowth"] = regrowth(trained, fit.received, fit.prunable)
        return prune(trained, self.sparsity, self.scope, fit.prunable)


class TopKMod(CompressMod):
    """CompressMod that first prunes to the sparsity the server asked for; for an app with its own train function.

    Parameters are those of :class:`CompressMod`. Layers are not touched: see ``flsparse.sparsity.sparsify`` for
    Powerpropagation in a model of one's own.
    """

    def outgoing(
        self, trained: Arrays, received: Mapping[str, np.ndarray], prunable: list[str], asked: ConfigRecord
    ) -> tuple[Arrays, dict[str, float]]:
        """Prune; report regrowth."""
        metrics = {"regrowth": regrowth(trained, received, prunable)}
        sparsity = asked.get("method.sparsity", 0.0)
        scope = asked.get("method.scope", "global")
        assert isinstance(sparsity, int | float)
        return prune(trained, float(sparsity), str(scope), prunable), metrics
