"""FLOPs of a training step: of a dense one, and of the sparse one that its densities allow.

A layer's training step is three products of equal cost F: the output, the gradient of the input and the gradient of the
weights. The first two multiply by the weights, the third by the saved activations; with densities ``d_w`` and ``d_a``

    dense  3 F,        sparse  F (2 d_w + d_a)

(one product less where no gradient of the input is wanted, as in the first layer). Hardware that skips zeros could
reach the sparse number. A CPU or GPU that multiplies dense matrices gains no time from it.
"""

import copy
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


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
    forward, total = _count(model, example)
    root = type(model).__name__
    saved = 0.0
    for name, (weights, activations) in densities.items():
        module = f"{root}.{name}" if name else root
        output = forward.get(module, 0)
        backward = total.get(module, 0) - output
        weight_gradient = min(output, backward)
        saved += (output + backward - weight_gradient) * (1.0 - weights) + weight_gradient * (1.0 - activations)
    dense = total.get("Global", 0)
    return Flops(dense / len(example), (dense - saved) / len(example))


def _count(model: nn.Module, example: Tensor) -> tuple[dict[str, int], dict[str, int]]:
    """Return the FLOPs of the forward pass, and of both passes, by module."""
    model = copy.deepcopy(model).train()
    devices = [example.device] if example.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad(), FlopCounterMode(display=False) as counter:
        output = model(example)
        output = output if isinstance(output, Tensor) else output[0]
        forward = _sums(counter)
        output.sum().backward()
        return forward, _sums(counter)


def _sums(counter: FlopCounterMode) -> dict[str, int]:
    return {module: sum(counts.values()) for module, counts in counter.get_flop_counts().items()}
