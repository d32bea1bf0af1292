"""Top-K on the server: nodes send the largest weights, the server averages them.

    s_t  = sparsity asked for in round t: ``sparsity``, or a cubic ramp towards it (ramp)
    x    <- weighted mean of the pruned y_m; its support is the union of theirs
    x    <- top-(1 - s_t) of |x|                                                    (reprune)

The baseline of the SparsyFed paper (arXiv 2504.05153), which neither ramps nor prunes the aggregate.
"""

from collections.abc import Mapping
from logging import INFO

import numpy as np

from flsparse._flwr import log
from flsparse.clients.core.method import LocalMethod
from flsparse.clients.topk import Scope, TopKLocal, prune
from flsparse.codec import Codec, Layer, Reference
from flsparse.ranges import one_of, within
from flsparse.sparsity import layer_sparsity, sparsity_of, sparsity_ramp
from flsparse.strategies.core.exchange import Node
from flsparse.strategies.core.server_optimizer import Arrays
from flsparse.strategies.fedavg import FedAvg, Weighted
from flsparse.strategies.parts.masks import MaskStatistics


class TopK(FedAvg):
    """FedAvg of magnitude-pruned weights.

    Parameters
    ----------
    sparsity : float (default: 0.95)
        Target fraction of zeros among the prunable weights, in [0, 1).
    ramp : bool (default: True)
        Approach the target over the first third of the rounds; off in the paper.
    reprune : bool (default: True)
        Prune the aggregate to the round's sparsity before it is broadcast; off in the paper.
    scope : {"global", "layer"} (default: "global")
        One magnitude ranking over all layers, or one for each.
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
        scope: Scope = "global",
        tiers: Mapping[str, float] | Mapping[int, float] | None = None,
        **fedavg: object,
    ) -> None:
        super().__init__(**fedavg)  # type: ignore[arg-type]
        self._tiers = [(*_partition_range(key), target) for key, target in (tiers or {}).items()]
        for target in (sparsity, *(target for *_, target in self._tiers)):
            within("[0, 1)", "the fraction of zeros, 0.95 keeps one weight in 20", sparsity=target)
        one_of(("global", "layer"), scope=scope)
        if (self.wire.values, self.wire.downlink.codec.values) == ("int4", "int8"):
            self.wire.downlink.delta_codec = Codec("int4")  # as nodes code theirs: the rounding is given back
        self.sparsity, self.ramp, self.reprune, self.scope = sparsity, ramp, reprune, scope

    def round_sparsity(self, server_round: int, node: Node | None = None) -> float:
        """Return the sparsity asked for in a round, of one node or of the aggregate."""
        target = self.sparsity
        if node is not None and server_round > 1:
            target = next((t for low, high, t in self._tiers if low <= node.partition <= high), target)
        return sparsity_ramp(server_round, self._num_rounds, target) if self.ramp else target

    def method(self, server_round: int, node: Node | None = None) -> LocalMethod:
        """Ask for the round's sparsity."""
        return TopKLocal(sparsity=self.round_sparsity(server_round, node), scope=self.scope)

    def summary(self) -> None:
        """Log the configuration."""
        log(INFO, "\t├──> Sparsity: %.4g, %s%s", self.sparsity, self.scope, ", ramped" if self.ramp else "")
        super().summary()

    def before_aggregation(self) -> None:
        """Start the round's mask statistics."""
        self._masks = MaskStatistics(self.wire.specs, self.wire.prunable)

    def observe(self, layers: list[Layer], reference: Reference) -> None:
        """Count the node's supports."""
        self._masks.add(layers, reference)

    def _give_back_rounding(self, mean: Arrays, references: dict[str, Weighted]) -> Arrays:
        """Give it back where some node kept the position: what all of them pruned stays 0."""
        given = super()._give_back_rounding(mean, references)
        pruned = {
            name: np.where(mean[name] != 0, given[name], 0).astype(mean[name].dtype) for name in self.wire.prunable
        }
        return given | pruned

    def after_aggregation(self, arrays: Arrays, server_round: int) -> Arrays:
        """Prune the aggregate, where asked to; report what the masks look like."""
        self.round_metrics |= self._masks.summary() | {"union_sparsity": sparsity_of(arrays, self.wire.prunable)}
        if self.reprune:
            arrays = prune(arrays, self.round_sparsity(server_round), self.scope, self.wire.prunable)
        self.round_metrics |= {
            "target_sparsity": self.round_sparsity(server_round),
            "broadcast_sparsity": sparsity_of(arrays, self.wire.prunable),
            "layer_sparsity": layer_sparsity(arrays, self.wire.prunable),
        }
        return arrays


def _partition_range(key: str | int) -> tuple[int, int]:
    low, _, high = str(key).partition("-")
    if not low.isdecimal() or not (high or low).isdecimal() or int(low) > int(high or low):
        raise ValueError(f"tiers: {key!r} is not a range of partition ids such as '0-49'")
    return int(low), int(high or low)
