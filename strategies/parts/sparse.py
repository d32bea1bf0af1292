"""A sparse model: the sparsity asked for by round and node, and the aggregate pruned to it.

s_t  = sparsity asked for in round t: ``sparsity``, or a cubic ramp towards it (ramp)
x    <- top-(1 - s_t) of |x|                                                   (reprune)
"""

from collections.abc import Mapping

import numpy as np

from flsparse.clients.parts.prune import SCOPES, Scope, prune
from flsparse.codec import Layer
from flsparse.nets.arrays import Arrays
from flsparse.ranges import one_of, within
from flsparse.sparsity import layer_sparsity, sparsity_of, sparsity_ramp
from flsparse.strategies.core.exchange import Node, Reply
from flsparse.strategies.core.part import Round, RoundPart


class SparseModel(RoundPart):
    """Ramp of the sparsity, and magnitude pruning of the aggregate.

    Parameters
    ----------
    sparsity : float
        Target fraction of zeros among the prunable weights, in [0, 1).
    ramp : bool
        Approach the target over the first third of the rounds.
    reprune : bool
        Prune the aggregate to the round's sparsity.
    scope : {"lamp", "global", "layer"}
        One ranking over all layers, of each magnitude's share of its layer or of magnitudes, or one for each layer.
    tiers : Mapping[str, float], optional
        Other targets for ranges of partition ids, such as ``{"0-49": 0.9}``, from round 2 on.

    Raises
    ------
    ValueError
        A target or a scope is out of range.
    """

    name = "sparse"
    measures = ("union_sparsity", "target_sparsity", "broadcast_sparsity", "layer_sparsity")

    def __init__(
        self,
        sparsity: float,
        *,
        ramp: bool = True,
        reprune: bool = True,
        scope: Scope = "lamp",
        tiers: Mapping[str, float] | Mapping[int, float] | None = None,
    ) -> None:
        self.tiers = [(*_partition_range(key), target) for key, target in (tiers or {}).items()]
        for target in (sparsity, *(target for *_, target in self.tiers)):
            within("[0, 1)", "the fraction of zeros, 0.95 keeps one in 20", sparsity=target)
        one_of(SCOPES, scope=scope)
        self.sparsity, self.ramp, self.reprune = sparsity, ramp, reprune
        self.scope: Scope = scope
        self._prunable: set[str] = set()

    def target(self, server_round: int, num_rounds: int) -> float:
        """Return the sparsity of a round's aggregate."""
        return self._on_ramp(server_round, num_rounds, self.sparsity)

    def asked(self, server_round: int, num_rounds: int, node: Node | None = None) -> float:
        """Return the sparsity that a node, or any node, is asked for in a round.

        On the ramp, where the aggregate is pruned, it is that of the model that goes out: the mean of the nodes tells
        better than each of them which weights to lose next.
        """
        target = self.sparsity
        if node is not None and server_round > 1:
            target = next((t for low, high, t in self.tiers if low <= node.partition <= high), target)
        return self._on_ramp(server_round - (self.ramp and self.reprune), num_rounds, target)

    def _on_ramp(self, server_round: int, num_rounds: int, target: float) -> float:
        if server_round == 0:
            return 0.0
        return sparsity_ramp(server_round, num_rounds, target) if self.ramp else target

    def given_back(self, mean: Arrays, given: Arrays) -> Arrays:
        """Keep the zeros of the mean: weights that every node pruned stay pruned."""
        return {
            name: np.where(mean[name] != 0, array, 0).astype(array.dtype) if name in self._prunable else array
            for name, array in given.items()
        }

    def accept(self, reply: Reply, layers: list[Layer], round: Round) -> None:
        """Learn which arrays may be pruned: the broadcast that this answers has said so."""
        self._prunable = set(round.wire.prunable)

    def close(self, arrays: Arrays, round: Round) -> Arrays:
        """Prune the aggregate, where asked to; report its sparsity."""
        names, target = round.wire.prunable, self.target(round.number, round.of)
        round.metrics["union_sparsity"] = sparsity_of(arrays, names)
        if self.reprune:
            arrays = prune(arrays, target, self.scope, names)
        round.metrics["target_sparsity"] = target
        round.metrics["broadcast_sparsity"] = sparsity_of(arrays, names)
        round.metrics["layer_sparsity"] = layer_sparsity(arrays, names)
        return arrays

    def preview(self, arrays: Arrays, prunable: list[str], stream: np.random.Generator) -> Arrays:
        """Return the broadcast at the target sparsity."""
        return prune(arrays, self.sparsity, self.scope, prunable)


def _partition_range(key: str | int) -> tuple[int, int]:
    low, _, high = str(key).partition("-")
    if not low.isdecimal() or not (high or low).isdecimal() or int(low) > int(high or low):
        raise ValueError(f"tiers: {key!r} is not a range of partition ids such as '0-49'")
    return int(low), int(high or low)
