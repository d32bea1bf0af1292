"""Bytes to a target: what a run sends until its accuracy holds, which ratios over equal rounds do not tell."""

from collections.abc import Iterable, Mapping
from typing import Any

HELD = 3  # evaluations in a row


class Target:
    """Follows a run to an accuracy that is held for three evaluations in a row.

    Parameters
    ----------
    accuracy : float
        The target, in (0, 1].

    Attributes
    ----------
    found : dict or None
        ``target``; ``rounds``, the third evaluation's; ``uplink_bytes`` and ``downlink_bytes``, payloads up to then;
        ``uplink_wire_bytes`` and ``downlink_wire_bytes``, the same with Flower's framing; ``wire_bytes``, the sum of
        both. None until it was held.
    """

    def __init__(self, accuracy: float) -> None:
        self.accuracy = accuracy
        self.found: dict[str, Any] | None = None
        self._held = 0
        self._sent = dict.fromkeys(("uplink_bytes", "downlink_bytes", "uplink_wire_bytes", "downlink_wire_bytes"), 0)

    def take(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """Take the next row of ``metrics.jsonl``; one without an accuracy counts its bytes alone."""
        if self.found is None:
            self._sent = {key: total + row[key] for key, total in self._sent.items()}
            if row["accuracy"] is not None:
                self._held = self._held + 1 if row["accuracy"] >= self.accuracy else 0
            if self._held == HELD:
                both = self._sent["uplink_wire_bytes"] + self._sent["downlink_wire_bytes"]
                self.found = {"target": self.accuracy, "rounds": row["server_round"], **self._sent, "wire_bytes": both}
        return self.found


def to_target(rows: Iterable[Mapping[str, Any]], accuracy: float) -> dict[str, Any] | None:
    """Return what a run took to a target, by all its rows (see :class:`Target`)."""
    target = Target(accuracy)
    for row in rows:
        target.take(row)
    return target.found
