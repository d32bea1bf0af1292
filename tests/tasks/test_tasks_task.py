import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flsparse.tasks import build_task


def test_digits_are_divided_once_and_for_all(digits_config: dict[str, Any]) -> None:
    task = build_task(digits_config)
    held = [set(task.train_data(node).index.tolist()) for node in range(task.num_nodes)]
    validation = set(task.validation_data().index.tolist())
    assert task.num_nodes == 20
    assert set().union(*held) | validation == set(range(1438))
    assert sum(map(len, held)) + len(validation) == 1438
    assert len(validation) == 143
    assert len(task.test_data()) == 359


def test_the_test_set_never_moves(digits_config: dict[str, Any]) -> None:
    tests = [build_task(digits_config | {"seed": seed, "num_clients": 5 + seed}).test_data() for seed in (0, 1)]
    assert torch.equal(tests[0].inputs, tests[1].inputs)


def test_a_node_is_a_view_and_images_stay_bytes(digits_config: dict[str, Any]) -> None:
    task = build_task(digits_config)
    data = task.train_data(3)
    assert data.all_inputs is task.train_data(4).all_inputs
    assert data.inputs.dtype == torch.uint8
    assert data.inputs.shape == (len(data), 1, 8, 8)
    assert data.targets.dtype == torch.int64
    prepared = data.prepare(data.inputs)
    assert float(prepared.min()) == pytest.approx(-1)
    assert float(prepared.max()) == pytest.approx(1)


def test_the_same_configuration_is_the_same_task(digits_config: dict[str, Any]) -> None:
    assert build_task(digits_config) is build_task(digits_config | {"num_rounds": 99})
    assert build_task(digits_config) is not build_task(digits_config | {"seed": 2})


def test_models_follow_the_seed_and_move_no_generator(digits_config: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    first, again = (build_task(digits_config).model().state_dict() for _ in range(2))
    other = build_task(digits_config | {"seed": 9}).model().state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_limits(digits_config: dict[str, Any]) -> None:
    few = build_task(digits_config | {"dataset": {"name": "digits", "train_samples": 200, "validation_fraction": 0.25}})
    assert len(few.validation_data()) == 50
    assert sum(len(few.train_data(node)) for node in range(20)) == 150
    none = build_task(digits_config | {"dataset": {"name": "digits", "validation_fraction": 0}})
    assert sum(len(none.train_data(node)) for node in range(20)) == 1438
    with pytest.raises(ValueError, match="validation_fraction above 0"):
        none.validation_data()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": {"name": "digit"}}, "dataset='digit' is none of digits.*did you mean digits"),
        ({"dataset": {"name": "digits", "roots": "x"}}, "dataset.roots is not a setting of digits"),
        ({"dataset": {"name": "cifar10"}}, "dataset.root must be set"),
        ({"dataset": {"name": "digits", "validation_fraction": 1.0}}, r"validation_fraction=1.0 must be in \[0, 1\)"),
        ({"dataset": {"name": "digits", "train_samples": 5000}}, "from 1 to the 1438"),
        ({"num_clients": 1300}, "more than the 1295 training samples"),
    ],
)
def test_impossible_tasks_say_why(digits_config: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_task(digits_config | change)


@pytest.mark.parametrize("change", [{"name": "cnm"}, {"name": "cnn", "depth": 3}, {"name": "char_lstm"}])
def test_impossible_models_say_why(digits_config: dict[str, Any], change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^model[.=]"):
        build_task(digits_config | {"model": change}).model()


def test_a_node_that_does_not_exist(digits_config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="partition id 20"):
        build_task(digits_config).train_data(20)


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist", "cifar10", "shakespeare"])
def test_missing_files_name_the_path_and_the_mend(digits_config: dict[str, Any], name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"dataset\.root") as caught:
        build_task(digits_config | {"dataset": {"name": name, "root": str(tmp_path)}})
    assert str(tmp_path.resolve()) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_imports_torchvision_or_flwr_datasets_at_start() -> None:
    code = (
        "import sys\n"
        "from flsparse.tasks import build_task\n"
        "task = build_task(dict(dataset=dict(name='digits'), model=dict(name='cnn'), num_clients=5, seed=0))\n"
        "task.model(); task.train_data(0)\n"
        "loaded = {'torchvision', 'flwr_datasets', 'datasets', 'hydra'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_thousand_nodes_hold_no_copies(digits_config: dict[str, Any]) -> None:
    task = build_task(digits_config | {"num_clients": 1000})
    views = [task.train_data(node) for node in range(1000)]
    assert {view.all_inputs.data_ptr() for view in views} == {task.source.train_inputs.data_ptr()}
    assert np.sum([len(view) for view in views]) == 1295
