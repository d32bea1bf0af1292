"""Paces: FedBuff by hand, sync where nobody is late, gone on with bit for bit, waste counted, misfits refused."""

import heapq
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from small_federation import small_config

from flsparse.clients import CompressMod
from flsparse.metering.clock import VirtualClock
from flsparse.metering.network import Link, Network, Place
from flsparse.runs.folder import read_checkpoint, read_rows
from flsparse.runtime import InProcessGrid
from flsparse.runtime.launcher import launch
from flsparse.runtime.making import make_strategy
from flsparse.strategies import FedAvg, RoundReport
from flsparse.strategies.core.pace import discount, fedbuff, in_flight, overselect, quorum
from flsparse.wire.messages import to_numpy, to_record

SECONDS = [1.0, 1.5, 2.5, 4.0, 7.0, 16.5]  # of an exchange with each node, whatever its bytes
CHANGES = [1.0, -2.0, 4.0, 8.0, -16.0, 32.0]  # that each node makes to the model it receives
ALIKE = {"a": {"up_bps": 1e6, "down_bps": 1e6, "flops_per_s": 1e30, "message_s": 5.0}}
UNLIKE = {"a": {"up_bps": 1e6, "down_bps": 1e6, "flops_per_s": 1e7, "spread": 1.5, "message_s": 1.0, "latency_s": 0.3}}


class Given(Network):
    """Nodes whose exchanges take so many seconds each."""

    def place(self, partition: int) -> Place:
        link = Link(up_bps=1e30, down_bps=1e30, flops_per_s=1.0, message_s=SECONDS[partition])
        return Place(str(partition), link)


def adding() -> ClientApp:
    """Return an app whose nodes add their number to the model."""
    app = ClientApp(mods=[CompressMod()])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        change = CHANGES[int(context.node_config["partition-id"])]
        model = to_numpy(message.content.array_records["arrays"])
        arrays = {name: array + np.float32(change) for name, array in model.items()}
        content = RecordDict({"arrays": to_record(arrays), "metrics": MetricRecord({"num-examples": 3})})
        return Message(content, reply_to=message)

    return app


class ByPlace(FedAvg):
    """FedAvg whose nodes go by their partition, without a hello: the grid's node ids tell it."""

    partitions: dict[int, int]

    def greet(self, grid: Any, server_round: int, timeout_s: float) -> None:
        super().greet(grid, server_round, timeout_s)
        for node_id, node in self.roster.nodes.items():
            self.roster.nodes[node_id] = type(node)(node_id, grid._partitions[node_id], node.held)


def run_adding(pace: Any, rounds: int) -> list[RoundReport]:
    strategy = ByPlace(values="raw", downlink_values="raw")
    strategy.wire.clock = VirtualClock(Given({}, 0))
    strategy.in_flight = in_flight(pace, strategy.name, strategy.why_sync, strategy.parts)
    reports: list[RoundReport] = []
    strategy.callbacks.append(reports.append)
    start = to_record({"w": np.zeros((3, 2), np.float32)})
    strategy.start(InProcessGrid(adding(), 6), start, num_rounds=rounds, train_config=ConfigRecord({"lr": 1.0}))
    return reports


def by_hand(wanted: int, rounds: int, most: float) -> list[tuple[float, float, float]]:
    """Return model, time and mean staleness of each round of FedBuff, as its paper has it."""
    flight = [(seconds, node, 1) for node, seconds in enumerate(SECONDS)]
    heapq.heapify(flight)
    x, now, rows = 0.0, 0.0, []
    for server_round in range(1, rounds + 1):
        taken: list[tuple[int, int]] = []
        while len(taken) < wanted:
            now, node, version = heapq.heappop(flight)
            if server_round - version <= most:
                taken.append((node, server_round - version))
            else:
                heapq.heappush(flight, (math.inf, node, version))  # it waits for the next round to be asked
        x += sum(CHANGES[node] / math.sqrt(1 + late) for node, late in taken) / wanted
        rows.append((x, now, sum(late for _, late in taken) / wanted))
        back = [node for node, _ in taken] + [node for when, node, _ in flight if when == math.inf]
        flight = [each for each in flight if each[0] < math.inf]
        for node in back:
            heapq.heappush(flight, (now + SECONDS[node], node, server_round + 1))
    return rows


@pytest.mark.parametrize(("wanted", "most"), [(1, 99), (2, 99), (3, 99), (2, 3)], ids=str)
def test_fedbuff_is_what_its_paper_says(wanted: int, most: int) -> None:
    reports = run_adding(fedbuff(replies=wanted / 6, staleness_max=most), rounds=15)
    for report, (x, _, staleness) in zip(reports, by_hand(wanted, 15, most), strict=True):
        assert to_numpy(report.arrays)["w"] == pytest.approx(np.full((3, 2), x), rel=1e-5, abs=1e-5)
        assert report.metrics["staleness"] == pytest.approx(staleness)
        assert report.metrics["replies"] == wanted
    assert max(row[2] for row in by_hand(wanted, 15, most)) >= 1  # some were late


def test_a_quorum_takes_the_fast_and_counts_the_late_less() -> None:
    reports = run_adding(quorum(replies=0.5, grace=0.0), rounds=2)
    # Round 1 takes nodes 0, 1, 2 after 2.5 s. Round 2 asks these again: node 0 is back at 3.5, nodes 1 and 3 at 4.
    first = (1 - 2 + 4) / 3
    assert to_numpy(reports[0].arrays)["w"][0, 0] == pytest.approx(first)
    late = 8 / math.sqrt(2)
    assert to_numpy(reports[1].arrays)["w"][0, 0] == pytest.approx(first + (1 - 2 + late) / 3)
    assert reports[1].metrics["late_replies"] == 1


def test_grace_is_waited_for() -> None:
    (report,) = run_adding(quorum(replies=0.5, grace=0.7), rounds=1)
    assert report.metrics["replies"] == 4  # 2.5 s and 1.75 more
    (report,) = run_adding(quorum(replies=0.5, grace=0.5), rounds=1)
    assert report.metrics["replies"] == 3


def test_overselection_wastes_the_late() -> None:
    reports = run_adding(overselect(replies=0.5), rounds=8)
    assert all(report.metrics["staleness"] == 0 for report in reports)
    assert all(report.metrics["replies"] >= 1 for report in reports)
    assert sum(report.metrics["wasted_bytes"] for report in reports) > 0


def test_discount() -> None:
    assert [discount(s) for s in (0, 3, 8)] == [1.0, 0.5, pytest.approx(1 / 3)]


def paced(name: str, classes: Any, **changes: Any) -> dict[str, Any]:
    settings = {"pace": {"name": name}, "link": {"name": "own", "classes": classes}, "fraction_train": 1.0}
    return small_config(**(settings | changes))


@pytest.mark.parametrize("strategy", ["sparsyfed", "fedavg"])
def test_fedbuff_of_equal_nodes_is_sync_bit_for_bit(strategy: str, tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"strategy": {"name": strategy}, "num_rounds": 3}
    paces: dict[str, dict[str, Any]] = {"sync": {"name": "sync"}, "fedbuff": {"name": "fedbuff", "replies": 1.0}}
    for name, pace in paces.items():
        launch(paced("", ALIKE, **(chosen | {"pace": pace, "output_dir": str(tmp_path / name)})))
    first, second = (read_checkpoint(tmp_path / name)["arrays"] for name in ("sync", "fedbuff"))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in ("sync", "fedbuff")]
    for key in ("loss", "uplink_bytes", "downlink_bytes", "train_loss"):
        assert [row[key] for row in rows[0]] == [row[key] for row in rows[1]]


@pytest.mark.parametrize("pace", ["fedbuff", "quorum", "overselect"])
def test_a_paced_run_is_gone_on_with_bit_for_bit(pace: str, tmp_path: Path) -> None:
    launch(paced(pace, UNLIKE, num_rounds=6, output_dir=str(tmp_path / "whole")))
    launch(paced(pace, UNLIKE, num_rounds=6, output_dir=str(tmp_path / "half")), [Stop(3)])
    launch(paced(pace, UNLIKE, num_rounds=6, resume=str(tmp_path / "half")))
    first, second = (read_checkpoint(tmp_path / name)["arrays"] for name in ("whole", "half"))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in ("whole", "half")]
    for key in ("loss", "staleness", "late_replies", "in_flight", "uplink_bytes", "uplink_ratio", "replies"):
        assert [row[key] for row in rows[0]] == [row[key] for row in rows[1]], key
    assert pace == "overselect" or any(row["late_replies"] for row in rows[0][3:])


class Stop:
    """Interrupts a run after a round."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_start(self, info: dict[str, Any]) -> None:
        """Do nothing."""

    def on_round(self, row: dict[str, Any]) -> None:
        if row["server_round"] == self.after + 1:
            raise KeyboardInterrupt

    def on_end(self, summary: dict[str, Any]) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"link": None}, "add link=lte"),
        ({"strategy": {"name": "scaffold"}}, "pace=fedbuff does not go with strategy=scaffold, whose control variates"),
        ({"strategy": {"name": "dppf"}}, "whose workers exchange in step"),
        ({"parts": {"control_variates": {}}}, "pace=fedbuff does not go with parts.control"),
        ({"pace": {"name": "fedbuf"}}, "did you mean fedbuff"),
        ({"pace": {"name": "fedbuff", "replies": 0.0}}, r"pace.replies=0.0 is not in \(0, 1\]"),
        ({"pace": {"name": "overselect", "grace": 1.0}}, "pace.grace is not a setting of overselect"),
    ],
    ids=range(7),
)
def test_misfits_are_refused_before_the_start(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_strategy(paced("fedbuff", UNLIKE, **changes), [])


def test_every_averaging_method_goes_at_every_pace() -> None:
    named: list[Callable[..., Any]] = [quorum, overselect, fedbuff]
    for strategy in ("fedavg", "fedprox", "topk", "sparsyfed"):
        for pace in named:
            made = make_strategy(paced(pace.__name__, UNLIKE, strategy={"name": strategy}), [])
            assert made.in_flight is not None


def test_a_quorum_that_is_not_reached_is_waited_for_until_the_lost_are_given_up() -> None:
    classes = {"a": {"up_bps": 1e9, "down_bps": 1e9, "flops_per_s": 1e12, "dropout": 0.5}}
    strategy = {"name": "fedavg", "round_timeout_s": 300}
    cfg = paced("quorum", classes, strategy=strategy, pace={"name": "quorum", "replies": 1.0}, num_rounds=3, seed=2)
    summary = launch(cfg)
    assert summary["failures"] > 0
    assert 300 <= summary["modelled_seconds"] < 901


@pytest.mark.parametrize("pace", ["sync", "quorum", "overselect", "fedbuff"])
def test_ratios_of_dense_fedavg_are_one_at_every_pace(pace: str) -> None:
    codec = {"values": "raw", "rounding": "nearest", "downlink_values": "raw"}
    summary = launch(paced(pace, UNLIKE, strategy={"name": "fedavg"}, codec=codec))
    assert summary["uplink_ratio"] == pytest.approx(1.0, rel=0.01)
    assert summary["downlink_ratio"] == pytest.approx(1.0, rel=0.01)


def test_a_run_goes_on_at_its_own_pace(tmp_path: Path) -> None:
    pace = {"name": "fedbuff", "replies": 0.4}
    launch(paced("", UNLIKE, num_rounds=2, pace=pace, output_dir=str(tmp_path / "run")))
    with pytest.raises(ValueError, match=r"its pace\.replies was 0\.4"):
        launch(paced("", UNLIKE, num_rounds=4, pace=pace | {"replies": 0.9}, resume=str(tmp_path / "run")))
