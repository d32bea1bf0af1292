"""The wire of split learning: coded models as ever at the ends of a round, bundles of tensors between them."""

from collections.abc import Sequence

from flwr.app import Message

from flsparse.codec import PayloadError
from flsparse.metering.ledger import Direction
from flsparse.strategies.core.courier import Wire
from flsparse.strategies.core.downlink import Broadcast
from flsparse.strategies.core.exchange import Exchange, Node
from flsparse.wire.bundle import Part, lines_of, packed_bundle, unbundle
from flsparse.wire.messages import packed_payload


class SplitWire(Wire):
    """A :class:`Wire` that lets bundles pass, and counts them by line."""

    def packed(self, message: Message, node: Node, exchange: Exchange) -> Message:
        """Return a bundle as it is, a model packed."""
        return super().packed(message, node, exchange) if packed_bundle(message.content) is None else message

    def count_accepted(self, parts: Sequence[Part], server_round: int) -> None:
        """Enter the dense bytes of a node's accepted parts: before that, their shapes are only its claim."""
        dense = sum(part.dense_bytes for part in parts)
        self.ledger.count("uplink", server_round, payload_bytes=0, wire_bytes=0, dense_bytes=dense)

    def count(
        self,
        direction: Direction,
        server_round: int,
        message: Message,
        broadcast: Broadcast | None,
        wire_bytes: int,
        node: Node,
    ) -> int:
        """Enter one message into the ledger, a bundle line by line; see :meth:`count_accepted` for a node's."""
        data = packed_bundle(message.content) if message.has_content() else None
        if data is None:
            dense = super().count(direction, server_round, message, broadcast, wire_bytes, node)
            if message.has_content() and (payload := packed_payload(message.content)):
                self.ledger.itemize(direction, server_round, "models", len(payload))
            return dense
        try:
            lines = lines_of(data)
        except PayloadError:  # refused in due course; its bytes have traveled all the same
            lines = {"framing": len(data)}
        dense = sum(part.dense_bytes for part in unbundle(data)) if direction == "downlink" else 0
        self.enter(direction, server_round, len(data), wire_bytes, dense, node)
        for line, size in lines.items():
            self.ledger.itemize(direction, server_round, line, size)
        return dense
