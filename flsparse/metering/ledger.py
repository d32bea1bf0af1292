"""Byte ledger: every message of a run, counted once, in both directions."""

from dataclasses import dataclass, field, fields
from typing import Literal

Direction = Literal["uplink", "downlink", "evaluation"]


@dataclass
class Traffic:
    """Traffic of one direction in one round.

    Attributes
    ----------
    messages : int
        Messages that carried a payload.
    payload_bytes : int
        Sum of the payloads' lengths, in bytes.
    wire_bytes : int
        Sum over all messages, with Flower's framing (records, keys, metadata), in bytes.
    dense_bytes : int
        Size of the same payloads as plain arrays, in bytes.
    """

    messages: int = 0
    payload_bytes: int = 0
    wire_bytes: int = 0
    dense_bytes: int = 0

    @property
    def ratio(self) -> float:
        """Dense bytes over payload bytes: above 1 is good; 0 when nothing was sent."""
        return self.dense_bytes / self.payload_bytes if self.payload_bytes else 0.0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass
class Ledger:
    """Counts the traffic of a run, by round and direction.

    Attributes
    ----------
    traffic : dict[tuple[str, int], Traffic]
        By direction and round.
    lines : dict[tuple[str, int, str], int]
        Payload bytes of itemized payloads, by direction, round and line.

    Examples
    --------
    >>> ledger = Ledger()
    >>> ledger.count("uplink", 1, payload_bytes=250, wire_bytes=900, dense_bytes=1000)
    >>> ledger.total("uplink").ratio
    4.0
    """

    traffic: dict[tuple[str, int], Traffic] = field(default_factory=dict)
    lines: dict[tuple[str, int, str], int] = field(default_factory=dict)

    def count(
        self, direction: Direction, server_round: int, *, payload_bytes: int, wire_bytes: int, dense_bytes: int
    ) -> None:
        """Add one message.

        Parameters
        ----------
        direction : {"uplink", "downlink", "evaluation"}
            Uplink is from the node to the server; so is evaluation, models fetched to be evaluated.
        server_round : int
            Round the message belongs to; for the hello, the round that it comes before.
        payload_bytes, wire_bytes, dense_bytes : int
            Sizes in bytes (see :class:`Traffic`); a message without payload has 0 payload and dense bytes.
        """
        sent = Traffic(int(payload_bytes > 0), payload_bytes, wire_bytes, dense_bytes)
        self.traffic[direction, server_round] = self.of_round(direction, server_round) + sent

    def of_round(self, direction: Direction, server_round: int) -> Traffic:
        """Return the traffic of one direction in one round."""
        return self.traffic.get((direction, server_round), Traffic())

    def total(self, direction: Direction) -> Traffic:
        """Return the traffic of one direction over all rounds."""
        return sum((t for (d, _), t in self.traffic.items() if d == direction), Traffic())

    def itemize(self, direction: Direction, server_round: int, line: str, payload_bytes: int) -> None:
        """Add a part of a counted payload to a line, such as ``"labels"``, in bytes."""
        key = (direction, server_round, line)
        self.lines[key] = self.lines.get(key, 0) + payload_bytes

    def lines_of_round(self, direction: Direction, server_round: int) -> dict[str, int]:
        """Return the payload bytes of each line, for methods that itemize their payloads."""
        return {line: n for (d, r, line), n in self.lines.items() if (d, r) == (direction, server_round)}
