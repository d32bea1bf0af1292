"""The server optimizer: its steps against numbers worked out by hand, and as a part of every averaging method."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from federation_kit import digits, run
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from flsparse.clients.parts.clip import Clip
from flsparse.strategies import DPPF, Compressed, FedAvg, LocalSGD, MalcomPSGD, RoundLoop, Scaffold, SparsyFed, SplitMS
from flsparse.strategies.parts.control import ServerControl
from flsparse.strategies.parts.masks import Masks
from flsparse.strategies.parts.server_optimizer import ServerOptimizer
from flsparse.wire.messages import CONTROL, to_numpy

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
        model = optimizer.step(model, MEAN, ["w"])
        np.testing.assert_allclose(model["w"], value, rtol=1e-5)
        for name in model.keys() - {"w"}:  # a variance that overshoots is below 0, and its square root NaN
            np.testing.assert_array_equal(model[name], MEAN[name])
    assert optimizer.memory.m.keys() | optimizer.memory.u.keys() <= {"w"}


@pytest.mark.parametrize(
    "make",
    [
        lambda **more: FedAvg(values="raw", **more),
        lambda **more: SparsyFed(sparsity=0.9, ramp=False, **more),  # its step comes before the model is pruned
        lambda **more: LocalSGD(values="int8", **more),
        lambda **more: DPPF(control_variates=True, values="int8", **more),
        lambda **more: SplitMS(cut="2", steps_per_round=2, values="int8", **more),
    ],
)
def test_a_part_from_outside_is_the_argument_of_the_method(make: Callable[..., RoundLoop]) -> None:
    by_argument = make(hello=True, server_optimizer="adam", server_lr=0.05)
    by_part = make(hello=True, parts=[Clip(max_norm=1e6), ServerOptimizer(kind="adam", lr=0.05)])
    (first,), (second,) = (run(loop, digits(2), rounds=1) for loop in (by_argument, by_part))
    for name, array in to_numpy(first.arrays).items():
        np.testing.assert_array_equal(array, to_numpy(second.arrays)[name])
    moments = by_part.state_dict()["server_optimizer"]
    assert any(u.any() for u in moments["u"].values())
    assert "server_optimizer" not in make(hello=True).state_dict()


def test_parts_stand_in_their_declared_order_whoever_names_them() -> None:
    loop = SparsyFed(sparsity=0.9, hello=True, parts=[ServerControl(), Clip(), ServerOptimizer()])
    own = ["masks", "sparse", "topk_update"]
    assert [part.name for part in loop.parts] == ["server_optimizer", *own, "control_variates", "clip"]
    assert str(FedAvg(parts=[Masks(), ServerOptimizer(lr=0.5)]).parts) == "server_optimizer (momentum, lr 0.5), masks"


def test_the_weights_that_all_pruned_are_cut_after_the_step() -> None:
    loop = SparsyFed(sparsity=0.9, ramp=False, parts=[ServerOptimizer(kind="none", lr=0.5)])
    (report,) = run(loop, digits(2), rounds=1)
    assert report.metrics["union_sparsity"] < 0.5  # half a step from a dense model leaves no zeros
    assert report.metrics["broadcast_sparsity"] == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda part: Scaffold(parts=[part]), "cannot be chosen, since control variates correct plain averaging"),
        (lambda part: MalcomPSGD(topology={"name": "ring"}, num_nodes=4, parts=[part]), "here no server averages"),
        (lambda part: Compressed(FlowerFedAvg(), parts=[part]), "acts on the server's mean"),
        (lambda part: FedAvg(server_optimizer="adam", parts=[part]), "is there twice"),
        (lambda _: FedAvg(server_optimizer="sgd"), "server_optimizer='sgd' is none of none, momentum, adam"),  # type: ignore[arg-type]
        (lambda _: FedAvg(server_lr=0.0), r"server_lr=0.0 is not in \(0, inf\)"),
        (lambda _: ServerOptimizer(lr=-1.0), r"lr=-1.0 is not in \(0, inf\)"),
    ],
)
def test_what_cannot_step_is_refused(make: Callable[[ServerOptimizer], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(ServerOptimizer())


def test_moments_as_they_were_saved_before_parts_are_refused_by_name() -> None:
    loop = FedAvg(server_optimizer="adam", server_lr=0.01)
    old = {**loop.state_dict(), "server_optimizer": {"m/w": np.ones(1), "u/w": np.ones(1)}, "next_round": 7}
    with pytest.raises(ValueError, match=r"lacks server_optimizer\.m, server_optimizer\.u: .* start a new run"):
        loop.load_state_dict(old)
    assert loop.state_dict()["next_round"] == 1
