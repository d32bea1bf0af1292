"""Clipping of an update: its l2 norm is bounded before it leaves the device.

u <- u min(1, max_norm / ||u||_2)             u = y - x, over all floating arrays but batch-norm statistics

A pruned weight is a change by ``-x``, clipped like any other: it comes back as a part of ``x``, so the update is denser
than the method asked for. Parts and coding after the clip (noise, residual, rounding) may exceed the norm.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flsparse.clients.core.part import CLIP, Leaving, Part, register_part
from flsparse.codec import Reference
from flsparse.codec.portable import total
from flsparse.nets.arrays import Arrays
from flsparse.ranges import within


@register_part
@dataclass(kw_only=True)
class Clip(Part):
    """Bound the norm of an update.

    Attributes
    ----------
    max_norm : float
        Largest l2 norm of the update, above 0, in the units of the weights.
    """

    name: ClassVar[str] = "clip"
    order: ClassVar[int] = CLIP
    max_norm: float = 1.0

    def __post_init__(self) -> None:
        within("(0, inf)", "a norm in the units of the weights", max_norm=self.max_norm)

    def outgoing(self, arrays: Arrays, leaving: Leaving, base: Reference) -> Arrays:
        """Return the received model moved by the clipped update; report its norm before."""
        received, names = leaving.received.arrays, leaving.floating(arrays)
        changes = {name: arrays[name].astype(np.float64) - received[name] for name in names}
        norm = math.sqrt(sum(total(np.ravel(change * change)) for change in changes.values()))
        leaving.metrics["update-norm"] = norm
        if norm <= self.max_norm:
            return arrays
        factor = self.max_norm / norm
        moved = {name: received[name] + factor * change for name, change in changes.items()}
        return {**arrays, **{name: array.astype(arrays[name].dtype) for name, array in moved.items()}}
