"""Server update: the aggregate replaces the model, or the model steps along the pseudo-gradient.

    g = mean - x                                            the pseudo-gradient (Reddi et al. 2021, arXiv 2003.00295)
    none:      x <- x + lr g                                lr = 1 replaces x by the mean
    momentum:  m <- 0.9 m + g;                x <- x + lr m                              (FedAvgM, arXiv 1909.06335)
    adam:      m <- .9 m + .1 g;  u <- .99 u + .01 g^2;  x <- x + lr m / (sqrt(u) + 1e-3)        (FedAdam, without bias
                                                            correction, as in the paper)

With a step that does not replace the model, a position that every node pruned fades instead of becoming 0 at once;
``reprune`` cuts it. Batch-norm statistics are no weights: they take the mean.
"""

from collections.abc import Mapping

import numpy as np

from flsparse.nets.batch_norm import statistics_names
from flsparse.ranges import one_of, within
from flsparse.wire.messages import CONTROL

Arrays = dict[str, np.ndarray]
KINDS = ("none", "momentum", "adam")


class ServerOptimizer:
    """Steps the global model towards the aggregate.

    Parameters
    ----------
    kind : {"none", "momentum", "adam"}
        Update rule.
    lr : float
        Server learning rate, above 0; 1 with kind "none" is plain averaging.
    """

    def __init__(self, kind: str = "none", lr: float = 1.0) -> None:
        one_of(KINDS, server_optimizer=kind)
        within("(0, inf)", server_lr=lr)
        self.kind, self.lr = kind, lr
        self._m: Arrays = {}
        self._u: Arrays = {}

    def step(self, model: Mapping[str, np.ndarray], mean: Mapping[str, np.ndarray]) -> Arrays:
        """Return the next model.

        Parameters
        ----------
        model, mean : Mapping[str, np.ndarray]
            The current model and the aggregate, same names and shapes. Arrays that are not floating, batch-norm
            statistics and the arrays of parts take the mean.
        """
        if self.kind == "none" and self.lr == 1:
            return {name: mean[name] for name in model}
        statistics = set(statistics_names(model))
        return {
            name: mean[name]
            if x.dtype.kind != "f" or name in statistics or name.startswith(CONTROL)
            else self._step(name, x, mean[name])
            for name, x in model.items()
        }

    def _step(self, name: str, x: np.ndarray, mean: np.ndarray) -> np.ndarray:
        g = mean - x
        if self.kind == "momentum":
            g = self._m[name] = np.asarray(0.9 * self._m.get(name, 0) + g, x.dtype)
        elif self.kind == "adam":
            m = self._m[name] = np.asarray(0.9 * self._m.get(name, 0) + 0.1 * g, x.dtype)
            u = self._u[name] = np.asarray(0.99 * self._u.get(name, 0) + 0.01 * g * g, x.dtype)
            g = m / (np.sqrt(u) + 1e-3)
        return np.asarray(x + self.lr * g, x.dtype)

    def state_dict(self) -> Arrays:
        """Return the moments, by array name."""
        return {f"{k}/{n}": a for k, moments in (("m", self._m), ("u", self._u)) for n, a in moments.items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore the state of :meth:`state_dict`."""
        self._m = {key[2:]: array for key, array in state.items() if key.startswith("m/")}
        self._u = {key[2:]: array for key, array in state.items() if key.startswith("u/")}
