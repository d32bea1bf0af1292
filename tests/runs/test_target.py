"""Bytes to a target: three evaluations in a row, all bytes until then, nothing before and after."""

from typing import Any

from flsparse.runs.target import Target, to_target


def rows(*accuracies: float | None) -> list[dict[str, Any]]:
    sent = {"uplink_bytes": 1, "downlink_bytes": 10, "uplink_wire_bytes": 100, "downlink_wire_bytes": 1000}
    return [
        {"server_round": i, "accuracy": each, "wall_seconds": i / 2, **sent}
        for i, each in enumerate(accuracies, start=1)
    ]


def test_a_target_is_reached_when_it_is_held_and_what_follows_is_not_counted() -> None:
    found = to_target(rows(0.5, 0.95, 0.9, 0.95, 0.96, 0.95, 0.2, 0.99), 0.95)
    assert found == {
        "target": 0.95,
        "rounds": 6,
        "seconds": 3.0,
        "uplink_bytes": 6,
        "downlink_bytes": 60,
        "uplink_wire_bytes": 600,
        "downlink_wire_bytes": 6000,
        "wire_bytes": 6600,
    }


def test_a_target_that_is_touched_is_not_reached() -> None:
    assert to_target(rows(0.96, 0.96, 0.9, 0.96, 0.96), 0.95) is None
    assert to_target([], 0.95) is None


def test_rounds_without_an_evaluation_count_their_bytes_alone() -> None:
    found = to_target(rows(None, 0.96, None, 0.96, None, 0.96, None), 0.95)
    assert found is not None
    assert (found["rounds"], found["uplink_bytes"]) == (6, 6)


def test_it_is_known_in_its_round() -> None:
    target = Target(0.95)
    assert [target.take(row) is not None for row in rows(0.95, 0.95, 0.95, 0.1)] == [False, False, True, True]
