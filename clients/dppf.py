"""DPPF on the device (Dimlioglu and Choromanska, UAI 2026, arXiv 2507.20424): pull towards the average, push away.

    x_m <- x_m + (x_A - x_m) (alpha - lambda / ||x_m - x_A||)      eq. 5; norm of the whole parameter vector
         = x_A + (1 - alpha + lambda / ||x_m - x_A||) (x_m - x_A)  as computed: alpha = 1, lambda = 0 is exactly x_A
    x_m <- SGD from x_m                                            tau steps, momentum kept

``x_m`` and the optimizer are the worker's own and never overwritten by the average. The push is skipped where the
worker stands on the average. ``alpha`` is the pull, ``push`` is lambda; with ``relative_push`` lambda is that times
``alpha ||x_A||``, so that the distance the workers converge to, ``lambda / alpha``, is a fraction of ``||x_A||``.

With ``sparsity`` above 0 the layers are SparsyFed's and ``x_m`` is pruned after training. Decision: the momentum of a
pruned weight is dropped with it, so momentum brings nothing back; the pull does, from the average and from it alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import nn

from flsparse.clients.core.fit import Fit
from flsparse.clients.core.method import register
from flsparse.clients.local_sgd import LocalSGDLocal
from flsparse.clients.parts.prune import prune
from flsparse.codec.portable import total
from flsparse.nets.arrays import Arrays, load_parameters, parameter_arrays
from flsparse.ranges import within
from flsparse.sparsity import begin_fit, check_layers, sparsify


def norm(arrays: Mapping[str, np.ndarray]) -> float:
    """Return the l2 norm of all arrays together, in double precision."""
    return math.sqrt(sum(total(a * a) for a in (np.ravel(x).astype(np.float64) for x in arrays.values())))


def distance(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    """Return ``||a - b||`` over the arrays that `a` names, in double precision."""
    return norm({name: array.astype(np.float64) - b[name] for name, array in a.items()})


def pull_push(worker: Arrays, average: Mapping[str, np.ndarray], alpha: float, push: float) -> Arrays:
    """Move a worker by the paper's eq. 5.

    Parameters
    ----------
    worker, average : dict[str, np.ndarray]
        ``x_m`` and ``x_A``: float arrays of the same names and shapes, parameters only.
    alpha : float
        The pull, in (0, 1].
    push : float
        ``lambda``, at least 0, in the units of the weights.

    Returns
    -------
    dict[str, np.ndarray]
        The new ``x_m``, in the worker's dtypes.

    Examples
    --------
    >>> zero, away = {"w": np.zeros(2)}, {"w": np.array([3.0, 4.0])}
    >>> pull_push(away, zero, 0.5, 1.0)["w"]  # at distance 5: half of it is left, and 1 added
    array([2.1, 2.8])
    """
    apart = distance(worker, average)
    keep = 1 - alpha + (push / apart if apart > 0 else 0.0)
    return {
        name: np.asarray(average[name] + keep * (x.astype(np.float64) - average[name]), x.dtype)
        for name, x in worker.items()
    }


@register
@dataclass(kw_only=True)
class DPPFLocal(LocalSGDLocal):
    """A worker that is pulled and pushed.

    Attributes
    ----------
    continues : int
        Round of the last reply that the server has from this worker; 0: none, so it joins from the average.
    alpha : float
        Pull, in (0, 1].
    push : float
        This round's ``lambda``, at least 0, in the units of the weights.
    relative_push : float
        This round's ``lambda / (alpha ||x_A||)``, at least 0; added to ``push``.
    sparsity : float
        Fraction of zeros among the prunable weights after training, in [0, 1); 0 leaves the layers plain.
    beta, activation_pruning, activation_threshold
        Of SparsyFed's layers.
    """

    name: ClassVar[str] = "dppf"
    alpha: float = 0.9
    push: float = 0.0
    relative_push: float = 0.0
    sparsity: float = 0.0
    beta: float | Literal["spectral"] = 1.25
    activation_pruning: bool = True
    activation_threshold: Literal["frozen", "exact"] = "frozen"

    def __post_init__(self) -> None:
        within("(0, 1]", alpha=self.alpha)
        within("[0, inf)", push=self.push, relative_push=self.relative_push)
        within("[0, 1)", "the fraction of zeros", sparsity=self.sparsity)
        check_layers(self.beta, self.activation_threshold)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Replace the layers by Powerpropagation layers, in place, where a sparsity is asked for."""
        if self.sparsity == 0:
            return model
        return sparsify(
            model,
            self.beta,
            activation_pruning=self.activation_pruning,
            activation_threshold=self.activation_threshold,
        )

    def before_fit(self, fit: Fit) -> None:
        """Go on as the worker of the last exchange, pulled and pushed, or join from the average."""
        super().before_fit(fit)
        if self.sparsity:
            begin_fit(fit.model)

    def pull(self, fit: Fit, kept: Arrays) -> None:
        """Pull and push the worker; report its distance before, and the one it converges to."""
        average = parameter_arrays(fit.model)
        worker = {name: kept[name] for name in average}
        push = self.push + self.alpha * self.relative_push * norm(average)
        fit.metrics["width"] = distance(worker, average)
        fit.metrics["width-target"] = push / self.alpha
        load_parameters(fit.model, pull_push(worker, average, self.alpha, push))

    def after_fit(self, fit: Fit) -> Arrays:
        """Prune, where asked to; keep the worker and send it."""
        if self.sparsity:
            self._prune(fit)
        return super().after_fit(fit)

    def kept(self, fit: Fit) -> Arrays:
        """Keep ``x_m``."""
        return parameter_arrays(fit.model)

    def _prune(self, fit: Fit) -> None:
        """Prune the worker by one ranking of all layers, and drop the momentum of pruned weights."""
        names = [name for name, _ in fit.model.named_parameters() if name in set(fit.prunable)]
        pruned = prune(parameter_arrays(fit.model), self.sparsity, "lamp", names)
        load_parameters(fit.model, pruned)
        parameters = dict(fit.model.named_parameters())
        with torch.no_grad():
            for name in names:
                for value in fit.optimizer.state.get(parameters[name], {}).values():
                    if isinstance(value, torch.Tensor) and value.shape == parameters[name].shape:
                        value.mul_(parameters[name] != 0)
