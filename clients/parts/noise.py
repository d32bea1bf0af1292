"""Local noise: every node adds Gaussian noise to its update, whatever the method.

    y <- y + N(0, std^2)             where y is not 0, over all floating arrays but batch-norm statistics

Noise alone bounds nothing: put ``clip`` before it. Pruned weights stay 0, so a sparse update stays sparse; which
weights these are is not hidden. The noise is drawn from the operating system's randomness: a seed would let the server
take it out again. Runs with it are not repeatable.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flsparse.clients.core.part import NOISE, Leaving, Part, register_part
from flsparse.codec import Reference
from flsparse.nets.arrays import Arrays
from flsparse.ranges import within


@register_part
@dataclass(kw_only=True)
class Noise(Part):
    """Add Gaussian noise to an update.

    Attributes
    ----------
    std : float
        Standard deviation, above 0, in the units of the weights.
    """

    name: ClassVar[str] = "noise"
    order: ClassVar[int] = NOISE
    excludes: ClassVar[tuple[str, ...]] = ("control_variates",)  # these would leave without noise
    std: float = 0.01

    def __post_init__(self) -> None:
        within("(0, inf)", "a standard deviation in the units of the weights", std=self.std)

    def outgoing(self, arrays: Arrays, leaving: Leaving, base: Reference) -> Arrays:
        """Return the arrays with noise."""
        generator = np.random.default_rng()
        noisy = {
            name: np.where(
                arrays[name] != 0, arrays[name] + generator.normal(0.0, self.std, arrays[name].shape), 0
            ).astype(arrays[name].dtype)
            for name in leaving.floating(arrays)
        }
        return {**arrays, **noisy}
