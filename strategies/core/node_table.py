"""What the server saw of each node in a round: a row a node, as ``nodes.jsonl`` has them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import MessageType

from flsparse.clients.parts.questions import NUM_EXAMPLES, RECEIVED, TRAINED
from flsparse.metering.ledger import Direction
from flsparse.strategies.core.exchange import Node, Reply
from flsparse.strategies.core.measures import numbers_of

_TOLD = ("train-", f"{RECEIVED}-", f"{TRAINED}-")  # beginnings of the metrics of a training that are kept
_MOST_FAILURES = 8  # of a node in a round


@dataclass
class _Seen:
    """What was seen of one node since the last rows were taken."""

    sent: dict[str, int] = field(default_factory=dict)
    told: dict[str, float] = field(default_factory=dict)
    examples: float | None = None
    seconds: float | None = None
    update_norm: float | None = None
    failures: list[str] = field(default_factory=list)


class NodeTable:
    """Collects bytes, metrics and failures by node, and returns a round's rows.

    A row holds ``node`` (partition id), ``server_round``; ``examples`` that the node says it has trained on,
    ``test_examples`` and ``class_counts`` that it told in the hello; ``update_norm`` (l2, of what the server decoded);
    ``seconds`` of its local steps by its own clock; ``uplink_bytes``, ``downlink_bytes`` and both ``..._wire_bytes``;
    ``failures``, a reason each. What it did not do or say is null. Behind them stand the losses and metrics that it
    told: ``train_...`` while training, ``received_...`` and ``trained_...`` of the model before and after,
    ``evaluate_...`` of the one that the round ended with.
    """

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}  # by node id

    def _of(self, node: Node) -> _Seen:
        return self._seen.setdefault(node.node_id, _Seen())

    def count(self, node: Node, direction: Direction, payload_bytes: int, wire_bytes: int) -> None:
        """Add a message to a node or from it, in bytes."""
        sent = self._of(node).sent
        for key, size in ((f"{direction}_bytes", payload_bytes), (f"{direction}_wire_bytes", wire_bytes)):
            sent[key] = sent.get(key, 0) + size

    def hear(self, reply: Reply) -> None:
        """Note the metrics of an answer; they are its node's word."""
        kind, numbers, seen = reply.message.metadata.message_type, numbers_of(reply), self._of(reply.node)
        if kind == MessageType.EVALUATE:
            seen.told |= {f"evaluate-{key}": value for key, value in numbers.items() if key != NUM_EXAMPLES}
        elif not kind.startswith(MessageType.EVALUATE):
            seen.examples = numbers.get(NUM_EXAMPLES, seen.examples)
            if "steps" in numbers and "step-seconds" in numbers:
                seen.seconds = numbers["steps"] * numbers["step-seconds"]
            seen.told |= {key: value for key, value in numbers.items() if key.startswith(_TOLD)}

    def moved(self, node: Node, norm: float) -> None:
        """Note the norm of a node's update."""
        self._of(node).update_norm = norm

    def fail(self, node: Node, reason: str) -> None:
        """Note why a node was dropped."""
        failures = self._of(node).failures
        if len(failures) < _MOST_FAILURES:
            failures.append(reason)

    def take(self, server_round: int, nodes: Mapping[int, Node]) -> list[dict[str, Any]]:
        """Return the rows of a round, by partition id, and begin anew; nodes without one are left out.

        Parameters
        ----------
        server_round : int
        nodes : Mapping[int, Node]
            Known nodes, by node id.
        """
        found = {nodes[node_id]: seen for node_id, seen in self._seen.items() if node_id in nodes}
        self._seen = {}
        return [_row(server_round, node, found[node]) for node in sorted(found, key=lambda node: node.partition)]


def _row(server_round: int, node: Node, seen: _Seen) -> dict[str, Any]:
    ways = (f"{way}{kind}_bytes" for kind in ("", "_wire") for way in ("uplink", "downlink"))
    return {
        "server_round": server_round,
        "node": node.partition,
        "examples": seen.examples,
        "test_examples": node.num_test_examples or None,
        "class_counts": list(node.class_counts) or None,
        "update_norm": seen.update_norm,
        "seconds": seen.seconds,
        **{key: seen.sent.get(key, 0) for key in ways},
        "failures": seen.failures,
        **{key.replace("-", "_"): value for key, value in seen.told.items()},
    }
