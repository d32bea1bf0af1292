"""Weights of nodes in a mean: by their word, alike, or by their word as far as the others bear it out."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytest
import torch
from federation_kit import TRAINING, TamperedGrid
from flwr.app import Message, MessageType
from torch import nn

from flsparse.clients import Fit, LocalMethod, device_app
from flsparse.clients.core.method import TaskLike
from flsparse.nets.arrays import state_arrays
from flsparse.runtime import InProcessGrid
from flsparse.runtime.making import make_strategy
from flsparse.strategies import STRATEGIES, FedAvg, RoundReport, Scaffold
from flsparse.strategies.fedavg import Weighting
from flsparse.wire.messages import to_numpy, to_record

SIZES = (10, 20, 30, 1000)
MEANS = {  # of weights 1, 2, 3 and 4
    "examples": (10 * 1 + 20 * 2 + 30 * 3 + 1000 * 4) / 1060,
    "equal": 2.5,
    "clipped": (10 * 1 + 20 * 2 + 30 * 3 + 50 * 4) / 110,  # twice the median of 25
}


class Constant:
    """A task whose node n trains all weights to n + 1."""

    def model(self) -> nn.Module:
        model = nn.Linear(2, 1)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        return model

    def train_data(self, node: int) -> list[int]:
        return [node] * SIZES[node]

    def optimizer(self, model: nn.Module, config: Mapping[str, Any]) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=1.0)

    def fit(self, fit: Fit, method: LocalMethod, data: list[int]) -> dict[str, np.ndarray]:
        method.before_fit(fit)
        with torch.no_grad():
            for parameter in fit.model.parameters():
                parameter.fill_(data[0] + 1.0)
        fit.step += 1
        fit.metrics |= {"num-examples": float(len(data)), "place": float(data[0] + 1)}
        return method.after_fit(fit)


def federated(strategy: FedAvg, tamper: Any = lambda reply: [reply]) -> tuple[float, RoundReport]:
    """Run one round; return the mean entry of the model then, and the report."""
    reports: list[RoundReport] = []
    strategy.callbacks.append(reports.append)
    start = to_record(state_arrays(strategy.prepare(Constant().model())))
    grid = TamperedGrid(InProcessGrid(device_app(lambda _: cast(TaskLike, Constant())), len(SIZES)), tamper)
    strategy.start(grid, start, num_rounds=1, train_config=TRAINING)
    entries = np.concatenate([array.ravel() for array in to_numpy(reports[0].arrays).values()])
    return float(entries.mean()), reports[0]


@pytest.mark.parametrize("weighting", MEANS)
def test_the_mean_of_each_weighting(weighting: str) -> None:
    strategy = FedAvg(values="raw", downlink_values="raw", hello=True, weighting=cast(Weighting, weighting))
    mean, report = federated(strategy)
    assert mean == pytest.approx(MEANS[weighting])
    assert report.metrics["place"] == pytest.approx(MEANS[weighting])


def test_a_node_that_grows_after_the_hello_gains_nothing() -> None:
    def tamper(reply: Message) -> list[Message]:
        if reply.metadata.message_type == MessageType.TRAIN:
            reply.content.metric_records["metrics"]["num-examples"] = 1e9
        return [reply]

    for weighting in ("examples", "clipped"):
        strategy = FedAvg(values="raw", downlink_values="raw", hello=True, weighting=weighting)
        assert federated(strategy, tamper)[0] == pytest.approx(MEANS[weighting])


AVERAGING = [
    name
    for name, each in STRATEGIES.items()
    if issubclass(each, FedAvg) and "weighting" not in each.fixed and name != "split_ms"
]


@pytest.mark.parametrize("name", AVERAGING)
@pytest.mark.parametrize("weighting", MEANS)
def test_every_averaging_method_takes_the_weighting_of_a_configuration(name: str, weighting: str) -> None:
    codec = {"values": "raw", "rounding": "nearest", "downlink_values": "raw"}
    cfg = {"strategy": {"name": name}, "codec": codec, "num_clients": 4, "seed": 0, "weighting": weighting}
    strategy = make_strategy(cfg, [])
    assert isinstance(strategy, FedAvg)
    assert federated(strategy)[1].metrics["place"] == pytest.approx(MEANS[weighting])


def test_methods_whose_nodes_weigh_alike_refuse_another_weighting() -> None:
    with pytest.raises(ValueError, match="weighting='clipped' cannot be chosen: it is 'equal', since control variates"):
        Scaffold(weighting="clipped")
    with pytest.raises(ValueError, match="weighting='clipped' goes by the sizes that nodes tell in the hello"):
        FedAvg(weighting="clipped")
    with pytest.raises(ValueError, match="weighting"):
        FedAvg(weighting=cast(Weighting, "sizes"))
