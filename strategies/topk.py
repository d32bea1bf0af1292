"""Top-K on the server: nodes send the largest weights, the server averages them.

    s_t  = sparsity of round t: ``sparsity``, or a cubic ramp towards it            (ramp)
    x    <- weighted mean of the y_m, pruned to s_t, or to s_(t-1) of x itself      (ramp and reprune)
    x    <- top-(1 - s_t) of |x|                                                    (reprune)

The baseline of the SparsyFed paper (arXiv 2504.05153), which neither ramps nor prunes the aggregate.
"""

from collections.abc import Mapping
from logging import INFO
from typing import Any

from flsparse._flwr import log
from flsparse.clients.core.method import LocalMethod
from flsparse.clients.parts.prune import Scope
from flsparse.clients.parts.topk_update import TopKUpdate
from flsparse.clients.topk import TopKLocal
from flsparse.codec import Codec
from flsparse.strategies.core.exchange import Node
from flsparse.strategies.fedavg import FedAvg
from flsparse.strategies.parts.masks import Masks
from flsparse.strategies.parts.ramped_updates import RampedUpdates
from flsparse.strategies.parts.sparse import SparseModel


class TopK(FedAvg):
    """FedAvg of magnitude-pruned weights.

    Parameters
    ----------
    sparsity : float (default: 0.95)
        Target fraction of zeros among the prunable weights, in [0, 1).
    ramp : bool (default: True)
        Approach the target over the first third of the rounds; off in the paper.
    reprune : bool (default: True)
        Prune the aggregate to the round's sparsity before it is broadcast; off in the paper. With a ramp, too, nodes
        prune no further than the model they received, and their updates are sparse
        (:mod:`flsparse.strategies.parts.ramped_updates`).
    scope : {"lamp", "global", "layer"} (default: "lamp")
        One ranking over all layers, of each magnitude's share of its layer (:mod:`flsparse.sparsity.lamp`) or of
        magnitudes (as in the paper), or one for each layer.
    tiers : Mapping[str, float], optional
        Other targets for ranges of partition ids, such as ``{"0-49": 0.9, "50-99": 0.98}``, for devices of unequal
        strength; from round 2 on, as in the authors' code.
    **fedavg
        Parameters of :class:`FedAvg`. With ``values="int4"`` and the default ``downlink_values="int8"`` a broadcast is
        in int8 where it is a whole model, and in int4 where it is a difference; any other value codes both alike.
    """

    name = "topk"

    def __init__(
        self,
        *,
        sparsity: float = 0.95,
        ramp: bool = True,
        reprune: bool = True,
        scope: Scope = "lamp",
        tiers: Mapping[str, float] | Mapping[int, float] | None = None,
        **fedavg: Any,
    ) -> None:
        super().__init__(**fedavg)
        if (self.wire.values, self.wire.downlink.codec.values) == ("int4", "int8"):
            self.wire.downlink.delta_codec = Codec("int4")  # as nodes code theirs: the rounding is given back
        self.model = SparseModel(sparsity, ramp=ramp, reprune=reprune, scope=scope, tiers=tiers)
        self.parts.add(Masks(), self.model)
        if ramp and reprune and all(part.name != TopKUpdate.name for part in self.parts):
            self.parts.add(RampedUpdates(self.model))

    def round_sparsity(self, server_round: int, node: Node | None = None) -> float:
        """Return the sparsity that a node, or any node, is asked for in a round."""
        return self.model.asked(server_round, self._num_rounds, node)

    def method(self, server_round: int, node: Node | None = None) -> LocalMethod:
        """Ask for the round's sparsity."""
        return TopKLocal(sparsity=self.round_sparsity(server_round, node), scope=self.model.scope)

    def summary(self) -> None:
        """Log the configuration."""
        model = self.model
        log(INFO, "\t├──> Sparsity: %.4g, %s%s", model.sparsity, model.scope, ", ramped" if model.ramp else "")
        super().summary()
