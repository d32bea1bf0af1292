"""Scores of a run: the last evaluation's, and the best so far."""

from collections.abc import Mapping
from typing import Any

from flsparse.kpi import ACCURACY, Kpi


class Scores:
    """Follows loss, accuracy and the KPI of a run; each is None until it was measured, or where there is none.

    Parameters
    ----------
    kpi : Kpi
        What the run goes by.
    """

    def __init__(self, kpi: Kpi) -> None:
        self.kpi = kpi
        self._last: dict[str, float | None] = dict.fromkeys(("accuracy", "loss", "best_accuracy", "metric", "best"))
        self._nodes: dict[str, float] = {}  # of decentralized runs

    def take(self, row: Mapping[str, Any]) -> None:
        """Take the next row of ``metrics.jsonl``."""
        of_nodes = (f"mean_node_{self.kpi.name}", f"worst_node_{self.kpi.name}")
        self._nodes |= {key: row[key] for key in of_nodes if key in row}
        if row["loss"] is None:
            return
        metric = row.get(self.kpi.name)
        self._last = {
            "accuracy": row["accuracy"],
            "loss": row["loss"],
            "best_accuracy": ACCURACY.best((self._last["best_accuracy"], row["accuracy"])),
            "metric": metric,
            "best": self.kpi.best((self._last["best"], metric)),
        }

    def summary(self) -> dict[str, Any]:
        """Return the scores as ``summary.json`` has them."""
        return {
            "final_accuracy": self._last["accuracy"],
            "best_accuracy": self._last["best_accuracy"],
            "final_loss": self._last["loss"],
            "metric": self.kpi.name,
            "final_metric": self._last["metric"],
            "best_metric": self._last["best"],
            **self._nodes,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, by the keys of a checkpoint."""
        return {"scores": self._last, "node_scores": self._nodes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of :meth:`state_dict`; checkpoints of older versions go by accuracy."""
        last = state["scores"]
        self._last = {"metric": last["accuracy"], "best": last["best_accuracy"]} | last
        self._nodes = state.get("node_scores", {})
