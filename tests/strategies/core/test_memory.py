"""Memories through a checkpoint file: what comes back is equal, and what lacks is named before anything is taken."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from flsparse.metering.ledger import Ledger
from flsparse.runs.checkpoint import load_checkpoint, save_checkpoint
from flsparse.strategies import FedAvg
from flsparse.strategies.core.memory import lacking, restore, restore_memories, saved, saved_memories


@dataclass
class Copies:
    arrays: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    log: dict[int, dict[int, bytes]] = field(default_factory=dict)
    away: set[int] = field(default_factory=set)
    last: dict[int, tuple[int, int]] = field(default_factory=dict)
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)


def spent() -> Ledger:
    ledger = Ledger()
    ledger.count("uplink", 1, payload_bytes=3, wire_bytes=9, dense_bytes=12)
    ledger.count("downlink", 10, payload_bytes=0, wire_bytes=5, dense_bytes=0)
    ledger.itemize("uplink", 1, "masks-and-values", 2)
    return ledger


def test_a_memory_comes_back_from_a_file_as_it_was(tmp_path: Path) -> None:
    before = Copies(
        {3: {"w": np.arange(4, dtype=np.float32)}}, {7: {1: b"\0x"}}, {5, 2}, {0: (4, 1)}, {(2, 11): 6}, spent()
    )
    save_checkpoint(tmp_path / "state", saved_memories([("copies", before), ("", spent())]))
    after, ledger = Copies(away={9}), Ledger()
    place = after.away
    restore_memories([("copies", after), ("", ledger)], load_checkpoint(tmp_path / "state"))
    np.testing.assert_array_equal(after.arrays[3]["w"], before.arrays[3]["w"])
    after.arrays = before.arrays
    assert after == before
    assert ledger == spent()
    assert place == {9}  # a field is replaced, not written into


def test_fields_that_lack_are_named_with_the_data_class_they_are_in() -> None:
    state = {"copies": saved(Copies())}
    del state["copies"]["log"], state["copies"]["ledger"]["lines"]
    assert lacking([("copies", Copies()), ("log", Copies())], state) == ["copies.log", "copies.ledger.lines", "log"]
    with pytest.raises(KeyError, match="log"):
        restore(Copies(), state["copies"])


def test_a_ledger_of_before_fields_is_refused_by_name() -> None:
    loop = FedAvg()
    old = {**loop.state_dict(), "ledger": {"uplink/1": [1, 2, 3, 4]}, "next_round": 7}
    with pytest.raises(ValueError, match=r"'fedavg' lacks ledger.traffic, ledger.lines: .*; start a new run"):
        loop.load_state_dict(old)
    assert loop.state_dict()["next_round"] == 1
