"""Models packed, messages counted, updates decoded: the server's end of the wire, once for all strategies."""

from collections import Counter
from collections.abc import Iterable, Mapping
from logging import WARNING

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from flsparse._flwr import log, wire_size
from flsparse.codec import ArraySpec, Codec, Layer, PayloadError, Reference, decode_layers, payload_info, specs_of
from flsparse.metering.ledger import Direction, Ledger
from flsparse.sparsity import default_prunable, match_prunable
from flsparse.strategies.core.downlink import LARGEST_WEIGHT, Broadcast, Downlink
from flsparse.strategies.core.exchange import Asks, Exchange, Node, Reply
from flsparse.wire.messages import (
    CONTROL,
    RECORD,
    Blueprint,
    arrayrecord_key,
    opaque_payload,
    pack,
    packed_payload,
    payload_size,
    record_of,
    to_numpy,
)
from flsparse.wire.mirror import reference_with

_LONGEST_REASON = 300
_MOST_MODELS = 1 << 16  # that one opaque payload stands for


class Wire:
    """Packs a strategy's messages, exchanges them and decodes the replies.

    Parameters
    ----------
    values, rounding : str
        How nodes code their updates (see :class:`flsparse.codec.Codec`).
    downlink : Downlink
        Codes the broadcast.
    prunable_patterns : list[str] or None
        Patterns of the arrays that may be pruned; None: floating arrays of two or more dimensions.
    seed : int
        Seed of the nodes' stochastic rounding.

    Attributes
    ----------
    ledger : Ledger
        Bytes of every message, both ways.
    counts : Counter
        ``failures``, ``rejected_payloads`` and ``resent_models`` of the run.
    problems : list[str]
        Failures of this round, a line each.
    """

    def __init__(
        self, values: str, rounding: str, downlink: Downlink, prunable_patterns: list[str] | None, seed: int
    ) -> None:
        Codec(values=values, rounding=rounding)  # refuses unknown names before anything starts
        self.values, self.rounding, self.downlink, self.seed = values, rounding, downlink, seed
        self.ledger = Ledger()
        self.counts: Counter[str] = Counter(failures=0, rejected_payloads=0)
        self.problems: list[str] = []
        self._patterns = prunable_patterns
        self._blueprint = Blueprint({}, [])
        self._model_record: ArrayRecord | None = None

    def __str__(self) -> str:
        whole, delta = self.downlink.codec.values, self.downlink.delta_codec.values
        return f"{self.values} ({self.rounding}) up, {whole}{'' if delta == whole else f' (deltas {delta})'} down"

    @property
    def specs(self) -> dict[str, ArraySpec]:
        """Shapes and dtypes of the global model's arrays, by name; empty before the first broadcast."""
        return self._blueprint.specs

    @property
    def prunable(self) -> list[str]:
        """Names of the arrays that may be pruned; empty before the first broadcast."""
        return self._blueprint.prunable

    def exchange(
        self,
        grid: Grid,
        messages: Iterable[Message],
        nodes: Mapping[int, Node],
        asks: Asks,
        server_round: int,
        timeout_s: float,
        uplink: Direction = "uplink",
        broadcasts: dict[int, Broadcast] | None = None,
    ) -> Exchange:
        """Send dense messages packed, at most one a node; iterate over the exchange for the replies.

        Parameters
        ----------
        grid, asks, server_round, timeout_s, uplink, broadcasts
            See :class:`Exchange`.
        messages : Iterable[Message]
            Messages with dense arrays are packed.
        nodes : Mapping[int, Node]
            Known nodes, by node id.
        """
        broadcasts = {} if broadcasts is None else broadcasts
        return Exchange(self, grid, asks, server_round, timeout_s, uplink, broadcasts).send(messages, nodes)

    def count(self, direction: Direction, server_round: int, message: Message) -> None:
        """Enter one message into the ledger."""
        self.ledger.count(
            direction,
            server_round,
            payload_bytes=payload_size(message.content) if message.has_content() else 0,
            wire_bytes=wire_size(message),
            dense_bytes=self._stands_for(message),
        )

    def _stands_for(self, message: Message) -> int:
        """Return the dense bytes of a message's payload."""
        if not message.has_content():
            return 0
        content = message.content
        if opaque_payload(content) is not None:
            said = record_of(content).get("models", 1)
            return self._blueprint.nbytes * (said if type(said) is int and 0 <= said <= _MOST_MODELS else 1)
        return self._blueprint.nbytes if packed_payload(content) is not None else payload_size(content)

    def refuse(self, reply: Reply, reason: str) -> None:
        """Drop a reply: its bytes count, its model does not."""
        self._take_back(reply.uplink, reply.server_round, self._stands_for(reply.message))
        self.drop(reply.node, reason, "rejected_payloads", reply.server_round)

    def take_back_model(self, server_round: int) -> None:
        """Take a model that its receiver could not decode out of the ledger's dense bytes."""
        self._take_back("downlink", server_round, self._blueprint.nbytes)

    def _take_back(self, direction: Direction, server_round: int, dense_bytes: int) -> None:
        self.ledger.count(direction, server_round, payload_bytes=0, wire_bytes=0, dense_bytes=-dense_bytes)

    def packed(self, message: Message, node: Node, exchange: Exchange) -> Message:
        """Return the message with its dense arrays packed, coded against the reference that the node holds."""
        content = message.content
        if not content.array_records or packed_payload(content) is not None or opaque_payload(content) is not None:
            return message
        key = arrayrecord_key(content)
        self._set_model(content.array_records[key])
        broadcast = self.downlink.to(node.held)
        record = ConfigRecord(
            {
                "reference": broadcast.coded_against,
                "hold": self.downlink.uses_references,
                "values": self.values,
                "rounding": self.rounding,
                "seed": self.seed,
                "round": exchange.server_round,
                "node": node.partition,
                **exchange.asks(node),
            }
        )
        if not broadcast.coded_against:
            record["blueprint"] = self._blueprint.to_bytes()
        exchange.broadcasts[node.node_id] = broadcast
        others = {name: value for name, value in content.items() if name != key}
        packed = RecordDict({key: pack(broadcast.payload), **others, RECORD: record})
        return Message(packed, node.node_id, message.metadata.message_type, ttl=message.metadata.ttl)

    def _set_model(self, record: ArrayRecord) -> None:
        if record is self._model_record:
            return
        self._model_record = record
        arrays = to_numpy(record)
        self.downlink.set_model(arrays)
        self.describe(arrays)

    def describe(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Learn the names, shapes and dtypes of the model, once, and which of its arrays may be pruned."""
        if not self._blueprint.specs:
            model = {name: array for name, array in arrays.items() if not name.startswith(CONTROL)}
            default = self._patterns is None
            prunable = default_prunable(model) if default else match_prunable(model, self._patterns or [])
            self._blueprint = Blueprint(specs_of(arrays), prunable)

    def update(self, reply: Reply, mirror: Mapping[str, np.ndarray] | None = None) -> list[Layer] | None:
        """Check and decode the update of a training reply; None where it is refused, which is logged and counted.

        Parameters
        ----------
        reply : Reply
            Its broadcast is the model that the node had received.
        mirror : Mapping[str, np.ndarray], optional
            The node's mirror, where the server has one: the reply may be coded against it, or against the broadcast.

        Returns
        -------
        list[Layer] or None
            The weights the node sent, sparse where they are.
        """
        payload = packed_payload(reply.content)
        if payload is None or reply.broadcast is None:
            reason = "its reply has no packed update: is CompressMod first in mods?"
            self.drop(reply.node, reason, "failures", reply.server_round)
            return None
        reference = reply.broadcast.reference
        try:
            base = reference if mirror is None else _named(payload, reference_with(mirror, reference), reference)
            layers = decode_layers(payload, like=self.specs, reference=None if self.values == "raw" else base)
            for layer in layers:
                if layer.values.dtype.kind == "f" and np.abs(layer.values).max(initial=0) > LARGEST_WEIGHT:
                    raise PayloadError(f"array {layer.name!r} has weights beyond {LARGEST_WEIGHT:g}")
        except PayloadError as error:
            self.refuse(reply, f"its payload was refused: {error}")
            return None
        return layers

    def drop(self, node: Node, reason: str | None, counter: str, server_round: int) -> None:
        """Log and count a node's failure; the round goes on without it."""
        last_line = ((reason or "").strip() or "no reason given").splitlines()[-1][:_LONGEST_REASON]
        last_line = "".join(c if c.isprintable() else "?" for c in last_line)  # it may be a stranger's words
        self.counts[counter] += 1
        self.problems.append(f"node {node.node_id}: {last_line}")
        log(WARNING, "Round %d: node %d dropped: %s", server_round, node.node_id, last_line)


def _named(payload: bytes, mirrored: Reference, broadcast: Reference) -> Reference:
    """Return the one of two references that a payload names; the broadcast where it names another one."""
    named = payload_info(payload).reference_id
    return mirrored if named is not None and mirrored.id.startswith(named) else broadcast
