"""A bound on the norm of an update: one node alone cannot move the model further than that.

refused where ||y_m - r_m||_2 > max_norm             r_m: the broadcast as node m decoded it
"""

from flsparse.codec import Layer
from flsparse.ranges import within
from flsparse.strategies.core.exchange import Reply
from flsparse.strategies.core.measures import update_norm
from flsparse.strategies.core.part import Round, RoundPart


class NormBound(RoundPart):
    """Refuses updates that are too long; a refusal is counted as a rejected payload.

    Parameters
    ----------
    max_norm : float (default: 10.0)
        Largest l2 norm of an update, above 0, in the units of the weights; above that of ``clip`` by the rounding of
        the codec.
    """

    name = "norm_bound"

    def __init__(self, *, max_norm: float = 10.0) -> None:
        within("(0, inf)", "a norm in the units of the weights", max_norm=max_norm)
        self.max_norm = max_norm

    def fault(self, reply: Reply, layers: list[Layer], round: Round) -> str | None:
        """Return why an update is refused: its norm."""
        norm = update_norm(reply, layers)
        return f"its update has norm {norm:.3g}, above max_norm={self.max_norm:g}" if norm > self.max_norm else None
