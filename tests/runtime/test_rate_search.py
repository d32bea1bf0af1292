"""client.lr=auto: halving keeps the better rates, and the run is that of the rate found, bit for bit."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_federation import small_config

from flsparse.app.rehearsal import rehearse
from flsparse.app.settings import SettingsError
from flsparse.runs.folder import read_rows
from flsparse.runtime import InProcessGrid
from flsparse.runtime.apps import client_app
from flsparse.runtime.federation import run_federation
from flsparse.runtime.rate_search import RATES, check_searchable, few, halve, small, with_rate
from flsparse.strategies import Scaffold, SparsyFed, SplitMS

Config = dict[str, Any]
ALL_TRAINED_ON = {"name": "digits", "validation_fraction": 0.0}


def losses_of(best: float) -> Callable[[float], Callable[[int], float]]:
    return lambda rate: lambda rounds: abs(math.log(rate / best)) / rounds


@pytest.mark.parametrize("best", RATES)
def test_the_best_rate_is_left(best: float) -> None:
    found = halve({rate: losses_of(best)(rate) for rate in RATES})
    assert list(found)[-1] == best
    assert found.keys() == set(RATES)


def test_each_stage_trains_the_better_half_further() -> None:
    asked: list[tuple[float, int]] = []

    def lead(rate: float) -> Callable[[int], float]:
        def train(rounds: int) -> float:
            asked.append((rate, rounds))
            return losses_of(0.1)(rate)(rounds)

        return train

    halve({rate: lead(rate) for rate in (0.8, 0.4, 0.2, 0.1)}, (1, 5))
    assert asked == [(0.8, 1), (0.4, 1), (0.2, 1), (0.1, 1), (0.2, 5), (0.1, 5)]


def test_rates_that_diverge_are_out_and_all_of_them_are_an_error() -> None:
    found = halve({1.0: lambda _: math.inf, 0.1: lambda _: 2.0, 0.01: lambda _: 3.0})
    assert list(found)[-1] == 0.1
    with pytest.raises(ValueError, match=r"diverged at each of 1\.0, 0\.1: set a number"):
        halve({1.0: lambda _: math.inf, 0.1: lambda _: math.inf})


def test_a_search_asks_few_nodes_and_its_last_rate_is_never_above_the_first() -> None:
    cfg = {"client": {"lr": "auto", "lr_final": 0.006}, "num_clients": 100, "fraction_train": 0.1}
    cfg["strategy"] = {"name": "fedavg", "min_replies": 10}
    assert small(cfg, 0.4)["fraction_train"] == few(10) / 100
    assert small(cfg, 0.4)["strategy"] == {"name": "fedavg"}
    assert with_rate(cfg, 0.4)["client"] == {"lr": 0.4, "lr_final": 0.006}
    assert with_rate(cfg, 0.003)["client"]["lr_final"] < 0.003
    assert cfg["client"] == {"lr": "auto", "lr_final": 0.006}


def test_a_search_is_refused_where_it_would_leave_its_mark() -> None:
    check_searchable({}, SparsyFed(), in_process=False)
    check_searchable({}, Scaffold(), in_process=True)
    with pytest.raises(ValueError, match="not with strategy=split_ms: set a number"):
        check_searchable({}, SplitMS(cut="2"), in_process=True)
    with pytest.raises(ValueError, match="nodes keep state of scaffold"):
        check_searchable({}, Scaffold(), in_process=False)
    with pytest.raises(ValueError, match="nodes keep state of topk_update"):
        check_searchable({"parts": {"topk_update": {}}}, SparsyFed(), in_process=False)


@pytest.mark.parametrize("name", ["sparsyfed", "scaffold"])
def test_the_run_is_that_of_the_rate_found(name: str, tmp_path: Path) -> None:
    def run(lr: float | str, lr_final: float, folder: Path) -> Config:
        cfg: Config = {
            "seed": 0, "num_rounds": 4, "num_clients": 6, "fraction_train": 0.5, "output_dir": str(folder),
            "dataset": {"name": "digits", "train_samples": 300}, "model": {"name": "cnn"},
            "partition": {"kind": "iid"}, "strategy": {"name": name}, "codec": {"values": "int4"},
            "client": {"lr": lr, "lr_final": lr_final, "batch_size": 16, "local_epochs": 1},
            "evaluate": {"every": 1, "on": "test"},
        }  # fmt: skip
        return run_federation(InProcessGrid(client_app(cfg), 6), cfg)

    found = run("auto", 0.002, tmp_path / "auto")
    search = found["lr_search"]
    assert search["lr"] in RATES
    assert len(search["losses"]) == len(RATES)
    config = yaml.safe_load((tmp_path / "auto" / "config.yaml").read_text())["client"]
    assert config["lr"] == search["lr"]
    fixed = run(config["lr"], config["lr_final"], tmp_path / "fixed")
    assert "lr_search" not in fixed
    auto, given = (read_rows(tmp_path / each / "metrics.jsonl") for each in ("auto", "fixed"))
    for key in ("accuracy", "loss", "train_loss", "sparsity"):
        assert [row[key] for row in auto] == [row[key] for row in given]
    for key in ("uplink_wire_bytes", "downlink_wire_bytes"):
        more, same = ([row[key] - other[key] for row, other in zip(auto, given, strict=True)][i] for i in (0, 1))
        assert more > 0.1 * search["wire_bytes"] > abs(same)
    total = sum(found[f"{way}_wire_bytes"] - fixed[f"{way}_wire_bytes"] for way in ("uplink", "downlink"))
    assert total == pytest.approx(search["wire_bytes"], rel=0.01)
    assert json.loads((tmp_path / "auto" / "summary.json").read_text())["lr_search"]["lr"] == search["lr"]


def test_a_search_needs_data_to_compare_rates_on() -> None:
    with pytest.raises(SettingsError, match=r"dataset\.validation_fraction"):
        rehearse(small_config(client={**small_config()["client"], "lr": "auto"}, dataset=ALL_TRAINED_ON))


def test_trials_that_fail_say_why_and_are_out(tmp_path: Path) -> None:
    told: list[str] = []

    class Told:
        def on_start(self, info: Config) -> None: ...
        def on_round(self, row: Config) -> None: ...
        def on_end(self, summary: Config) -> None: ...
        def on_note(self, text: str) -> None:
            told.append(text)

    cfg = small_config(num_rounds=1, output_dir=None, strategy={"name": "fedavg"})
    cfg["client"] |= {
        "lr": "auto",
        "lr_final": 0.0,
        "weight_decay": 1.0,
        "batch_size": 2,
    }  # at 12.8: times -11.8 a step
    run_federation(InProcessGrid(client_app(cfg), cfg["num_clients"]), cfg, [Told()])
    assert len(told) > len(RATES)
    assert any("it is" in line for line in told)
    assert all(line.startswith("client.lr=auto: ") for line in told)
    assert any("loss" in line for line in told)
    assert any(" failed (round 1" in line and "training diverged" in line for line in told)
