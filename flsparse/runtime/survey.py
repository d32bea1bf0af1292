"""The survey before round 1: nodes with data of their own say what they hold, and the server finds what they share."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from logging import INFO, WARNING
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from flsparse import _flwr
from flsparse._flwr import log
from flsparse.runs.folder import read_checkpoint
from flsparse.tasks.agreement import Agreement, agree
from flsparse.wire.messages import HOLDINGS, RECORD, SURVEY, record_of

_PATIENCE_S = 300.0  # for the last nodes to connect
_TIMEOUT_S = 600.0  # a node may have to look through a large folder


@dataclass(frozen=True)
class Survey:
    """An agreement, and what it cost.

    Attributes
    ----------
    agreement : Agreement
    downlink_wire_bytes, uplink_wire_bytes : int
        Bytes of the questions and the answers, with Flower's framing.
    """

    agreement: Agreement
    downlink_wire_bytes: int
    uplink_wire_bytes: int


def wait_for_nodes(grid: Grid, wanted: int, at_least: int | None = None) -> list[int]:
    """Wait until ``wanted`` nodes are connected, and return their ids.

    With ``at_least``, after five minutes that many will do: one dead device does not stop a run.
    """
    began, told = time.monotonic(), False
    while len(present := list(grid.get_node_ids())) < wanted:
        if at_least is not None and len(present) >= at_least and time.monotonic() - began > _PATIENCE_S:
            log(WARNING, "Going on with %d of %d nodes", len(present), wanted)
            break
        if not told:
            log(INFO, "Waiting for nodes: %d of %d are connected", len(present), wanted)
            told = True
        time.sleep(0.5)
    return present


def survey(grid: Grid, cfg: Mapping[str, Any]) -> Survey:
    """Ask the nodes of a run what data they hold; a run that goes on keeps to what was agreed at its start.

    A node that does not answer, or whose data cannot be united with the others', is named in the log; the hello then
    tells it so.

    Parameters
    ----------
    grid : Grid
    cfg : Mapping
        The composed configuration: what ``dataset`` declares holds.

    Raises
    ------
    ValueError
        No node has data that others could share.
    """
    at_least = (cfg.get("strategy") or {}).get("min_available_nodes")
    nodes = wait_for_nodes(grid, int(cfg["num_clients"]), at_least or 1)
    if cfg.get("resume"):
        return Survey(Agreement(**json.loads(read_checkpoint(cfg["resume"])["agreed"])), 0, 0)
    messages = [Message(RecordDict({RECORD: ConfigRecord({SURVEY: True})}), node, MessageType.QUERY) for node in nodes]
    down = sum(map(_flwr.wire_size, messages))
    held: dict[int, Mapping[str, Any]] = {}
    problems: list[str] = []
    up = 0
    for reply in grid.send_and_receive(messages, timeout=_TIMEOUT_S):
        up += _flwr.wire_size(reply)
        if reply.has_error():
            problems.append(f"node {reply.metadata.src_node_id}: {reply.error.reason}")
            continue
        said = record_of(reply.content)
        try:
            held[int(str(said.get("partition-id")))] = dict(json.loads(str(said[HOLDINGS])))
        except (KeyError, ValueError, TypeError):
            problems.append(f"node {reply.metadata.src_node_id}: does not say what it holds: update it")
    if not held:
        raise ValueError(f"no node says what data it holds: {'; '.join(problems[:3]) or 'none answered'}")
    agreement, left_out = agree(held, cfg["dataset"])
    for problem in [*problems, *(f"node of partition {node} {reason}" for node, reason in left_out.items())]:
        log(WARNING, "Left out for its data: %s", problem)
    return Survey(agreement, down, up)
