"""SparsyFed on the server (Guastella et al., ICLR 2025, arXiv 2504.05153).

    send v;  nodes train w = sign(v)|v|^beta and prune v once                (see flsparse.clients.sparsyfed)
    v <- v + lr (weighted mean of the nodes' v_m - v)                        (server_lr; or a server optimizer)

Nodes and server send, average and checkpoint v. With plain SGD a zero of v stays a zero, so an update lies inside
its broadcast's support, and its positions cost almost nothing. As recommended here it ramps the sparsity up, prunes
the aggregate instead of each node's model, ranks by LAMP, takes steps of 1.5 times the mean change, and leaves
activations alone; the paper does none of this (``experiment=sparsyfed_paper``).
"""

from collections.abc import Sequence
from typing import Any

from flsparse.clients.core.method import LocalMethod
from flsparse.clients.sparsyfed import Beta, SparsyFedLocal, Threshold
from flsparse.sparsity import check_layers
from flsparse.strategies.core.exchange import Node
from flsparse.strategies.parts.server_optimizer import ServerOptimizer
from flsparse.strategies.topk import TopK


def _has_optimizer(server_optimizer: str = "none", parts: Sequence[Any] = (), **_: Any) -> bool:
    return server_optimizer != "none" or any(part.name == ServerOptimizer.name for part in parts)


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
        Take the pruning threshold from the first batch of a fit, or from every batch.
    ramp, reprune : bool (default: True, True)
        Those of :class:`TopK`.
    server_lr : float, optional
        Server learning rate, above 0. None: 1.5 where the server alone prunes (on a ramp, without tiers) and has no
        optimizer; else 1.
    **topk
        Parameters of :class:`TopK`.
    """

    name = "sparsyfed"

    def __init__(
        self,
        *,
        beta: Beta = 1.25,
        activation_pruning: bool = False,
        activation_threshold: Threshold = "frozen",
        ramp: bool = True,
        reprune: bool = True,
        server_lr: float | None = None,
        **topk: Any,
    ) -> None:
        if server_lr is None:
            server_prunes = ramp and reprune and not topk.get("tiers")
            server_lr = 1.5 if server_prunes and not _has_optimizer(**topk) else 1.0
        super().__init__(ramp=ramp, reprune=reprune, server_lr=server_lr, **topk)
        check_layers(beta, activation_threshold)
        self.beta: Beta = beta
        self.activation_pruning, self.activation_threshold = activation_pruning, activation_threshold

    def method(self, server_round: int, node: Node | None = None) -> LocalMethod:
        """Ask for the round's sparsity and the layers' settings."""
        return SparsyFedLocal(
            sparsity=self.round_sparsity(server_round, node),
            scope=self.model.scope,
            beta=self.beta,
            activation_pruning=self.activation_pruning,
            activation_threshold=self.activation_threshold,
        )
