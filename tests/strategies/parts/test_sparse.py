"""The sparsity that is asked for: of the aggregate in a round, and of a node."""

from typing import Any

import pytest
from federation_kit import digits, run

from flsparse.clients.parts.topk_update import TopKUpdate
from flsparse.strategies import SparsyFed
from flsparse.strategies.core.exchange import Node
from flsparse.strategies.core.part import Round
from flsparse.strategies.parts.server_optimizer import ServerOptimizer
from flsparse.strategies.parts.sparse import SparseModel


def test_on_the_ramp_a_node_is_asked_for_what_it_received() -> None:
    model = SparseModel(0.96)
    aggregate = [model.target(number, 12) for number in range(1, 13)]
    assert [model.asked(number, 12) for number in range(1, 13)] == [0.0, *aggregate[:-1]]
    assert aggregate[3:] == [0.96] * 9


@pytest.mark.parametrize("settings", [{"ramp": False}, {"reprune": False}])
def test_else_a_node_prunes_to_the_target_of_the_round(settings: dict[str, Any]) -> None:
    model = SparseModel(0.96, **settings)
    assert [model.asked(n, 12) for n in range(1, 13)] == [model.target(n, 12) for n in range(1, 13)]
    assert model.asked(1, 12) > 0


def test_tiers_have_their_own_target_from_round_two_on() -> None:
    model = SparseModel(0.5, tiers={"2-3": 0.9, "7": 0.8})
    weak, strong, odd = (Node(node_id=1, partition=partition) for partition in (3, 0, 7))
    assert [model.asked(12, 12, node) for node in (weak, strong, odd)] == [0.9, 0.5, 0.8]
    assert model.asked(1, 12, weak) == 0.0
    assert model.asked(2, 12, weak) > model.asked(2, 12, strong)


def test_updates_are_sparse_on_the_ramp_alone() -> None:
    loop = SparsyFed(sparsity=0.9, hello=True)
    reports = run(loop, digits(), rounds=6)
    asked = []
    for number in range(1, 7):
        loop.parts.open(Round(number, 6, {}, loop.wire, {}, lambda *_: (), lambda *_: None))
        asked.append(loop.parts.asks(None))
    assert [each.get("topk_update.density") for each in asked] == [pytest.approx(0.2)] * 2 + [None] * 4
    assert all("parts" not in each for each in asked[2:])
    whole = run(SparsyFed(sparsity=0.9, hello=True, parts=[TopKUpdate(density=1.0, decay=0.0)]), digits(), rounds=1)
    assert reports[0].metrics["uplink_bytes"] < 0.8 * whole[0].metrics["uplink_bytes"]
    assert "topk_update" not in str(SparsyFed(sparsity=0.9, ramp=False).parts)
    assert "topk_update" in str(SparsyFed(sparsity=0.1).parts)  # up to the whole model: it is never denser than that


@pytest.mark.parametrize(
    ("settings", "lr"),
    [
        ({}, 1.5),
        ({"server_lr": 1.0}, None),
        ({"server_lr": 2.0}, 2.0),
        ({"ramp": False}, None),
        ({"reprune": False}, None),
        ({"tiers": {"0-1": 0.99}}, None),
        ({"server_optimizer": "momentum"}, 1.0),
        ({"parts": [ServerOptimizer(kind="adam", lr=0.1)]}, 0.1),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else str(value),
)
def test_sparsyfed_takes_longer_steps_where_the_server_alone_prunes(settings: dict[str, Any], lr: float | None) -> None:
    loop = SparsyFed(hello=True, **settings)
    steps = [part.lr for part in loop.parts if isinstance(part, ServerOptimizer)]
    assert steps == ([] if lr is None else [lr])
