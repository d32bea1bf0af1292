"""Costs of local training on the device."""

import resource
import sys

from torch import Tensor, nn

from flsparse.metering.flops import Flops, training_flops
from flsparse.sparsity import layer_densities

_MOST_KEPT = 256


class TrainingFlops:
    """Training FLOPs of one example, counted once for each set of densities that a task's model takes on.

    Counting runs the model, which costs more than a whole local training of a small one. Nodes that train the same
    broadcast have the same densities, to three digits.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[str, tuple[float, float]], ...], Flops] = {}

    def __call__(self, model: nn.Module, examples: Tensor) -> Flops:
        """Return the FLOPs of one example at the model's present densities.

        Parameters
        ----------
        model : nn.Module
            The task's model, prepared by any method.
        examples : Tensor
            A few inputs as the model takes them, shape (samples, ...), at least two for batch norm.
        """
        densities = {name: (round(w, 3), round(a, 3)) for name, (w, a) in layer_densities(model).items()}
        key = tuple(densities.items())
        if key not in self._known:
            if len(self._known) >= _MOST_KEPT:
                self._known.clear()
            self._known[key] = training_flops(model, examples, densities)
        return self._known[key]


def peak_memory_bytes() -> float:
    """Return the most memory this process has ever held resident, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
