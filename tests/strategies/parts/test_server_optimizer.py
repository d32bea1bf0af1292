"""What the server does with the aggregate, against numbers worked out by hand."""

import numpy as np
import pytest

from flsparse.strategies.parts.server_optimizer import ServerOptimizer
from flsparse.wire.messages import CONTROL

NAMES = ("w", "bn.running_mean", "bn.running_var", f"{CONTROL}w")
MODEL = {name: np.ones(1, np.float32) for name in NAMES} | {"bn.num_batches_tracked": np.ones(1, np.int64)}
MEAN = {name: np.zeros_like(array) for name, array in MODEL.items()}


@pytest.mark.parametrize(
    ("kind", "lr", "expected"),
    [
        ("none", 1.0, [0.0, 0.0]),
        ("none", 2.0, [-1.0, 1.0]),
        ("momentum", 0.5, [0.5, -0.2]),  # m = -1, then -0.9 - 0.5
        ("adam", 0.101, [0.9, 0.9 - 0.101 * 0.18 / (0.0180**0.5 + 1e-3)]),  # m = -0.1, -0.18; u = 0.01, 0.018
    ],
)
def test_weights_step_and_all_else_takes_the_mean(kind, lr, expected):
    optimizer, model = ServerOptimizer(kind=kind, lr=lr), MODEL
    for value in expected:
        model = optimizer.step(model, MEAN)
        np.testing.assert_allclose(model["w"], value, rtol=1e-5)
        for name in model.keys() - {"w"}:  # a variance that overshoots is below 0, and its square root NaN
            np.testing.assert_array_equal(model[name], MEAN[name])
    assert optimizer.memory.m.keys() | optimizer.memory.u.keys() <= {"w"}
