"""What a node keeps: small in the context, large on disk, bounded, whole or not at all."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from federation_kit import digits, run
from flwr.app import Context, RecordDict

from flsparse.clients.core import state
from flsparse.clients.core.state import NodeState
from flsparse.codec import Reference
from flsparse.strategies import FedAvg, SplitMS

SMALL = {"z": np.arange(3.0), "a": np.array(4)}
LARGE = {"z": np.arange(100_000.0), "a": np.array(4)}


@pytest.fixture(autouse=True)
def _home(monkeypatch, tmp_path):
    monkeypatch.setenv(state.STATE_DIR, str(tmp_path))
    state._memory.clear()


def node(node_id=1, run_id=9, records=None):
    context = Context(run_id=run_id, node_id=node_id, node_config={}, state=records or RecordDict(), run_config={})
    return context, NodeState(context)


@pytest.mark.parametrize("arrays", [SMALL, LARGE], ids=["small", "large"])
def test_arrays_come_back_in_order_in_a_new_process(arrays, tmp_path):
    context, first = node()
    first.put("residual", arrays)
    second = NodeState(context).get("residual")
    assert second is not None
    assert list(second) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(second[name], array)
    assert bool(list(tmp_path.rglob("*.safetensors"))) == (arrays is LARGE)


def test_what_grows_moves_to_disk_and_back(tmp_path):
    _, own = node()
    for arrays in (SMALL, LARGE, SMALL):
        own.put("residual", arrays)
        assert own.get("residual")["z"].size == arrays["z"].size
    assert not list(tmp_path.rglob("node-*/*.safetensors"))


def test_nodes_and_runs_do_not_see_each_other():
    _, own = node(1)
    own.put("residual", LARGE)
    assert node(2)[1].get("residual") is None
    assert node(1, run_id=10)[1].get("residual") is None


def test_a_reference_is_stored_once_for_all_nodes_of_a_run(tmp_path):
    reference = Reference(LARGE)
    for node_id in (1, 2, 3):
        node(node_id)[1].hold(reference)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    state._memory.clear()
    assert node(4)[1].reference(reference.id).id == reference.id


def flip(data):
    return data[:-1] + bytes([data[-1] ^ 1])


def truncate(data):
    return data[:1000]


def not_finite(data):
    return data[:-8] + np.float64(np.nan).tobytes()


@pytest.mark.parametrize("damage", [flip, truncate, not_finite])
def test_a_damaged_reference_is_a_missing_one(tmp_path, damage):
    context, own = node()
    reference = Reference(LARGE)
    own.hold(reference)
    state._memory.clear()
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(damage(bytearray(file.read_bytes())))
    assert own.held == reference.id
    assert own.reference(reference.id) is None
    assert NodeState(context).held == ""
    own.hold(reference)  # written anew
    state._memory.clear()
    assert own.reference(reference.id).id == reference.id


def test_the_oldest_references_go_first(tmp_path):
    context, _ = node()
    own = NodeState(context, max_bytes=2_000_000)
    references = [Reference({"z": np.full(100_000, float(i))}) for i in range(5)]
    for reference in references:
        own.hold(reference)
    state._memory.clear()
    assert [own.reference(r.id) is not None for r in references] == [False, False, False, True, True]


def test_a_reference_id_is_no_path():
    with pytest.raises(ValueError, match="not hexadecimal"):
        node()[1].reference("../../etc/passwd")


def test_a_run_that_has_been_idle_for_a_day_goes_first(tmp_path):
    for run_id in (1, 2):
        node(run_id=run_id)[1].put("momentum", LARGE)
    (old,) = tmp_path.glob("run-1/*/*.safetensors")
    os.utime(old, (0, 0))
    context, _ = node(run_id=3)
    own = NodeState(context, max_bytes=2_000_000)
    own.put("momentum", LARGE)
    assert not old.exists()
    assert list(tmp_path.glob("run-2/*/*.safetensors"))
    assert own.get("momentum")


def test_no_node_keeps_more_than_its_owner_allows():
    context, _ = node()
    with pytest.raises(ValueError, match="max_state_bytes=1000"):
        NodeState(context, max_bytes=1000).put("momentum", LARGE)


def test_what_a_node_keeps_under_all_names_is_bounded():
    context, _ = node()
    own = NodeState(context, max_bytes=2_000_000)
    own.put("momentum", LARGE)
    own.put("mirror", LARGE)
    own.put("mirror", LARGE)  # in place of itself
    with pytest.raises(ValueError, match="max_state_bytes=2000000"):
        own.put("residual", LARGE)
    assert own.get("residual") is None


@pytest.fixture
def full_disk(monkeypatch):
    def fail(path, data):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    return lambda: monkeypatch.setattr(Path, "write_bytes", fail)


@pytest.mark.parametrize("before", [SMALL, LARGE], ids=["small", "large"])
def test_what_cannot_be_written_leaves_what_was_there(before, full_disk):
    _, own = node()
    own.put("residual", before)
    full_disk()
    with pytest.raises(OSError, match="No space"):
        own.put("residual", {"z": np.ones(100_000)})
    np.testing.assert_array_equal(own.get("residual")["z"], before["z"])


def test_a_node_without_room_for_a_reference_holds_none(full_disk):
    _, own = node()
    own.hold(Reference(LARGE))
    full_disk()
    own.hold(Reference({"z": np.ones(100_000)}))
    assert own.held == ""


@pytest.mark.parametrize("strategy", [FedAvg, lambda: SplitMS(cut="2", steps_per_round=1)], ids=["fedavg", "split"])
def test_devices_without_room_for_references_train_all_the_same(full_disk, strategy):
    full_disk()
    loop = strategy()
    *_, last = run(loop, digits(2), rounds=2)
    assert last.metrics["replies"] == 2
    assert loop.wire.counts["resent_models"] == 0
    assert {each.held for each in loop.nodes.values()} == {""}


def test_files_that_vanish_while_the_bound_is_checked_do_no_harm(monkeypatch, tmp_path):
    context, _ = node()
    gone = tmp_path / "run-7" / "node-1" / "gone.safetensors"
    monkeypatch.setattr(Path, "rglob", lambda *_: iter([gone]))
    NodeState(context).hold(Reference(LARGE))


def test_no_bound_is_no_bound():
    context, _ = node()
    unbounded = NodeState(context, max_bytes=0)
    unbounded.put("residual", LARGE)
    assert unbounded.get("residual") is not None
