"""The device application: methods by name, the owner's limits, the hello."""

import numpy as np
import pytest
from federation_kit import TRAINING, digits, initial_arrays, run
from flwr.app import ConfigRecord

from flsparse.clients import METHODS, Limits, device_app, load_arrays, make_method
from flsparse.runtime import InProcessGrid
from flsparse.strategies import STRATEGIES, FedAvg, RoundFailed, SparsyFed
from flsparse.wire.messages import to_numpy


def test_every_strategy_has_its_local_method():
    assert set(STRATEGIES) <= set(METHODS)


@pytest.mark.parametrize(
    ("name", "hyperparameters", "complaint"),
    [
        ("os.system", {}, "not known here"),
        ("topk", {"sparsities": 0.5}, "no hyper-parameter 'sparsities'"),
        ("topk", {"sparsity": "0.5"}, "is not float"),
        ("topk", {"scope": "everything"}, "scope='everything' is not"),
        ("sparsyfed", {"beta": "cubic"}, "beta='cubic' is not"),
        ("topk", {"name": "x"}, "no hyper-parameter 'name'"),
    ],
)
def test_nothing_but_registered_methods_and_their_fields(name, hyperparameters, complaint):
    with pytest.raises(ValueError, match=complaint):
        make_method(name, hyperparameters)


def test_beta_may_be_a_number_or_spectral():
    assert make_method("sparsyfed", {"beta": 2}).hyperparameters()["beta"] == 2
    assert make_method("sparsyfed", {"beta": "spectral"}).hyperparameters()["beta"] == "spectral"


def test_hyperparameters_round_trip():
    method = make_method("sparsyfed", {"sparsity": 0.5})
    assert make_method("sparsyfed", method.hyperparameters()) == method


def test_no_server_can_exceed_the_owners_epochs():
    task, loop = digits(2), FedAvg(hello=True)
    grid = InProcessGrid(device_app(lambda _: task, Limits(max_local_epochs=2)), 2)
    config = ConfigRecord({**TRAINING, "local-epochs": 3})
    with pytest.raises(RoundFailed, match="max_local_epochs=2"):
        loop.start(grid, initial_arrays(loop, task), num_rounds=1, train_config=config)


def test_the_hello_tells_who_is_there():
    task, loop = digits(3), SparsyFed(hello=True)
    run(loop, task, rounds=1)
    nodes = loop.in_partition_order()
    assert [node.partition for node in nodes] == [0, 1, 2]
    assert [node.num_examples for node in nodes] == [len(task.train_data(i)) for i in range(3)]
    assert all(node.held for node in nodes)


def test_what_devices_measure_on_their_training_data_is_called_so():
    task = digits(2)
    (report,) = run(FedAvg(values="raw", downlink_values="raw", fraction_evaluate=1.0), task, rounds=1)
    model = task.model()
    load_arrays(model, to_numpy(report.arrays))
    found = [task.evaluate(model, task.train_data(i)) for i in range(2)]
    weights = [each["num-examples"] for each in found]
    expected = np.average([each["accuracy"] for each in found], weights=weights)
    assert report.metrics["evaluate_train_accuracy"] == pytest.approx(expected)
    assert "evaluate_accuracy" not in report.metrics


def test_the_device_is_deployable_with_another_strategy_without_a_change():
    task = digits(2)
    grid = InProcessGrid(device_app(lambda _: task), 2)
    for strategy in (FedAvg(), SparsyFed(sparsity=0.5)):
        assert run(strategy, task, rounds=1, grid=grid)
