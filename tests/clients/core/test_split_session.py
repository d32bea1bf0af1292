"""A session of split learning: data that survive in a node's state, and say when it is another step's."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from flsparse.clients import NodeState, SplitMSLocal
from flsparse.clients.core.split_session import Session

SESSION = Session(
    method=SplitMSLocal(cut="2", batches=2).hyperparameters(),
    config={"lr": 0.1, "batch-size": 4, "first-batch": 6},
    round=3,
    node=1,
    seed=7,
    values="int8",
    rounding="nearest",
    parts={"parts": "clip", "clip.max_norm": 2.0},
)


@pytest.fixture
def state(monkeypatch, tmp_path):
    monkeypatch.setenv("FLSPARSE_STATE_DIR", str(tmp_path))
    return NodeState(Context(run_id=1, node_id=5, node_config={}, state=RecordDict(), run_config={}))


def test_what_is_stored_comes_back(state):
    later = replace(SESSION, step=2, samples=24, loss=1 / 3, encode_s=1e-7)
    SESSION.save(state)
    later.save(state)
    assert Session.load(state, 3, 2) == later
    assert replace(SplitMSLocal(), **later.method) == SplitMSLocal(cut="2", batches=2)


@pytest.mark.parametrize("at", [(3, 1), (2, 0), (None, None)])
def test_another_step_than_the_servers_is_a_lost_state(state, at):
    SESSION.save(state)
    with pytest.raises(ValueError, match=r"at round and step \(3, 0\).*lost its state"):
        Session.load(state, *at)


def test_a_node_without_a_session_has_lost_its_state(state):
    with pytest.raises(ValueError, match="at round and step None"):
        Session.load(state, 3, 0)


def test_each_step_goes_on_where_the_one_before_ended():
    steps = [replace(SESSION, step=step).batches(40, 2) for step in range(2)]
    whole = SESSION.batches(40, 4)
    for found, expected in zip([*steps[0], *steps[1]], whole, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_randomness_differs_by_step():
    draws = [replace(SESSION, step=step).stream("coding-0").integers(1 << 60) for step in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
