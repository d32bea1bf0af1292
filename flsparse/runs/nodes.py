"""The nodes of a run, by the rows of its ``nodes.jsonl``."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from flsparse.kpi import Kpi


def node_scores(rows: Sequence[Mapping[str, Any]], kpi: Kpi) -> dict[str, float]:
    """Return the mean over nodes and the worst node of a round's model, each on a test part of its own.

    Parameters
    ----------
    rows : Sequence[Mapping[str, Any]]
        A row for each node of one round.
    kpi : Kpi

    Returns
    -------
    dict[str, float]
        ``mean_node_KPI``, the plain mean, and ``worst_node_KPI``; empty where no node has evaluated the model.

    Examples
    --------
    >>> node_scores([{"evaluate_f1": 0.5}, {"evaluate_f1": 0.75}, {}], Kpi("f1"))
    {'mean_node_f1': 0.625, 'worst_node_f1': 0.5}
    """
    scores = [score for row in rows if (score := row.get(f"evaluate_{kpi.name}")) is not None]
    return {f"mean_node_{kpi.name}": fmean(scores), f"worst_node_{kpi.name}": kpi.worst(scores)} if scores else {}
