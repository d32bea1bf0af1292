"""Tables of a dry run."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from flsparse.app.link_table import expected, link_table
from flsparse.app.pace_table import pace_table
from flsparse.app.preview import cut_preview, graph_preview, no_preview, preview, preview_table
from flsparse.configs import build
from flsparse.metering.network import network_of
from flsparse.strategies import STRATEGIES
from flsparse.strategies.core.loop import RoundLoop
from flsparse.strategies.core.pace import PACES
from flsparse.tasks import build_task


def dry_run_tables(cfg: Mapping[str, Any]) -> list[Table]:
    """Return the bytes of a run in the terms of its strategy: messages, links of a graph, places to cut, or nothing.

    Where the nodes' links are known, what they make of the messages follows.
    """
    strategy = STRATEGIES.get(cfg["strategy"]["name"], RoundLoop)
    if strategy.previewed_as != "exchange":
        return [{"cut": cut_preview, "graph": graph_preview, "nothing": no_preview}[strategy.previewed_as](cfg)]
    found, network = preview(cfg), network_of(cfg.get("link"), int(cfg["seed"]))
    if network is None:
        return [preview_table(found)]
    each = expected(cfg, build_task(cfg), found, network)
    settings = dict(cfg.get("pace") or {"name": "sync"})
    own = build(PACES, settings.pop("name"), settings, what="pace")
    paces = pace_table(each.returns, found.nodes, found.sampled, found.num_rounds, int(cfg["seed"]), own)
    return [preview_table(found), link_table(cfg, each, found, network), paces]
