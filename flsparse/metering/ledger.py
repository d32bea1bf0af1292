"""Byte ledger: every message of a run, counted once, in both directions."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
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


class Ledger:
    """Counts the traffic of a run, by round and direction.

    Examples
    --------
    >>> ledger = Ledger()
    >>> ledger.count("uplink", 1, payload_bytes=250, wire_bytes=900, dense_bytes=1000)
    >>> ledger.total("uplink").ratio
    4.0
    """

    def __init__(self) -> None:
        self._traffic: dict[tuple[str, int], Traffic] = {}
        self._lines: dict[tuple[str, int, str], int] = {}

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
        self._traffic[direction, server_round] = self.of_round(direction, server_round) + sent

    def of_round(self, direction: Direction, server_round: int) -> Traffic:
        """Return the traffic of one direction in one round."""
        return self._traffic.get((direction, server_round), Traffic())

    def total(self, direction: Direction) -> Traffic:
        """Return the traffic of one direction over all rounds."""
        return sum((t for (d, _), t in self._traffic.items() if d == direction), Traffic())

    def itemize(self, direction: Direction, server_round: int, line: str, payload_bytes: int) -> None:
        """Add a part of a counted payload to a line, such as ``"labels"``, in bytes."""
        key = (direction, server_round, line)
        self._lines[key] = self._lines.get(key, 0) + payload_bytes

    def lines_of_round(self, direction: Direction, server_round: int) -> dict[str, int]:
        """Return the payload bytes of each line, for methods that itemize their payloads."""
        return {line: n for (d, r, line), n in self._lines.items() if (d, r) == (direction, server_round)}

    def state_dict(self) -> dict[str, list[int]]:
        """Return the counts as plain lists, keyed ``direction/round`` and ``direction/round/line``."""
        counts = {f"{d}/{r}": [getattr(t, f.name) for f in fields(t)] for (d, r), t in self._traffic.items()}
        return counts | {f"{d}/{r}/{line}": [n] for (d, r, line), n in self._lines.items()}

    def load_state_dict(self, state: Mapping[str, list[int]]) -> None:
        """Restore the counts of :meth:`state_dict`."""
        self._traffic, self._lines = {}, {}
        for key, counts in state.items():
            direction, server_round, *line = key.split("/", 2)
            if line:
                self._lines[direction, int(server_round), line[0]] = counts[0]
            else:
                self._traffic[direction, int(server_round)] = Traffic(*counts)
