"""A paced run on Ray and on a SuperLink, where the clock is the real one."""

from pathlib import Path
from typing import Any

import pytest
from small_federation import small_config

from flsparse.runs.folder import read_rows
from flsparse.runtime import launch

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.parametrize("runtime", ["simulation", "deployment"])
def test_fedbuff_where_nodes_run_by_themselves(runtime: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"name": runtime} | ({"num_cpus": 1} if runtime == "simulation" else {})
    cfg = small_config(
        num_clients=2,
        num_rounds=4,
        fraction_train=1.0,
        runtime=settings,
        pace={"name": "fedbuff", "replies": 0.5},
        output_dir=str(tmp_path / "run"),
    )
    summary = launch(cfg)
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert summary["status"] == "completed"
    assert [row["replies"] for row in rows] == [1, 1, 1, 1]
    assert rows[0]["staleness"] == 0
    assert any(row["in_flight"] for row in rows[:-1])
    # Every message's bytes are in some row.
    for key in ("uplink_bytes", "downlink_bytes"):
        assert sum(row[key] for row in rows) == summary[key]
