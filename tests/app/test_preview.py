"""A dry run's totals are those of the run: exact where it is dense, near where the sparsity rises."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_federation import small_config

from flsparse.app.dry_run import dry_run_tables
from flsparse.app.preview import preview
from flsparse.runtime import launch

DENSE = {"strategy": {"name": "fedavg"}, "codec": {"values": "raw", "rounding": "nearest", "downlink_values": "raw"}}


def test_the_totals_of_a_dense_run_are_exact(tmp_path: Path) -> None:
    cfg = small_config(num_rounds=2, output_dir=str(tmp_path), **DENSE)
    found, summary = preview(cfg), launch(cfg)
    assert found.run_uplink_bytes == summary["uplink_bytes"]
    assert found.run_downlink_bytes == summary["downlink_bytes"]


@pytest.mark.parametrize("ramp", [True, False])
def test_the_totals_of_a_sparse_run_follow_its_ramp(ramp: bool, tmp_path: Path) -> None:
    strategy = {"name": "sparsyfed", "sparsity": 0.9, "ramp": ramp}
    cfg = small_config(num_rounds=9, strategy=strategy, output_dir=str(tmp_path))
    found, summary = preview(cfg), launch(cfg)
    assert found.run_uplink_bytes == pytest.approx(summary["uplink_bytes"], rel=0.35)
    assert summary["downlink_bytes"] <= found.run_downlink_bytes < 3 * summary["downlink_bytes"]


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ({"name": "sparsyfed", "sparsity": 0.9}, "as configured: about"),
        ({"name": "d_psgd", "topology": {"name": "ring"}, "num_nodes": 6}, "over the links, without evaluations"),
        (
            {"name": "split_ms", "cut": "2", "sparsity": 0.99, "bits": 2, "mask_rounding": "round"}
            | {"steps_per_round": 3, "batches_per_message": 1},
            "the run, cut at 2: about",
        ),
    ],
)
def test_every_kind_of_strategy_has_totals(
    strategy: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Console(width=80).print(*dry_run_tables(small_config(strategy=strategy)))
    out = capsys.readouterr().out
    assert said in out
    assert max(map(len, out.splitlines())) <= 80
