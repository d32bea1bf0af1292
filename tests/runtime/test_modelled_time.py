"""A run over links: seconds and money in every row, in the dry run's words, and gone on with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flsparse.app.dry_run import dry_run_tables
from flsparse.metering.network import network_of
from flsparse.runs.folder import read_rows
from flsparse.runtime.launcher import launch

Config = Callable[..., dict[str, Any]]
LINK = {
    "name": "two",
    "classes": {
        "near": {"up_bps": 1e6, "down_bps": 1e7, "flops_per_s": 1e9, "cost_per_mb": 1.0, "message_s": 1.0},
        "far": {"up_bps": 1e4, "down_bps": 1e4, "flops_per_s": 1e8, "cost_per_mb": 50, "latency_s": 2.0, "spread": 0.3},
    },
}


def test_each_row_has_its_seconds_and_its_cost(config: Config, tmp_path: Path) -> None:
    summary = launch(config(num_rounds=3, link=LINK, output_dir=str(tmp_path / "run")))
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert summary["modelled_seconds"] == pytest.approx(sum(row["modelled_seconds"] for row in rows))
    assert summary["modelled_cost"] == pytest.approx(sum(row["modelled_cost"] for row in rows))
    # Every round asks a node that is far: latency both ways, and its bytes over 10 kbit/s, at the least.
    assert all(row["modelled_seconds"] > 4 for row in rows)
    again = launch(config(num_rounds=3, link=LINK, output_dir=None))
    assert again["modelled_seconds"] == pytest.approx(summary["modelled_seconds"], rel=1e-3)

    resumed = launch(config(num_rounds=4, link=LINK, resume=str(tmp_path / "run")))
    assert resumed["modelled_seconds"] > summary["modelled_seconds"] + 4
    assert read_rows(tmp_path / "run" / "metrics.jsonl")[:3] == rows


def test_fewer_bytes_are_less_time_and_money(config: Config) -> None:
    codec = {"values": "raw", "rounding": "nearest", "downlink_values": "raw"}
    dense = launch(config(num_rounds=2, link=LINK, strategy={"name": "fedavg"}, codec=codec))
    sparse = launch(config(num_rounds=2, link=LINK, output_dir=None))
    sent = [sum(each[f"{way}_wire_bytes"] for way in ("uplink", "downlink")) for each in (dense, sparse)]
    assert dense["modelled_seconds"] > 2 * sparse["modelled_seconds"]
    assert dense["modelled_cost"] / sparse["modelled_cost"] == pytest.approx(sent[0] / sent[1], rel=0.1)


def test_without_links_there_is_no_such_time(config: Config) -> None:
    summary = launch(config(num_rounds=1))
    assert summary["modelled_seconds"] is summary["modelled_cost"] is None


def test_the_target_is_told_in_modelled_seconds(config: Config) -> None:
    cfg = config(num_rounds=4, link=LINK, evaluate={"every": 1, "on": "test", "target": 0.02})
    summary = launch(cfg)
    assert summary["to_target"]["rounds"] == 3
    assert 12 < summary["to_target"]["modelled_seconds"] < summary["modelled_seconds"]


def test_a_dry_run_totals_each_class(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = config(link=LINK)
    for table in dry_run_tables(cfg):
        Console(width=80).print(table)
    out = capsys.readouterr().out
    network = network_of(LINK, cfg["seed"])
    assert network is not None
    names = {network.place(node).name for node in range(6)}
    assert names == {"near", "far"}
    assert all(name in out for name in names)
    assert "the run, dense FedAvg: " in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_dry_run_foresees_a_run(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """Dense, so that sizes are known beforehand, and on equal lines: rounds are what the dry run says."""
    codec = {"values": "raw", "rounding": "nearest", "downlink_values": "raw"}
    one = {"name": "one", "classes": {"far": LINK["classes"]["far"] | {"spread": 0.0}}}  # type: ignore[index]
    cfg = config(num_rounds=3, link=one, strategy={"name": "fedavg"}, codec=codec)
    for table in dry_run_tables(cfg):
        Console(width=100).print(table)
    (line,) = [each for each in capsys.readouterr().out.splitlines() if "dense FedAvg" in each]
    minutes, seconds = line.split("FedAvg: ")[1].split(" min")[0].split(":")
    assert launch(cfg)["modelled_seconds"] == pytest.approx(60 * int(minutes) + int(seconds), rel=0.05)


def test_nodes_that_drop_out_are_waited_for_as_long_as_is_said(config: Config) -> None:
    one = {"a": {"up_bps": 1e9, "down_bps": 1e9, "flops_per_s": 1e12, "dropout": 0.5}}
    link, strategy = {"name": "own", "classes": one}, {"name": "sparsyfed", "sparsity": 0.9}
    with pytest.raises(ValueError, match=r"link.classes.a.dropout=0.5 needs an end"):
        launch(config(link=link, strategy=strategy))
    settings = {"fraction_train": 1.0, "num_rounds": 4, "link": link, "output_dir": None}
    summary = launch(config(**settings, strategy=strategy | {"round_timeout_s": 300}))
    assert 6 <= summary["failures"] <= 18  # of 24
    assert summary["modelled_seconds"] == pytest.approx(4 * 300, abs=1)
    paced = launch(config(**settings, strategy=strategy | {"round_timeout_s": 300}, pace={"name": "fedbuff"}))
    assert paced["modelled_seconds"] < summary["modelled_seconds"]
