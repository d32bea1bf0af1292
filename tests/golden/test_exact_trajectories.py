"""Three rounds of every strategy whose nodes train portably: bytes and models are those committed, bit for bit.

Real training goes through convolutions and matrix products, which every processor rounds differently
(``test_trajectories.py``). Here a node takes elementwise steps towards a model of its own, with +, - and x alone; all
the rest is the product: hooks, pruning, codec, references, mirrors, control variates, gossip copies, aggregation. Split
learning is not here, since its steps are the network itself; its payloads are in ``tests/every_payload.py``. After a
change that is meant to move them, ``python tests/golden/test_exact_trajectories.py`` writes them anew.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from federation_kit import TRAINING
from processors import cubed, pseudo
from test_trajectories import CASES

from flsparse.clients import Fit, LocalMethod, device_app
from flsparse.clients.core.method import TaskLike
from flsparse.nets.arrays import load_arrays
from flsparse.runtime import InProcessGrid
from flsparse.strategies import RoundLoop
from flsparse.wire.messages import to_record

FILE = Path(__file__).with_name("exact_trajectories.json")
EXACT = [name for name in CASES if not name.startswith("split_ms")]
NODES, STEPS, RATE = 4, 2, 0.25


def weights(salt: int) -> dict[str, np.ndarray]:
    """Return arrays for :func:`net`."""
    shapes = {name: tuple(p.shape) for name, p in net().named_parameters()}
    return {
        name: cubed(pseudo(int(np.prod(shape)), salt + i)).reshape(shape).astype(np.float32)
        for i, (name, shape) in enumerate(shapes.items())
    }


def net() -> nn.Sequential:
    """Return a model of two layers; nothing ever runs it forward."""
    return nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 10))


class PortableTask:
    """A task whose node n takes steps towards weights(100 n): ``w <- w - RATE (w - target)``, elementwise."""

    num_nodes = NODES

    def model(self) -> nn.Module:
        model = net()
        load_arrays(model, weights(1))
        return model

    def train_data(self, node: int) -> list[int]:
        return [node] * (10 + node)

    def optimizer(self, model: nn.Module, config: Mapping[str, Any]) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=RATE)

    def fit(self, fit: Fit, method: LocalMethod, data: list[int]) -> dict[str, np.ndarray]:
        targets = weights(100 * (data[0] + 1))
        method.before_fit(fit)
        for _ in range(STEPS):
            for name, parameter in fit.model.named_parameters():
                parameter.grad = (parameter.detach() - torch.from_numpy(targets[name])) * (parameter.detach() != 0)
            method.after_backward(fit)
            with torch.no_grad():
                for parameter in fit.model.parameters():
                    assert parameter.grad is not None
                    parameter.copy_(parameter - RATE * parameter.grad)  # two roundings: nothing is fused
            fit.step += 1
            method.after_step(fit)
        fit.metrics["num-examples"] = float(len(data))
        return method.after_fit(fit)


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return a hash of arrays, little endian."""
    state = hashlib.sha256()
    for name, array in arrays.items():
        state.update(name.encode() + array.astype(array.dtype.newbyteorder("<")).tobytes())
    return state.hexdigest()[:16]


def trajectory(strategy: RoundLoop) -> list[list[Any]]:
    """Return bytes up, bytes down, and a hash of the model, or of all nodes' models, after each round."""
    rows: list[list[Any]] = []

    def note(report: Any) -> None:
        models = {str(n): arrays for n, arrays in strategy.node_models.items()}
        models["global"] = {name: array.numpy() for name, array in report.arrays.items()}
        hashes = {which: digest(arrays) for which, arrays in models.items()}
        rows.append([report.metrics["uplink_bytes"], report.metrics["downlink_bytes"], hashes])

    strategy.callbacks.append(note)
    strategy.prepare(net())
    strategy.wire.downlink.initial = weights(1)  # where layers take a power of it, nodes build another and are sent all
    grid = InProcessGrid(device_app(lambda _: cast(TaskLike, PortableTask())), NODES)
    strategy.start(grid, to_record(weights(1)), num_rounds=3, train_config=TRAINING)
    return rows


@pytest.mark.parametrize("name", EXACT)
def test_trajectory_is_the_committed_one_bit_for_bit(name):
    assert trajectory(CASES[name]()) == json.loads(FILE.read_text())[name]


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: trajectory(CASES[name]()) for name in EXACT}, indent=1) + "\n")
