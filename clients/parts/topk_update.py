"""Sparse updates with error feedback: send the largest changes, keep the rest for later.

    u_t   = (y_t - x_t) + decay^(t - t') e            t': the node's last round; y_t is trained from x_t
    send  Q(top-k(u_t))                               k = density * N, by magnitude over all weights
    e     <- u_t - Q(top-k(u_t))

The residual ``e`` holds the changes not sent and the coding error (Stich et al. 2018, arXiv 1809.07599; Karimireddy et
al. 2019, arXiv 1901.09847). It is of a model that others have moved on since: a node that is seldom sampled should
forget it, ``decay`` below 1; 0 is no error feedback at all. An update that the server refuses or never gets is not in
``e``: it is lost, as without error feedback.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flsparse.clients.core.part import SPARSIFY, Leaving, Part, register_part
from flsparse.codec import Reference
from flsparse.nets.arrays import Arrays
from flsparse.ranges import within
from flsparse.wire.mirror import towards

_RESIDUAL, _ROUND = "residual", "residual-round"


@register_part
@dataclass(kw_only=True)
class TopKUpdate(Part):
    """Send the largest changes and keep the others.

    Attributes
    ----------
    density : float
        Fraction of the weights (arrays of two or more dimensions) that an update changes, in (0, 1]; biases and norms
        travel whole.
    decay : float
        Factor of the residual for each round since the node's last one, in [0, 1].
    """

    name: ClassVar[str] = "topk_update"
    order: ClassVar[int] = SPARSIFY
    excludes: ClassVar[tuple[str, ...]] = ("mirror",)
    density: float = 0.05
    decay: float = 0.9

    def __post_init__(self) -> None:
        within("(0, 1]", "the fraction of weights that an update changes", density=self.density)
        within("[0, 1]", "the part of the residual that is left after a round", decay=self.decay)

    def outgoing(self, arrays: Arrays, leaving: Leaving, base: Reference) -> Arrays:
        """Return the received model, moved where the change is largest."""
        return towards(self._wanted(arrays, leaving), base.arrays, self.density)

    def coded(self, given: Arrays, decoded: Arrays, leaving: Leaving) -> None:
        """Keep the part of the update that the server does not read."""
        if self.decay == 0:
            return
        wanted = self._wanted(given, leaving)
        names = leaving.floating(wanted)
        leaving.state.put(_RESIDUAL, {name: wanted[name] - decoded[name] for name in names})
        leaving.state.values[_ROUND] = leaving.server_round

    def _wanted(self, arrays: Arrays, leaving: Leaving) -> Arrays:
        """Return the trained arrays with the residual added; pruned weights stay 0."""
        residual = leaving.state.get(_RESIDUAL) if self.decay else None
        if residual is None:
            return arrays
        rounds = leaving.server_round - int(str(leaving.state.values.get(_ROUND, leaving.server_round)))
        left = np.float32(self.decay ** max(1, rounds))
        return {
            name: np.where((array != 0) | (array.ndim < 2), array + left * residual[name], 0).astype(array.dtype)
            if name in residual
            else array
            for name, array in arrays.items()
        }

    def preview_update(self, trained: Arrays, received: Arrays) -> Arrays:
        """Return the received model, moved where the change is largest."""
        return towards(trained, received, self.density)
