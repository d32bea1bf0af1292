from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from flsparse.tasks import build_task

pytestmark = pytest.mark.slow


def config(root: str, name: str, model: str, kind: str, nodes: int | None, **dataset: Any) -> dict[str, Any]:
    return {
        "dataset": {"name": name, "root": root} | dataset,
        "model": {"name": model},
        "partition": {"kind": kind, "alpha": 0.1},
        "num_clients": nodes,
        "seed": 0,
    }


def test_fashion_mnist(data_root: str, fit_node: Callable[..., Any]) -> None:
    task = build_task(config(data_root, "fashion_mnist", "cnn", "dirichlet_equal", 100, validation_fraction=0.0))
    assert [len(task.train_data(node)) for node in range(100)] == [600] * 100
    assert len(task.test_data()) == 10_000
    assert task.source.input_shape == (1, 28, 28)
    arrays, fit, _ = fit_node(task, 0)
    again, _, _ = fit_node(task, 0)
    assert all(arrays[name].tobytes() == again[name].tobytes() for name in arrays)
    assert fit.metrics["train-accuracy"] > 0.5


def test_cifar10(data_root: str, fit_node: Callable[..., Any]) -> None:
    task = build_task(config(data_root, "cifar10", "resnet20", "iid", 500, train_samples=5000))
    data = task.train_data(0)
    assert data.inputs.shape == (9, 3, 32, 32)
    assert len(task.validation_data()) == 500
    arrays, _, _ = fit_node(task, 0, **{"batch-size": 8})
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_shakespeare(data_root: str, fit_node: Callable[..., Any]) -> None:
    task = build_task(config(data_root, "shakespeare", "char_lstm", "natural", None))
    assert task.num_nodes == 447
    assert task.source.num_classes == 77
    groups = task.source.train_groups
    assert groups is not None
    held = task.validation_data().index.numpy()
    for node in (0, 100, 446):
        mine = task.train_data(node).index.numpy()
        assert len(set(groups[mine])) == 1
        # Time runs forward: what a node trains on comes before what it is validated on.
        assert mine.max() < held[groups[held] == groups[mine[0]]].min()
    data = task.train_data(0)
    assert torch.equal(data.inputs[:, 1:].long(), data.targets[:, :-1])
    some = build_task(config(data_root, "shakespeare", "char_lstm", "natural", 10))
    assert some.num_nodes == 10
    assert 10 <= len(some.test_data()) < len(task.test_data()) / 10
    _, fit, _ = fit_node(some, 0, **{"local-steps": 2, "clip-grad": 1.0})
    assert fit.metrics["train-loss"] < 5
