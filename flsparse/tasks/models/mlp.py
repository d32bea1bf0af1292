"""A multilayer perceptron: the smallest net that learns images."""

import math

from torch import nn


def mlp(input_shape: tuple[int, ...], num_classes: int, *, hidden: int = 64) -> nn.Module:
    """Build one hidden ReLU layer between the flattened image and the classes.

    For Fashion-MNIST 784-64-10: 50,816 weights and 74 biases; for the 8x8 digits 4,736 and 74.

    Parameters
    ----------
    input_shape : tuple of int
        (channels, height, width).
    num_classes : int
    hidden : int
        Units of the hidden layer, at least 1.
    """
    if hidden < 1:
        raise ValueError(f"model.hidden={hidden} must be at least 1")
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(input_shape), hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
    )
