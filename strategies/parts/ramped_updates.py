"""Sparse updates while the model is still dense: what is about to be pruned is not worth its bytes.

    y_m <- x + top-(1 - s) of |y_m - x|           while the sparsity of x is below its target s

An update changes no more weights than the model ends with, the largest changes of all. There is no error feedback: on
the ramp few nodes come twice, and the model has moved on by then (:mod:`flsparse.clients.parts.topk_update`).
"""

from collections.abc import Mapping

from flsparse.clients.parts.topk_update import TopKUpdate
from flsparse.strategies.core.exchange import Node
from flsparse.strategies.core.part import OnDevice, Round
from flsparse.strategies.parts.sparse import SparseModel
from flsparse.wire.messages import Scalar


class RampedUpdates(OnDevice):
    """The part ``topk_update`` on the ramp, at the density that the model ends with.

    Parameters
    ----------
    model : SparseModel
        Its ramp and target.
    """

    def __init__(self, model: SparseModel) -> None:
        super().__init__(TopKUpdate(density=1 - model.sparsity, decay=0.0))
        self.model = model
        self._on_ramp = False

    def open(self, round: Round) -> None:
        """Learn whether the model that goes out is denser than its target."""
        self._on_ramp = self.model.asked(round.number, round.of) < self.model.sparsity

    def asks(self, node: Node | None) -> Mapping[str, Scalar]:
        """Return the part's settings on the ramp, nothing behind it."""
        return super().asks(node) if self._on_ramp else {}
