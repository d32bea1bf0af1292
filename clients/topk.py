"""Top-K on the device: plain local SGD, then a magnitude prune of the weights.

    w   <- SGD from the received w
    w_k <- w_k if |w_k| is among the (1 - sparsity) N largest, else 0       over all prunable weights, or per layer

The baseline of the SparsyFed paper (arXiv 2504.05153): SparsyFed with beta = 1 and without activation pruning.
"""

from dataclasses import dataclass
from typing import ClassVar, cast

from flwr.app import ConfigRecord

from flsparse.clients.core.compress import CompressMod
from flsparse.clients.core.fit import Fit
from flsparse.clients.core.method import LocalMethod, register
from flsparse.clients.core.part import Part
from flsparse.clients.parts.prune import Prune, Scope, prune
from flsparse.nets.arrays import Arrays, state_arrays
from flsparse.ranges import within
from flsparse.sparsity import regrowth
from flsparse.wire.messages import Entries


@register
@dataclass(kw_only=True)
class TopKLocal(LocalMethod):
    """Prune the trained weights to the sparsity that the server asked for.

    Attributes
    ----------
    sparsity : float
        Fraction of zeros among the prunable weights after training, in [0, 1).
    scope : {"lamp", "global", "layer"}
        One ranking over all layers, of each magnitude's share of its layer or of magnitudes, or one for each layer.
    """

    name: ClassVar[str] = "topk"
    sparsity: float = 0.95
    scope: Scope = "lamp"

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

    def parts(self, asked: ConfigRecord) -> list[Part]:
        """Add pruning to the sparsity that the server asked for."""
        told = Entries(asked, "a message")
        scope = cast(Scope, told.text("method.scope", "global"))  # Prune refuses unknown names
        return [*super().parts(asked), Prune(sparsity=told.number("method.sparsity", 0.0), scope=scope)]
