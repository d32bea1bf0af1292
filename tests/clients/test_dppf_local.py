"""The pull and the push, by hand; what a worker keeps."""

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from torch import nn

from flsparse.clients import DPPFLocal, LocalSGDLocal, ScaffoldLocal
from flsparse.clients.core.fit import Fit
from flsparse.clients.core.method import Hooks, WithParts
from flsparse.clients.core.state import NodeState
from flsparse.clients.dppf import distance, norm, pull_push
from flsparse.clients.parts.control import ControlVariates
from flsparse.nets.arrays import load_optimizer, optimizer_arrays, state_arrays


def test_pull_push_by_hand() -> None:
    average, worker = {"a": np.zeros(1), "b": np.zeros(1)}, {"a": np.array([3.0]), "b": np.array([4.0])}
    moved = pull_push(worker, average, 0.5, 1.0)  # 5 away: half of it stays, and the push adds 1
    assert (moved["a"][0], moved["b"][0]) == pytest.approx((0.7 * 3, 0.7 * 4))
    paper = {n: x + (average[n] - x) * (0.5 - 1.0 / 5.0) for n, x in worker.items()}  # eq. 5 as it stands
    assert all(moved[n] == pytest.approx(paper[n]) for n in paper)


def test_alpha_1_without_push_is_exactly_the_average() -> None:
    rng = np.random.default_rng(0)
    average, worker = ({"w": rng.normal(size=1000).astype("f4")} for _ in range(2))
    np.testing.assert_array_equal(pull_push(worker, average, 1.0, 0.0)["w"], average["w"])
    assert pull_push(worker, average, 0.3, 0.1)["w"].dtype == np.float32


def test_no_push_from_the_average_itself() -> None:
    average = {"w": np.ones(3, np.float32)}
    np.testing.assert_array_equal(pull_push(average, average, 0.5, 7.0)["w"], average["w"])


@pytest.mark.parametrize("workers", [4, 8, 64])
def test_the_distance_converges_to_lambda_over_alpha(workers: int) -> None:
    """0.5 / 0.1 = 5 with 4, 8 and 64 workers, and to 0 without the push."""
    rng = np.random.default_rng(workers)
    for push, width in ((0.5, 5.0), (0.0, 0.0)):
        x = [{"w": rng.normal(size=50)} for _ in range(workers)]
        for _ in range(200):
            average = {"w": np.mean([m["w"] for m in x], axis=0)}
            x = [pull_push(m, average, 0.1, push) for m in x]
        assert np.mean([distance(m, average) for m in x]) == pytest.approx(width, rel=0.01, abs=1e-6)


def test_norm_is_over_all_arrays() -> None:
    assert norm({"a": np.array([3.0], np.float32), "b": np.array([[4.0]], np.float32)}) == 5.0


def a_fit(state: NodeState, received: dict[str, np.ndarray] | None = None, server_round: int = 1, **more: Any) -> Fit:
    model = nn.Linear(2, 1, bias=False)
    arrays = received or {"weight": np.array([[1.0, 2.0]], np.float32)}
    model.load_state_dict({"weight": torch.from_numpy(arrays["weight"].copy())})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Fit(model, optimizer, arrays, server_round, 10, 0, 0, {}, state, prunable=["weight"], **more)


@pytest.fixture
def state(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> NodeState:
    monkeypatch.setenv("FLSPARSE_STATE_DIR", str(tmp_path))
    return NodeState(Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={}))


def steps(fit: Fit, method: Hooks, count: int = 2) -> dict[str, np.ndarray]:
    method.before_fit(fit)
    for _ in range(count):
        fit.optimizer.zero_grad()
        fit.model(torch.ones(1, 2)).square().sum().backward()
        method.after_backward(fit)
        fit.optimizer.step()
        fit.step += 1
        method.after_step(fit)
    sent: dict[str, np.ndarray] = method.after_fit(fit)
    return sent


def test_a_worker_goes_on_from_its_own_weights_and_momentum(state: NodeState) -> None:
    first = a_fit(state)
    sent = steps(first, DPPFLocal())
    assert first.metrics["joined"] == 1
    momentum = optimizer_arrays(first.model, first.optimizer)
    average = {"weight": np.array([[5.0, 5.0]], np.float32)}
    second = a_fit(state, average, 2)
    DPPFLocal(continues=1, alpha=0.5, push=0.25).before_fit(second)
    apart = distance(sent, average)
    assert second.metrics == {"joined": 0, "width": pytest.approx(apart), "width-target": 0.5}
    expected = pull_push(sent, average, 0.5, 0.25)["weight"]
    np.testing.assert_array_equal(state_arrays(second.model)["weight"], expected)
    assert optimizer_arrays(second.model, second.optimizer).keys() == momentum.keys() == {"momentum_buffer|weight"}
    for name, array in optimizer_arrays(second.model, second.optimizer).items():
        np.testing.assert_array_equal(array, momentum[name])


def test_a_relative_push_scales_with_the_average(state: NodeState) -> None:
    steps(a_fit(state), DPPFLocal())
    second = a_fit(state, {"weight": np.array([[30.0, 40.0]], np.float32)}, 2)
    DPPFLocal(continues=1, alpha=0.5, relative_push=0.1).before_fit(second)
    assert second.metrics["width-target"] == pytest.approx(5.0)


@pytest.mark.parametrize("asked", [0, 2, 7])
def test_a_worker_whose_last_reply_the_server_lacks_joins_from_the_average(state: NodeState, asked: int) -> None:
    steps(a_fit(state), DPPFLocal())
    state.put("mirror", {"weight": np.zeros((1, 2), np.float32)})
    late = a_fit(state, {"weight": np.array([[5.0, 5.0]], np.float32)}, 3)
    DPPFLocal(continues=asked, alpha=0.5, push=1.0).before_fit(late)
    assert late.metrics == {"joined": 1}
    np.testing.assert_array_equal(state_arrays(late.model)["weight"], [[5.0, 5.0]])
    assert not late.optimizer.state
    assert state.get("mirror") is None


def test_a_worker_that_lost_its_state_joins_from_the_average(state: NodeState) -> None:
    steps(a_fit(state), LocalSGDLocal())
    state.drop("worker")
    again = a_fit(state, server_round=2)
    LocalSGDLocal(continues=1).before_fit(again)
    assert again.metrics["joined"] == 1


def test_momentum_brings_no_pruned_weight_back(state: NodeState) -> None:
    received = {"weight": np.array([[0.5, 2.0]], np.float32)}
    fit = a_fit(state, received)
    method = DPPFLocal(sparsity=0.5, activation_pruning=False)
    method.prepare(fit.model)
    sent = steps(fit, method)
    assert np.count_nonzero(sent["weight"]) == 1
    gone = sent["weight"] == 0
    assert not optimizer_arrays(fit.model, fit.optimizer)["momentum_buffer|weight"][gone].any()

    def again(average: np.ndarray, alpha: float) -> np.ndarray:
        second = a_fit(state, {"weight": average}, 2)
        method = DPPFLocal(continues=1, alpha=alpha, push=0.1, sparsity=1e-9, activation_pruning=False)
        method.prepare(second.model)
        return steps(second, method)["weight"]

    assert not again(np.where(gone, np.float32(0), np.float32(1)), 0.5)[gone].any()


def test_the_pull_brings_a_weight_back_that_the_average_has(state: NodeState) -> None:
    fit = a_fit(state, {"weight": np.array([[0.5, 2.0]], np.float32)})
    method = DPPFLocal(sparsity=0.5, activation_pruning=False)
    sent = steps(fit, method)
    second = a_fit(state, {"weight": np.ones((1, 2), np.float32)}, 2)
    DPPFLocal(continues=1, alpha=0.5, sparsity=0.5, activation_pruning=False).before_fit(second)
    assert state_arrays(second.model)["weight"][sent["weight"] == 0] == pytest.approx([0.5])


def test_any_optimizers_tensors_come_back() -> None:
    model = nn.Linear(2, 1)
    adam = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    adam.step()
    other = torch.optim.Adam(model.parameters())
    load_optimizer(model, other, optimizer_arrays(model, adam))
    for p in model.parameters():
        for key, value in adam.state[p].items():
            assert torch.equal(other.state[p][key], value)


def test_scaffold_corrects_by_the_difference_and_keeps_the_mean_gradient(state: NodeState) -> None:
    received = {"weight": np.array([[1.0, 2.0]], np.float32), "control/weight": np.array([[1.0, 0.0]], np.float32)}
    fit = a_fit(state, received)
    fit.optimizer = torch.optim.SGD(fit.model.parameters(), lr=0.1)
    method = WithParts(ScaffoldLocal(), [ControlVariates()])
    sent = steps(fit, method, count=1)
    gradient = np.array([[6.0, 6.0]])  # d (w1 + w2)^2 / dw at (1, 2)
    np.testing.assert_allclose(sent["weight"], [[1, 2]] - 0.1 * (gradient + received["control/weight"]), rtol=1e-6)
    np.testing.assert_allclose(sent["control/weight"], [[7.0, 6.0]])  # c + (c_i_new - 0)
    option_two = -received["control/weight"] + (received["weight"] - sent["weight"]) / 0.1
    np.testing.assert_allclose(option_two, gradient, rtol=1e-5)
