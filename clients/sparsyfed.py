"""SparsyFed on the device (Guastella et al., ICLR 2025, arXiv 2504.05153).

    w = sign(v) |v|^beta                    every forward; v is stored and sent                  (beta)
    a_saved = top-(1 - s_l) of a            a layer's input, kept for its gradient               (activation_pruning)
    v <- v - lr * dL/dw * beta |v|^(beta-1) plain SGD: a zero stays a zero
    v <- top-(1 - s) of |v|                 one prune at the end of local training        (sparsity, scope)

``s_l`` is the layer's own sparsity, ``s`` the target. Biases and norms are neither ranked nor pruned.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from flsparse.clients.core.fit import Fit
from flsparse.clients.core.method import register
from flsparse.clients.topk import TopKLocal, TopKMod
from flsparse.sparsity import begin_fit, check_layers, sparsify

Beta = float | Literal["spectral"]
Threshold = Literal["frozen", "exact"]


@register
@dataclass(kw_only=True)
class SparsyFedLocal(TopKLocal):
    """Powerpropagation layers in training, one prune after it.

    Attributes
    ----------
    beta : float or "spectral"
        Exponent of the reparametrization, at least 1; "spectral" derives it per layer at every fit.
    activation_pruning : bool
        Prune the activations that are kept for the weight gradient to the layer's sparsity.
    activation_threshold : {"frozen", "exact"}
        Take the pruning threshold from the first batch of a fit, or from every batch.
    """

    name: ClassVar[str] = "sparsyfed"
    beta: Beta = 1.25
    activation_pruning: bool = False
    activation_threshold: Threshold = "frozen"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(self.beta, self.activation_threshold)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Replace the layers by Powerpropagation layers, in place."""
        return sparsify(
            model,
            self.beta,
            activation_pruning=self.activation_pruning,
            activation_threshold=self.activation_threshold,
        )

    def before_fit(self, fit: Fit) -> None:
        """Take each layer's sparsity from the received weights."""
        begin_fit(fit.model)


class SparsyFedMod(TopKMod):
    """CompressMod that first prunes to the sparsity the server asked for; for an app with its own train function.

    Pair it with ``flsparse.sparsity.sparsify(model)`` in the app, on both sides, to train with Powerpropagation.
    """
