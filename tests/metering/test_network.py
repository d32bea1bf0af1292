"""Links: arithmetic by hand, draws that stay, and settings refused in one line."""

import math

import numpy as np
import pytest

from flsparse.metering.clock import VirtualClock
from flsparse.metering.network import Link, Network, Place, network_of

HOUR = 3600.0
SLOW = Link(
    up_bps=8_000, down_bps=80_000, latency_s=0.5, loss=0.2, message_s=2, cost_per_mb=4, flops_per_s=1e6, spread=0.4
)


def test_an_exchange_is_its_parts() -> None:
    back = Place("slow", SLOW, speed=0.5).returns(100.0, down_bytes=8_000, flops=3e6, up_bytes=800)
    # 10 kB down at 10 kB/s, 3 million operations at half a million a second, 1 kB up at 1 kB/s
    assert back == pytest.approx(100 + 2 + 0.5 + 1.0 + 6.0 + 0.5 + 1.0)
    assert SLOW.cost(800_000) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("hours", "at", "opens"),
    [
        ((8, 20), 9, 9),
        ((8, 20), 7, 8),
        ((8, 20), 20, 32),
        ((22, 6), 23, 23),
        ((22, 6), 29.5, 29.5),
        ((22, 6), 6, 22),
        ((0, 24), 24, 24),
        (None, 3, 3),
    ],
    ids=str,
)
def test_hours(hours: tuple[float, float] | None, at: float, opens: float) -> None:
    link = Link(up_bps=1, down_bps=1, flops_per_s=1, hours=hours)
    assert link.opens(at * HOUR) == opens * HOUR


def test_a_node_is_trained_when_it_is_reached_and_answers_when_it_can_be_heard() -> None:
    link = Link(up_bps=8e6, down_bps=8e6, flops_per_s=1.0, hours=(8, 10))
    back = Place("night", link).returns(0.0, 0, 3 * HOUR, 1e6)  # 8 to 11 o'clock: it waits for the next morning
    assert back == 32 * HOUR + 1


def test_places_are_drawn_once_and_by_share() -> None:
    network = Network({"a": Link(up_bps=1, down_bps=1, flops_per_s=1, share=3), "b": SLOW}, seed=4)
    places = [network.place(node) for node in range(4000)]
    assert places[:50] == [network.place(node) for node in range(50)]
    assert np.mean([place.name == "b" for place in places]) == pytest.approx(0.25, abs=0.02)
    speeds = np.log([place.speed for place in places if place.name == "b"])
    assert np.std(speeds) == pytest.approx(0.4, abs=0.03)
    assert {place.speed for place in places if place.name == "a"} == {1.0}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"classes": {}}, "link.classes is empty"),
        ({"classes": {"a": None}}, "link.classes.a=None is no class"),
        ({"classes": {"a": {"up_bps": 1, "down_bps": 1}}}, "link.classes.a.flops_per_s must be set for a link"),
        ({"classes": {"a": {"up_bps": 0, "down_bps": 1, "flops_per_s": 1}}}, r"link.classes.a.up_bps=0 is not in \(0"),
        ({"classes": {"a": {"up_bps": "1M", "down_bps": 1, "flops_per_s": 1}}}, "up_bps='1M' is not a number"),
        ({"classes": {"a": {"ups_bps": 1}}}, "ups_bps is not a setting of a link; did you mean up_bps"),
        ({"classes": {"a": {"up_bps": 1, "down_bps": 1, "flops_per_s": 1, "loss": 1}}}, r"loss=1 is not in \[0, 1\)"),
        (
            {"classes": {"a": {"up_bps": 1, "down_bps": 1, "flops_per_s": 1, "hours": 8}}},
            "link.classes.a.hours=8 is not a list",
        ),
        (
            {"classes": {"a": {"up_bps": 1, "down_bps": 1, "flops_per_s": 1, "hours": [8, 8]}}},
            "not two different hours",
        ),
        ({"classes": {"a": {"up_bps": 1, "down_bps": 1, "flops_per_s": 1, "share": 0}}}, "every share is 0"),
        ({"classes": {"a": {"up_bps": 1, "down_bps": 1, "flops_per_s": 1, "dropout": 1.0}}}, "exchanges that is not"),
    ],
    ids=range(11),
)
def test_settings_are_refused_by_name(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        network_of(given, seed=0)


def test_no_link_is_no_network() -> None:
    assert network_of(None, seed=0) is None


def test_a_clock_goes_on_with_the_reply_that_takes_longest() -> None:
    clock = VirtualClock(Network({"slow": SLOW}, seed=0))
    speeds = [clock.place(node).speed for node in (0, 1)]
    clock.send("a", 8_000)
    clock.send("b", 8_000)
    backs = [clock.receive(name, node, 1, 800, 3e6).at_s for node, name in enumerate("ab")]
    clock.now_s = max(backs)  # the server waits for both
    assert backs == pytest.approx([2 + 0.5 + 1.0 + 3 / speed + 0.5 + 1.0 for speed in speeds])
    clock.send("c", 800_000)  # leaves when both are back, and is lost
    clock.lose("c", 0)
    lap = clock.lap()
    assert lap["modelled_seconds"] == max(backs)
    assert lap["modelled_cost"] == pytest.approx(SLOW.cost(2 * 8_800 + 800_000))
    assert clock.lap() == {"modelled_seconds": 0.0, "modelled_cost": 0.0}


def test_a_clock_goes_on_from_the_rows_of_a_run() -> None:
    clock = VirtualClock(Network({"slow": SLOW}, seed=0))
    clock.go_on({"modelled_seconds": 5.0, "modelled_cost": 2.0})
    clock.go_on({"modelled_seconds": None})
    assert (clock.now_s, clock.cost) == (5.0, 2.0)
    assert not any(clock.lap().values())
    assert math.isfinite(clock.receive("unknown", 3, 1, 10, 0.0).at_s)


def test_nodes_drop_out_while_they_train_and_slow_ones_are_given_up() -> None:
    half = Link(up_bps=8.0, down_bps=8e9, flops_per_s=1.0, dropout=0.5)
    clock = VirtualClock(Network({"half": half}, seed=1), timeout_s=100.0)
    backs = []
    for number in range(400):
        clock.send(str(number), 0)
        backs.append(clock.receive(str(number), 0, number, 10, 5.0))
    assert {back.at_s for back in backs if back.sent} == {15.0}
    assert {back.at_s for back in backs if not back.sent} == {100.0}
    assert np.mean([back.sent for back in backs]) == pytest.approx(0.5, abs=0.08)
    clock.send("slow", 0)
    assert clock.receive("slow", 0, 0, 1000, 0.0) == (100.0, True, False)
