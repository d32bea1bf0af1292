"""States on disk: round trip, whole or not at all, and clear errors."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from flsparse.runs.checkpoint import CheckpointError, load_checkpoint, save_checkpoint


def test_round_trip_of_everything_a_state_may_hold(tmp_path: Path) -> None:
    state = {
        "round": 3,
        "arrays": {"b.weight": np.arange(6, dtype=np.float32).reshape(2, 3).T, "a": np.array(7), "e": np.empty((0, 2))},
        "half": np.array([1.5, np.nan], np.float16),
        "flags": np.array([True, False]),
        "list": [1, 2.5, "x", None, True, {"deep": np.array([-0.0])}],
        "blob": b"\0\xff",
        "scalar": np.float64(0.1),
        "nan": float("nan"),
        "empty": {},
        "a": {"b": np.zeros(2)},
        "a/b": np.ones(3),  # not the array b of a
    }
    save_checkpoint(tmp_path / "sub" / "c.safetensors", state)
    got = load_checkpoint(tmp_path / "sub" / "c.safetensors")
    assert list(got) == list(state)
    assert list(got["arrays"]) == ["b.weight", "a", "e"]
    for name, array in state["arrays"].items():  # type: ignore[attr-defined]
        assert (got["arrays"][name].shape, got["arrays"][name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(got["arrays"][name], array)
    np.testing.assert_array_equal(got["half"], state["half"])
    assert got["flags"].dtype == np.bool_
    assert np.signbit(got["list"][5]["deep"][0])
    assert got["list"][:5] == [1, 2.5, "x", None, True]
    assert (got["blob"], got["scalar"], got["empty"]) == (b"\0\xff", 0.1, {})
    assert (got["a"]["b"].tolist(), got["a/b"].tolist()) == ([0, 0], [1, 1, 1])


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"round": 1})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flsparse.runs.checkpoint.save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(path, {"round": 2, "big": np.zeros(1_000_000)})
    monkeypatch.undo()
    assert load_checkpoint(path) == {"round": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["c.safetensors"]


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read"):
        load_checkpoint(tmp_path / "none")
    save_checkpoint(tmp_path / "c", {"a": np.zeros(100)})
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:200])
    with pytest.raises(CheckpointError, match="cannot read"):
        load_checkpoint(tmp_path / "c")


def test_no_flipped_bit_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "c"
    state = {"round": 3, "w": np.arange(6.0), "blob": b"xy", "scores": {"accuracy": 0.5}, "name": "x"}
    save_checkpoint(path, state)
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


def test_a_checkpoint_of_an_older_format_is_named(tmp_path: Path) -> None:
    save_file({"/w": np.zeros(2)}, tmp_path / "c", metadata={"format_version": "1", "state": "{}"})
    with pytest.raises(CheckpointError, match="has format 1; this version reads"):
        load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("value", [{1: 2}, {"x": object()}, {"x": {2, 3}}, {"__array__": 0}])
def test_what_cannot_be_saved_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "c", {"value": value})
