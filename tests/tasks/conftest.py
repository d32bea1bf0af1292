"""What the tests of the tasks share: a configuration, a local training, the real data where they lie beside us."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flsparse.tasks import Task

DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A root with Fashion-MNIST, CIFAR-10 and Shakespeare; the test is skipped where the packed files are absent."""
    if not (DATA / "prepare.py").is_file():
        pytest.skip(f"no real data in {DATA}")
    root = tmp_path_factory.mktemp("root")
    subprocess.run([sys.executable, str(DATA / "prepare.py"), str(root)], check=True, capture_output=True)
    return str(root)


@pytest.fixture
def digits_config() -> dict[str, Any]:
    return {
        "dataset": {"name": "digits"},
        "model": {"name": "cnn"},
        "partition": {"kind": "dirichlet_equal", "alpha": 1.0},
        "num_clients": 20,
        "seed": 1,
    }


@dataclass
class Recorder:
    """A local method that notes its hooks and sends the whole state."""

    calls: list[str] = field(default_factory=list)

    def before_fit(self, fit: Any) -> None:
        self.calls.append("before_fit")

    def after_backward(self, fit: Any) -> None:
        self.calls.append("after_backward")

    def after_step(self, fit: Any) -> None:
        self.calls.append("after_step")

    def after_fit(self, fit: Any) -> dict[str, np.ndarray]:
        self.calls.append("after_fit")
        return {name: tensor.detach().numpy().copy() for name, tensor in fit.model.state_dict().items()}


@dataclass
class LocalFit:
    """The fields of a Fit that training reads."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    config: Mapping[str, Any]
    server_round: int = 1
    num_rounds: int = 10
    node: int = 0
    seed: int = 1
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


@pytest.fixture
def fit_node() -> Callable[..., tuple[dict[str, np.ndarray], LocalFit, Recorder]]:
    """Train one node of a task from its initial model: ``fit_node(task, node, **config)`` -> arrays, fit, method."""

    def run(task: Task, node: int, *, model: nn.Module | None = None, **overrides: Any) -> Any:
        config = {"lr": 0.1, "batch-size": 16, "local-epochs": 1} | overrides
        model = model or task.model()
        fit = LocalFit(model, task.optimizer(model, config), config, node=node)
        method = Recorder()
        return task.fit(fit, method, task.train_data(node)), fit, method  # type: ignore[arg-type]

    return run
