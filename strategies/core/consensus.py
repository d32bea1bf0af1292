"""Models of the nodes of a graph: their mean, and how far apart they are.

xbar = mean_i x_i            consensus_error = sum_i ||x_i - xbar||^2 / n      over the parameters: they gossip
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from flwr.app import MetricRecord

from flsparse.kpi import Kpi
from flsparse.nets.arrays import Arrays
from flsparse.sparsity import sparsity_of


def mean_model(models: Mapping[int, Arrays]) -> Arrays:
    """Return the mean of the nodes' models, array by array, in the arrays' own dtypes; integers are rounded."""
    first = next(iter(models.values()))
    mean = {}
    for name, array in first.items():
        exact = np.mean([np.asarray(arrays[name], np.float64) for arrays in models.values()], axis=0)
        mean[name] = np.asarray(exact if array.dtype.kind == "f" else np.rint(exact), array.dtype)
    return mean


def consensus_error(models: Mapping[int, Arrays], mean: Arrays, names: Sequence[str]) -> float:
    """Return ``sum_i ||x_i - xbar||^2 / n`` over the arrays of these names."""
    squares = sum(
        float(np.square(np.asarray(arrays[name], np.float64) - mean[name]).sum())
        for arrays in models.values()
        for name in names
    )
    return squares / len(models)


def mean_sparsity(models: Mapping[int, Arrays], prunable: Sequence[str]) -> float:
    """Return the nodes' mean fraction of zeros among the arrays of these names, in [0, 1]."""
    return float(np.mean([sparsity_of(arrays, prunable) for arrays in models.values()]))


def node_scores(
    models: Mapping[int, Arrays], evaluate: Callable[[Arrays], MetricRecord | None], kpi: Kpi
) -> dict[str, float]:
    """Return the nodes' mean and worst KPI; nothing where a model's evaluation has none."""
    records = (evaluate(arrays) for arrays in models.values())
    found = (record.get(kpi.name) for record in records if record is not None)
    return kpi.of_nodes([score for score in found if isinstance(score, float)])
