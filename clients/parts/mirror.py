"""The mirror of a node, against which its replies are coded (:mod:`flsparse.wire.mirror`)."""

from dataclasses import dataclass
from typing import ClassVar

from flsparse.clients.core.part import MIRROR as LAST
from flsparse.clients.core.part import Leaving, Part, register_part
from flsparse.codec import Reference
from flsparse.nets.arrays import Arrays
from flsparse.ranges import within
from flsparse.wire.messages import MIRROR
from flsparse.wire.mirror import reference_with, towards


@register_part
@dataclass(kw_only=True)
class Mirror(Part):
    """Code replies against the mirror, and move it where that matters most.

    Attributes
    ----------
    density : float
        Fraction of the weights that a reply changes, in (0, 1].
    """

    name: ClassVar[str] = "mirror"
    order: ClassVar[int] = LAST
    needs_server: ClassVar[bool] = True
    density: float = 1.0

    def __post_init__(self) -> None:
        within("(0, 1]", "the fraction of weights that a reply changes", density=self.density)

    def base(self, leaving: Leaving, base: Reference) -> Reference:
        """Return the mirror; before the first reply it is the broadcast."""
        mirror = leaving.state.get(MIRROR)
        return base if mirror is None else reference_with(mirror, leaving.received)

    def outgoing(self, arrays: Arrays, leaving: Leaving, base: Reference) -> Arrays:
        """Return the mirror moved towards the worker."""
        return towards(arrays, base.arrays, self.density)

    def coded(self, given: Arrays, decoded: Arrays, leaving: Leaving) -> None:
        """Keep the new mirror, as the server reads it."""
        leaving.state.put(MIRROR, decoded)

    def preview_update(self, trained: Arrays, received: Arrays) -> Arrays:
        """Return the broadcast moved towards the trained model."""
        return towards(trained, received, self.density)
