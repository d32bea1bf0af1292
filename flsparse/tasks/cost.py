"""Costs of local training on the device."""

import resource
import sys

from torch import Tensor, nn

from flsparse.metering.flops import Flops, StepFlops, step_flops
from flsparse.sparsity import layer_densities


class TrainingFlops:
    """Training FLOPs of one example, counted once for each form that a task's model takes on.

    Counting runs the model, which costs more than a whole local training of a small one.
    """

    def __init__(self) -> None:
        self._known: dict[object, StepFlops] = {}

    def __call__(self, model: nn.Module, examples: Tensor) -> Flops:
        """Return the FLOPs of one example at the model's present densities.

        Parameters
        ----------
        model : nn.Module
            The task's model, prepared by any method.
        examples : Tensor
            A few inputs as the model takes them, shape (samples, ...), at least two for batch norm.
        """
        modules = tuple((name, type(module)) for name, module in model.named_modules())
        parameters = tuple((name, p.shape, p.requires_grad) for name, p in model.named_parameters())
        form = modules, parameters, examples.shape
        if form not in self._known:
            self._known[form] = step_flops(model, examples)
        return self._known[form].at(layer_densities(model))


def peak_memory_bytes() -> float:
    """Return the most memory this process has ever held resident, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
