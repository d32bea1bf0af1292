"""Frozen arrays for nodes that cannot make them: bit for bit, once to each, before its first round."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from logging import INFO

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from flsparse._flwr import log
from flsparse.codec import Codec
from flsparse.nets.arrays import Arrays
from flsparse.nets.frozen import digest
from flsparse.strategies.core.courier import Wire
from flsparse.wire.messages import FROZEN, OPAQUE, RECORD, pack


@dataclass(frozen=True)
class FrozenBase:
    """The frozen part of the model that nodes train.

    Attributes
    ----------
    arrays : dict[str, np.ndarray]
        By state-dict key.
    """

    arrays: Arrays

    @cached_property
    def digest(self) -> str:
        """The hash that nodes compare theirs with (:func:`flsparse.nets.frozen.digest`)."""
        return digest(self.arrays)

    @cached_property
    def _payload(self) -> bytes:
        return Codec("fp32").encode(self.arrays, exact=list(self.arrays))

    def deliver(
        self, grid: Grid, wire: Wire, server_round: int, timeout_s: float, node_ids: Sequence[int]
    ) -> frozenset[int]:
        """Send the arrays to nodes whose own are others; return the nodes that have them now."""
        log(INFO, "Sending %d B of frozen arrays to %d nodes that cannot make them", len(self._payload), len(node_ids))
        asked = ConfigRecord({FROZEN: self.digest, "models": 0})
        messages = [
            Message(RecordDict({FROZEN: pack(self._payload, OPAQUE), RECORD: asked}), node_id, MessageType.QUERY)
            for node_id in node_ids
        ]
        found = set()
        for reply in wire.exchange(grid, messages, {}, lambda _: {}, server_round, timeout_s):
            if reply.record.get(FROZEN) == self.digest:
                found.add(reply.node.node_id)
            else:
                reason = f"has other frozen arrays than the server sent it ({reply.record.get(FROZEN)!r})"
                wire.drop(reply.node, reason, "failures", server_round)
        return frozenset(found)
