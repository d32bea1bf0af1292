"""Bytes to a target: what a run sends until its KPI holds, which ratios over equal rounds do not tell."""

from collections.abc import Iterable, Mapping
from typing import Any

from flsparse.kpi import ACCURACY, Kpi

HELD = 3  # evaluations in a row


class Target:
    """Follows a run to a value of its KPI that is held for three evaluations in a row.

    Parameters
    ----------
    value : float
        The target; of a fraction in (0, 1].
    kpi : Kpi
        What is followed, and which way is better.

    Attributes
    ----------
    found : dict or None
        ``target``; ``rounds`` and ``seconds``, the third evaluation's; ``uplink_bytes`` and ``downlink_bytes``,
        payloads up to then; ``uplink_wire_bytes`` and ``downlink_wire_bytes``, the same with Flower's framing;
        ``wire_bytes``, the sum of both; ``modelled_seconds``, over the links, where the run has any. None until it was
        held.
    """

    def __init__(self, value: float, kpi: Kpi = ACCURACY) -> None:
        if kpi.fraction and not 0 < value <= 1:
            raise ValueError(f"evaluate.target={value:g} must be above 0 and at most 1: the metric is {kpi.name}")
        self.value, self.kpi = value, kpi
        self.found: dict[str, Any] | None = None
        self._held = 0
        self._seconds: float | None = None
        self._sent = dict.fromkeys(("uplink_bytes", "downlink_bytes", "uplink_wire_bytes", "downlink_wire_bytes"), 0)

    def take(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """Take the next row of ``metrics.jsonl``; one without the KPI counts its bytes alone."""
        if self.found is None:
            self._sent = {key: total + row[key] for key, total in self._sent.items()}
            if (seconds := row.get("modelled_seconds")) is not None:
                self._seconds = (self._seconds or 0.0) + seconds
            if (found := row.get(self.kpi.name)) is not None:
                self._held = self._held + 1 if self.kpi.reaches(found, self.value) else 0
            if self._held == HELD:
                both = self._sent["uplink_wire_bytes"] + self._sent["downlink_wire_bytes"]
                self.found = {"target": self.value, "rounds": row["server_round"], "seconds": row.get("wall_seconds")}
                self.found |= {**self._sent, "wire_bytes": both}
                self.found |= {} if self._seconds is None else {"modelled_seconds": self._seconds}
        return self.found


def to_target(rows: Iterable[Mapping[str, Any]], value: float, kpi: Kpi = ACCURACY) -> dict[str, Any] | None:
    """Return what a run took to a target, by all its rows (see :class:`Target`)."""
    target = Target(value, kpi)
    for row in rows:
        target.take(row)
    return target.found
