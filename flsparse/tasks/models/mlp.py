"""A multilayer perceptron: the smallest net that learns images, and the one for vectors."""

import itertools
import math
from collections.abc import Sequence

from torch import nn


def mlp(input_shape: tuple[int, ...], num_classes: int, *, hidden: int | Sequence[int] = 64) -> nn.Module:
    """Build hidden ReLU layers between the flattened input and the outputs.

    For Fashion-MNIST 784-64-10: 50,816 weights and 74 biases; for the 8x8 digits 4,736 and 74.

    Parameters
    ----------
    input_shape : tuple of int
        Any: of a vector (features,), of a series (channels, length), of an image (channels, height, width).
    num_classes : int
        Number of outputs.
    hidden : int or sequence of int
        Units of the hidden layer, or of each, at least 1: a narrow one in the middle makes an autoencoder.
    """
    units = [hidden] if isinstance(hidden, int) else list(hidden)
    if not units or min(units) < 1:
        raise ValueError(f"model.hidden={hidden} must be at least 1, or a list of such numbers")
    sizes = [math.prod(input_shape), *units]
    layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], num_classes))
