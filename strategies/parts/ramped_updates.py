"""Sparse updates while the model is still dense: what is about to be pruned is not worth its bytes.

    y_m <- x + top-2(1 - s) of |y_m - x|          while the model x is denser than that; s is its final sparsity

An update changes at most twice as many weights as the model ends with, the largest changes of all. There is no error
feedback: on the ramp few nodes come twice, and the model has moved on by then
(:mod:`flsparse.clients.parts.topk_update`).
"""

from collections.abc import Mapping

from flsparse.clients.parts.topk_update import TopKUpdate
from flsparse.strategies.core.exchange import Node
from flsparse.strategies.core.part import OnDevice, Round
from flsparse.strategies.parts.sparse import SparseModel
from flsparse.wire.messages import Scalar


class RampedUpdates(OnDevice):
    """The part ``topk_update`` on the ramp, at twice the density that the model ends with.

    Parameters
    ----------
    model : SparseModel
        Its ramp and target.
    """

    def __init__(self, model: SparseModel) -> None:
        self.density = min(1.0, 2 * (1 - model.sparsity))
        super().__init__(TopKUpdate(density=self.density, decay=0.0))
        self.model = model
        self._is_dense = False

    def open(self, round: Round) -> None:
        """Learn whether the model that goes out is denser than the updates may be."""
        self._is_dense = 1 - self.model.asked(round.number, round.of) > self.density

    def asks(self, node: Node | None) -> Mapping[str, Scalar]:
        """Return the part's settings while the model is dense, nothing afterwards."""
        return super().asks(node) if self._is_dense else {}
