"""The base of every method's ratios: what dense FedAvg sends in the same rounds."""

from collections.abc import Mapping
from typing import Any

_WAYS = ("uplink", "downlink")


def dense_fedavg(row: Mapping[str, Any], model_bytes: int) -> dict[str, int]:
    """Return the bytes of a round: the model to every node that was asked, and back from every one that counts.

    Parameters
    ----------
    row : Mapping[str, Any]
        ``replies``, None where nobody was asked; ``failures`` and ``rejected_payloads``, nodes lost in the round. Where
        replies may be late, ``asked`` and ``received``: nodes that the round asked, and replies that came in it.
    model_bytes : int
        Size of the model as plain arrays, in bytes.

    Examples
    --------
    >>> dense_fedavg({"replies": 9, "failures": 1, "rejected_payloads": 0}, 1000)
    {'uplink': 9000, 'downlink': 10000}
    """
    replies = int(row["replies"] or 0)
    asked = row.get("asked", replies + row["failures"] + row["rejected_payloads"])
    return {"uplink": row.get("received", replies) * model_bytes, "downlink": asked * model_bytes}


class Baseline:
    """Dense FedAvg beside a run.

    Parameters
    ----------
    model_bytes : int
        Size of the model as plain arrays, in bytes.

    Examples
    --------
    >>> baseline = Baseline(1000)
    >>> row = {"replies": 10, "failures": 0, "rejected_payloads": 0, "uplink_bytes": 100, "downlink_bytes": 0}
    >>> baseline.take(row), baseline.ratios
    ({'uplink_ratio': 100.0, 'downlink_ratio': 0.0}, {'uplink_ratio': 100.0, 'downlink_ratio': 0.0})
    """

    def __init__(self, model_bytes: int) -> None:
        self.model_bytes = model_bytes
        self._dense, self._sent = dict.fromkeys(_WAYS, 0), dict.fromkeys(_WAYS, 0)

    def take(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Take the next row of ``metrics.jsonl``; return its ratios, 0 where nothing was sent."""
        dense = dense_fedavg(row, self.model_bytes)
        sent = {way: row[f"{way}_bytes"] for way in _WAYS}
        for way in _WAYS:
            self._dense[way] += dense[way]
            self._sent[way] += sent[way]
        return _ratios(dense, sent)

    @property
    def ratios(self) -> dict[str, float]:
        """Over all rows: ``uplink_ratio``, ``downlink_ratio``."""
        return _ratios(self._dense, self._sent)


def _ratios(dense: Mapping[str, int], sent: Mapping[str, int]) -> dict[str, float]:
    return {f"{way}_ratio": dense[way] / sent[way] if sent[way] else 0.0 for way in _WAYS}
