"""FLOPs of a training step: of a dense one, and of the sparse one that its densities allow.

A layer's training step is three products of equal cost F: the output, the gradient of the input and the gradient of the
weights. The first two multiply by the weights, the third by the saved activations; with densities ``d_w`` and ``d_a``

    dense  3 F,        sparse  F (2 d_w + d_a)

(one product less where no gradient of the input is wanted, as in the first layer). Hardware that skips zeros could
reach the sparse number. A CPU or GPU that multiplies dense matrices gains no time from it.
"""

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker


class Flops(NamedTuple):
    """Floating-point operations per example; a multiplication and an addition count as two.

    Attributes
    ----------
    dense : float
        Forward and backward pass of the dense model.
    sparse : float
        FLOPs that the densities allow; a module without a density counts in full.
    """

    dense: float
    sparse: float


_PRODUCTS = 3  # of a layer in training: its output, the gradient of its input and that of its weights


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of a dense training step, which do not hang on the weights: counted once, good for all densities.

    Parameters
    ----------
    examples : int
        In the batch that was counted.
    dense : int
        Of both passes.
    products : Mapping[str, tuple[int, int]]
        By module name: FLOPs of the output, and of both passes.
    """

    examples: int
    dense: int
    products: Mapping[str, tuple[int, int]]

    def at(self, densities: Mapping[str, tuple[float, float]]) -> Flops:
        """Return the FLOPs per example at densities ``(d_w, d_a)`` by module name (see :func:`training_flops`)."""
        saved = whole = 0.0
        for name, (weights, activations) in densities.items():
            output, both = self.products.get(name, (0, 0))
            both = min(both, _PRODUCTS * output)  # one that runs many times over is credited with its neighbors', too
            weight_gradient = min(output, both - output)
            saved += (both - weight_gradient) * (1.0 - weights) + weight_gradient * (1.0 - activations)
            whole += both
        saved *= min(1.0, self.dense / max(1.0, whole))
        return Flops(self.dense / self.examples, (self.dense - saved) / self.examples)


def training_flops(model: nn.Module, example: Tensor, densities: Mapping[str, tuple[float, float]]) -> Flops:
    """Count the training FLOPs of one example with `torch.utils.flop_counter`.

    Fused recurrent operations (LSTM, GRU) are not known to that counter and count as nothing.

    Parameters
    ----------
    model : Module
        Any module of one input; a copy of it is run, in training mode.
    example : Tensor
        A batch, shape (examples, ...); the count is divided by its size.
    densities : Mapping[str, tuple[float, float]]
        ``(d_w, d_a)`` in [0, 1] by module name: density of the weights, and of the activations saved for their
        gradient. `flsparse.sparsity.layer_densities` finds them.

    Examples
    --------
    >>> training_flops(nn.Linear(10, 4), torch.ones(2, 10, requires_grad=True), {"": (0.1, 0.5)})
    Flops(dense=240.0, sparse=56.0)
    """
    return step_flops(model, example).at(densities)


def step_flops(model: nn.Module, example: Tensor) -> StepFlops:
    """Count the FLOPs of a dense training step, for a batch of shape (examples, ...); a copy of the model is run."""
    model = copy.deepcopy(model).train()
    devices = [example.device] if example.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        torch.enable_grad(),
        ModuleTracker() as tracker,
        _Counting(tracker) as counting,
    ):
        output = model(example)
        output = output if isinstance(output, Tensor) else output[0]
        forward = counting.flops.copy()
        output.sum().backward()
    root = type(model).__name__
    names = {f"{root}.{name}" if name else root: name for name, _ in model.named_modules(remove_duplicate=False)}
    products = {name: (forward[module], counting.flops[module]) for module, name in names.items()}
    return StepFlops(len(example), counting.flops["Global"], products)


class _Counting(TorchDispatchMode):
    """Adds the FLOPs of every operation to the modules that it runs in, by torch's own formulas."""

    def __init__(self, tracker: ModuleTracker) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tracker = tracker
        self.flops: Counter[str] = Counter()


def _count(self: _Counting, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
    kwargs = kwargs or {}
    if func._overloadpacket not in flop_registry:
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
    out = func(*args, **kwargs)
    if formula := flop_registry.get(func._overloadpacket):
        for module in set(self.tracker.parents):
            self.flops[module] += formula(*args, **kwargs, out_val=out)
    return out


# Set behind the class: a method inside it is wrapped for torch's compiler, whose import takes longer than the count, as
# with torch.utils.flop_counter.FlopCounterMode.
_Counting.__torch_dispatch__ = _count  # type: ignore[method-assign, assignment]
