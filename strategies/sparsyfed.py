"""SparsyFed on the server (Guastella et al., ICLR 2025, arXiv 2504.05153).

    send v;  nodes train w = sign(v)|v|^beta and prune v once, globally      (see flsparse.clients.sparsyfed)
    v <- weighted mean of the nodes' v_m;  a server optimizer may act on the pseudo-gradient

What is sent, averaged and checkpointed is v. With plain SGD a zero of v stays a zero, so what nodes send lies inside
what they received, and its positions cost almost nothing. As recommended here it ramps the sparsity up and prunes the
aggregate, and leaves activations alone; the paper does the opposite of all three (``experiment=sparsyfed_paper``).
"""

from collections.abc import Mapping

from flsparse.sparsity import check_layers
from flsparse.strategies.core.courier import Node, Value
from flsparse.strategies.topk import TopK


class SparsyFed(TopK):
    """Top-K with Powerpropagation layers and activation pruning on the device.

    Parameters
    ----------
    beta : float or "spectral" (default: 1.25)
        Exponent of the reparametrization, at least 1; "spectral" derives one per layer at every fit.
    activation_pruning : bool (default: False)
        Prune the activations kept for the weight gradient to the layer's sparsity, as the paper does: it saves the
        device memory and costs accuracy on small networks.
    activation_threshold : {"frozen", "exact"} (default: "frozen")
        Take the pruning threshold from the first batch of a fit, or anew for every batch.
    **topk
        Parameters of :class:`TopK`.
    """

    name = "sparsyfed"

    def __init__(
        self,
        *,
        beta: float | str = 1.25,
        activation_pruning: bool = False,
        activation_threshold: str = "frozen",
        **topk: object,
    ) -> None:
        super().__init__(**topk)  # type: ignore[arg-type]
        check_layers(beta, activation_threshold)
        self.beta, self.activation_pruning = beta, activation_pruning
        self.activation_threshold = activation_threshold

    def method(self, node: Node, server_round: int) -> Mapping[str, Value]:
        """Add the layers' settings to what Top-K asks for."""
        return {
            **super().method(node, server_round),
            "method.beta": self.beta,
            "method.activation_pruning": self.activation_pruning,
            "method.activation_threshold": self.activation_threshold,
        }
