"""The survey before round 1: nodes with data of their own say what they hold, and the server finds what they share."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from logging import WARNING
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from flsparse import _flwr
from flsparse._flwr import log
from flsparse.tasks.agreement import Agreement, agree
from flsparse.wire.messages import HOLDINGS, RECORD, SURVEY, record_of

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


def survey(grid: Grid, nodes: Sequence[int], declared: Mapping[str, Any]) -> Survey:
    """Ask nodes what data they hold.

    A node that does not answer, or whose data cannot be united with the others', is named in the log; the hello then
    tells it so.

    Parameters
    ----------
    grid : Grid
    nodes : Sequence[int]
        Node ids.
    declared : Mapping
        Settings of the data set: what they declare holds.

    Raises
    ------
    ValueError
        No node has data that others could share.
    """
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
    agreement, left_out = agree(held, declared)
    for problem in [*problems, *(f"node of partition {node} {reason}" for node, reason in left_out.items())]:
        log(WARNING, "Left out for its data: %s", problem)
    return Survey(agreement, down, up)
