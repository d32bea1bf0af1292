"""What the dry run foretells of a pace is what the run does, where bytes do not matter."""

from typing import Any

import pytest
from small_federation import small_config

from flsparse.app.link_table import expected
from flsparse.app.pace_table import foretell
from flsparse.app.preview import preview
from flsparse.metering.network import network_of
from flsparse.runtime.launcher import launch
from flsparse.strategies.core.pace import PACES
from flsparse.tasks import build_task

CLASSES = {"a": {"up_bps": 1e15, "down_bps": 1e15, "flops_per_s": 1e7, "spread": 1.0}}


@pytest.mark.parametrize("pace", PACES)
def test_a_run_is_foretold(pace: str) -> None:
    link = {"name": "own", "classes": CLASSES}
    cfg: dict[str, Any] = small_config(link=link, pace={"name": pace}, fraction_train=0.7, num_rounds=5)
    task, network = build_task(cfg), network_of(link, cfg["seed"])
    assert network is not None
    each, made = expected(cfg, task, preview(cfg), network), PACES[pace]()
    asked = 4
    found = foretell(made, each.returns, 6, asked, replies=asked * 3, seed=cfg["seed"])
    summary = launch(cfg | {"num_rounds": found.models})
    assert summary["modelled_seconds"] == pytest.approx(found.seconds, rel=1e-3)
