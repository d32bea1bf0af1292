"""Readings of a machine, worn or not, and the network that tells."""

from pathlib import Path

import numpy as np
from torch import nn


def load(root=None, samples=1200):
    """Read a device's ROOT/readings.csv; without a root, make readings up."""
    if root:
        table = np.loadtxt(Path(root) / "readings.csv", delimiter=",", skiprows=1)
        readings, worn = table[:, :-1], table[:, -1]
    else:
        stream = np.random.default_rng(0)
        readings = stream.normal(size=(samples, 8))
        worn = readings[:, 0] * readings[:, 1] + readings[:, 2] > 0
    return {"inputs": readings.astype(np.float32), "targets": worn.astype(int), "classes": ["good", "worn"]}


class Net(nn.Sequential):
    """Two hidden layers."""

    def __init__(self, input_shape, num_classes, width=64):
        first, second = nn.Linear(input_shape[0], width), nn.Linear(width, width)
        super().__init__(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(width, num_classes))
