"""Magnitude pruning of an update on its way out, for an app with its own train function (SparsyFed, Top-K)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from flsparse.clients.core.part import PRUNE, Leaving, Part
from flsparse.codec import Reference
from flsparse.nets.arrays import Arrays
from flsparse.ranges import one_of, within
from flsparse.sparsity import prune_global, prune_per_layer, regrowth

Scope = Literal["global", "layer"]


def prune(arrays: Mapping[str, np.ndarray], sparsity: float, scope: str, names: list[str]) -> Arrays:
    """Prune to a target sparsity by magnitude.

    Parameters
    ----------
    arrays : Mapping[str, np.ndarray]
        Arrays by name; the others pass unchanged.
    sparsity : float
        Fraction of zeros among the named arrays, in [0, 1).
    scope : {"global", "layer"}
        One ranking over all named arrays, or one for each.
    names : list[str]
        The prunable arrays.
    """
    one_of(("global", "layer"), scope=scope)
    return (prune_global if scope == "global" else prune_per_layer)(arrays, sparsity, names)


@dataclass(kw_only=True)
class Prune(Part):
    """Prune to the sparsity that the server asked for; report regrowth, measured before.

    Attributes
    ----------
    sparsity : float
        Fraction of zeros among the prunable weights, in [0, 1).
    scope : {"global", "layer"}
        One magnitude ranking over all layers, or one for each.
    """

    name: ClassVar[str] = "prune"
    order: ClassVar[int] = PRUNE
    sparsity: float = 0.0
    scope: Scope = "global"

    def __post_init__(self) -> None:
        within("[0, 1)", "the fraction of zeros", sparsity=self.sparsity)
        one_of(("global", "layer"), scope=self.scope)

    def outgoing(self, arrays: Arrays, leaving: Leaving, base: Reference) -> Arrays:
        """Return the arrays, pruned."""
        leaving.metrics["regrowth"] = regrowth(arrays, leaving.received.arrays, leaving.prunable)
        return prune(arrays, self.sparsity, self.scope, leaving.prunable)
