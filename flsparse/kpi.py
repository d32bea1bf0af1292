"""Key performance indicators: the measures that a run may go by, and which way each is better."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flsparse.configs import did_you_mean


@dataclass(frozen=True)
class Kpi:
    """One measure of a model.

    Attributes
    ----------
    name : str
        As in ``metric=``, and in the rows of ``metrics.jsonl``.
    higher : bool
        A higher value is better.
    fraction : bool
        In [0, 1], and shown in percent.
    """

    name: str
    higher: bool = True
    fraction: bool = True

    def best(self, values: Iterable[float | None]) -> float | None:
        """Return the best of some values; None where there is none."""
        found = [value for value in values if value is not None]
        return (max if self.higher else min)(found, default=None)

    def worst(self, values: Iterable[float]) -> float:
        """Return the worst of some values, at least one."""
        return (min if self.higher else max)(values)

    def of_nodes(self, scores: Sequence[float]) -> dict[str, float]:
        """Return the mean and the worst of the nodes' scores, by their names in a row; nothing where there is none.

        >>> Kpi("rmse", higher=False, fraction=False).of_nodes([1.0, 2.0])
        {'mean_node_rmse': 1.5, 'worst_node_rmse': 2.0}
        """
        if not scores:
            return {}
        return {f"mean_node_{self.name}": sum(scores) / len(scores), f"worst_node_{self.name}": self.worst(scores)}

    def reaches(self, value: float, target: float) -> bool:
        """Return whether a value is as good as a target."""
        return value >= target if self.higher else value <= target

    def shown(self, value: float | None) -> str:
        """Return a value for reading, a dash for none.

        >>> Kpi("f1").shown(0.5), Kpi("rmse", higher=False, fraction=False).shown(53.27)
        ('50.0 %', '53.27')
        """
        if value is None:
            return "-"
        return f"{100 * value:.1f} %" if self.fraction else f"{value:.4g}"


ACCURACY = Kpi("accuracy")
KPIS = {
    kpi.name: kpi
    for kpi in (
        ACCURACY,
        *(Kpi(name) for name in ("balanced_accuracy", "f1", "recall", "precision", "auroc", "average_precision")),
        *(Kpi(name) for name in ("iou", "dice")),
        *(Kpi(name, higher=False, fraction=False) for name in ("loss", "mae", "rmse", "perplexity")),
        Kpi("r2", fraction=False),
    )
}


def kpi_of(summary: Mapping[str, Any]) -> Kpi:
    """Return the KPI of a run by its summary; runs of older versions go by accuracy."""
    return KPIS.get(summary.get("metric", ""), ACCURACY)


def final(summary: Mapping[str, Any]) -> float | None:
    """Return the KPI that a run ended with, None where there is none."""
    return summary.get("final_accuracy" if kpi_of(summary) is ACCURACY else "final_metric")


def best(summary: Mapping[str, Any]) -> float | None:
    """Return the best KPI of a run, None where there is none."""
    return summary.get("best_accuracy" if kpi_of(summary) is ACCURACY else "best_metric")


def kpi_named(name: str) -> Kpi:
    """Return a KPI by name.

    Raises
    ------
    ValueError
        There is none of that name.
    """
    if name not in KPIS:
        raise ValueError(f"metric={name!r} is none of {', '.join(KPIS)}{did_you_mean(name, KPIS)}")
    return KPIS[name]
