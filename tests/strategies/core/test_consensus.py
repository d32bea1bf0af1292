"""The nodes' models and their mean, against numbers worked out by hand."""

import numpy as np
import pytest
from flwr.app import MetricRecord

from flsparse.kpi import ACCURACY
from flsparse.strategies.core.consensus import consensus_error, mean_model, mean_sparsity, node_scores

MODELS = {
    0: {"w": np.array([0.0, 4.0], np.float32), "steps": np.array(3)},
    2: {"w": np.array([2.0, 0.0], np.float32), "steps": np.array(6)},
}


def test_mean_and_error_are_those_of_the_named_arrays() -> None:
    mean = mean_model(MODELS)
    np.testing.assert_array_equal(mean["w"], np.array([1.0, 2.0], np.float32))
    assert mean["w"].dtype == np.float32
    assert mean["steps"] == 4  # 4.5, to the even
    assert mean["steps"].dtype == np.array(3).dtype
    assert consensus_error(MODELS, mean, ["w"]) == (1 + 4 + 1 + 4) / 2
    assert mean_sparsity(MODELS, ["w"]) == 0.5


def test_accuracies_are_of_the_models_that_have_one() -> None:
    found = iter([MetricRecord({"accuracy": 0.5}), MetricRecord({"loss": 1.0}), None, MetricRecord({"accuracy": 0.8})])
    models = dict.fromkeys(range(4), MODELS[0])
    assert node_scores(models, lambda _: next(found), ACCURACY) == {
        "mean_node_accuracy": pytest.approx(0.65),
        "worst_node_accuracy": 0.5,
    }
    assert node_scores(models, lambda _: None, ACCURACY) == {}
