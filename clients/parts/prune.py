"""Magnitude pruning of an update on its way out, for an app with its own train function (SparsyFed, Top-K)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from flsparse.clients.core.part import PRUNE, Leaving, Part
from flsparse.codec import Reference
from flsparse.nets.arrays import Arrays
from flsparse.ranges import one_of, within
from flsparse.sparsity import prune_global, prune_lamp, prune_per_layer, regrowth

Scope = Literal["lamp", "global", "layer"]
SCOPES = {"lamp": prune_lamp, "global": prune_global, "layer": prune_per_layer}


def prune(arrays: Mapping[str, np.ndarray], sparsity: float, scope: str, names: list[str]) -> Arrays:
    """Prune to a target sparsity by magnitude.

    Parameters
    ----------
    arrays : Mapping[str, np.ndarray]
        Arrays by name; the others pass unchanged.
    sparsity : float
        Fraction of zeros among the named arrays, in [0, 1).
    scope : {"lamp", "global", "layer"}
        One ranking over all named arrays, of each magnitude's share of its array or of magnitudes, or one for each.
    names : list[str]
        The prunable arrays.
    """
    one_of(SCOPES, scope=scope)
    return SCOPES[scope](arrays, sparsity, names)


@dataclass(kw_only=True)
class Prune(Part):
    """Prune to the sparsity that the server asked for; report regrowth, measured before.

    Attributes
    ----------
    sparsity : float
        Fraction of zeros among the prunable weights, in [0, 1).
    scope : {"lamp", "global", "layer"}
        One ranking over all layers, of each magnitude's share of its layer or of magnitudes, or one for each layer.
    """

    name: ClassVar[str] = "prune"
    order: ClassVar[int] = PRUNE
    sparsity: float = 0.0
    scope: Scope = "global"

    def __post_init__(self) -> None:
        within("[0, 1)", "the fraction of zeros", sparsity=self.sparsity)
        one_of(SCOPES, scope=self.scope)

    def outgoing(self, arrays: Arrays, leaving: Leaving, base: Reference) -> Arrays:
        """Return the arrays, pruned."""
        leaving.metrics["regrowth"] = regrowth(arrays, leaving.received.arrays, leaving.prunable)
        return prune(arrays, self.sparsity, self.scope, leaving.prunable)
