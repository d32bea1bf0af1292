"""The server optimizer: the aggregate replaces the model, or the model steps along the pseudo-gradient.

    g = mean - x                                            the pseudo-gradient (Reddi et al. 2021, arXiv 2003.00295)
    none:      x <- x + lr g                                lr = 1 replaces x by the mean
    momentum:  m <- 0.9 m + g;                x <- x + lr m                              (FedAvgM, arXiv 1909.06335)
    adam:      m <- .9 m + .1 g;  u <- .99 u + .01 g^2;  x <- x + lr m / (sqrt(u) + 1e-3)        (FedAdam, without bias
                                                            correction, as in the paper)

With a step that does not replace the model, a position that every node pruned fades instead of becoming 0 at once;
``reprune`` cuts it. Batch-norm statistics are no weights: they take the mean.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from flsparse.clients.core.part import weight_names
from flsparse.nets.arrays import Arrays
from flsparse.ranges import one_of, within
from flsparse.strategies.core.part import STEP, Round, RoundPart

Kind = Literal["none", "momentum", "adam"]


@dataclass
class Moments:
    """Moments of the pseudo-gradient.

    Attributes
    ----------
    m, u : dict[str, np.ndarray]
        First and second moment by weight, in its shape and dtype; ``u`` of "adam" alone.
    """

    m: Arrays = field(default_factory=dict)
    u: Arrays = field(default_factory=dict)


class ServerOptimizer(RoundPart):
    """The server's step from the aggregate to the next model, before any other part sees it.

    Parameters
    ----------
    kind : {"momentum", "adam", "none"} (default: "momentum")
        Update rule for the pseudo-gradient.
    lr : float (default: 1.0)
        Server learning rate, above 0.
    """

    name = saved_as = "server_optimizer"
    order = STEP

    def __init__(self, *, kind: Kind = "momentum", lr: float = 1.0) -> None:
        one_of(get_args(Kind), kind=kind)
        within("(0, inf)", lr=lr)
        self.kind, self.lr = kind, lr
        self.memory: Moments = Moments()

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}, lr {self.lr:.3g})"

    def close(self, arrays: Arrays, round: Round) -> Arrays:
        """Return the next model."""
        return self.step(round.model, arrays, weight_names(round.wire.specs))

    def step(self, model: Arrays, mean: Arrays, names: Iterable[str]) -> Arrays:
        """Return the next model, given the present one and the mean.

        Parameters
        ----------
        model, mean : dict[str, np.ndarray]
            Same names and shapes.
        names : Iterable[str]
            Weights that step; the other arrays take the mean.
        """
        return mean | {name: self._stepped(name, model[name], mean[name]) for name in names}

    def _stepped(self, name: str, x: np.ndarray, mean: np.ndarray) -> np.ndarray:
        m, u, g = self.memory.m, self.memory.u, mean - x
        if self.kind == "momentum":
            g = m[name] = np.asarray(0.9 * m.get(name, 0) + g, x.dtype)
        elif self.kind == "adam":
            m[name] = np.asarray(0.9 * m.get(name, 0) + 0.1 * g, x.dtype)
            u[name] = np.asarray(0.99 * u.get(name, 0) + 0.01 * g * g, x.dtype)
            g = m[name] / (np.sqrt(u[name]) + 1e-3)
        return np.asarray(x + self.lr * g, x.dtype)
