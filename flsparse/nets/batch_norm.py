"""Batch-norm statistics of an averaged model, estimated from data.

The running statistics that workers send belong to the workers' weights; their average is not the statistics of the
averaged weights. The averaged model therefore runs over data once more, and the statistics of the batches are averaged.
Where the data are on many nodes, each node estimates its own part, and :func:`pooled` combines the parts.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from flsparse.nets.hidden import hides_statistics

_MEAN, _VAR = "running_mean", "running_var"
Arrays = dict[str, np.ndarray]


def statistics_names(names: Iterable[str]) -> list[str]:
    """Return the names that are batch-norm statistics: every ``...running_mean`` that has a ``...running_var``."""
    known = list(names)
    prefixes = [name.removesuffix(_MEAN) for name in known if name.endswith(_MEAN)]
    return [prefix + part for prefix in prefixes if prefix + _VAR in known for part in (_MEAN, _VAR)]


def batch_norm_statistics(model: nn.Module, batches: Iterable[Tensor]) -> Arrays:
    """Estimate a model's batch-norm statistics; the model's own are left as they were.

    Parameters
    ----------
    model : nn.Module
        With its weights loaded.
    batches : iterable of Tensor
        Inputs as the model takes them, each of two samples or more; each counts the same.

    Returns
    -------
    dict[str, np.ndarray]
        float32, ``running_mean`` and ``running_var`` (unbiased, as torch keeps it) of every batch norm, by state-dict
        key, but of hidden ones (frozen, personal); empty where the model has none.
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and not hides_statistics(module)
    }
    if not norms:
        return {}
    before = {name: (m.momentum, {k: v.clone() for k, v in m.state_dict().items()}) for name, m in norms.items()}
    modes = {module: module.training for module in model.modules()}
    model.eval()
    for norm in norms.values():
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # torch's cumulative average
    try:
        with torch.no_grad():
            for inputs in batches:
                model(inputs)
        found = {f"{n}.{k}": v for n, m in norms.items() for k, v in m.state_dict().items() if k in (_MEAN, _VAR)}
        return {name.lstrip("."): np.array(value.cpu().numpy()) for name, value in found.items()}
    finally:
        for name, norm in norms.items():
            norm.momentum = before[name][0]
            norm.load_state_dict(before[name][1])
        for module, mode in modes.items():
            module.training = mode


def pooled(parts: Sequence[tuple[float, Mapping[str, np.ndarray]]]) -> Arrays:
    """Put the statistics of several nodes together: ``mean = sum w mu``, ``var = sum w (var + mu^2) - mean^2``.

    Parameters
    ----------
    parts : sequence of (float, Mapping[str, np.ndarray])
        A weight above 0, such as the number of examples, and a node's statistics; at least one.

    Examples
    --------
    >>> of = lambda mu, var: {"n.running_mean": np.float32([mu]), "n.running_var": np.float32([var])}
    >>> pooled([(1, of(-1, 4)), (1, of(1, 4))])
    {'n.running_mean': array([0.], dtype=float32), 'n.running_var': array([5.], dtype=float32)}
    """
    total = sum(weight for weight, _ in parts)
    shares = [(weight / total, statistics) for weight, statistics in parts]
    result: Arrays = {}
    for name in statistics_names(parts[0][1]):
        if name.endswith(_MEAN):
            result[name] = np.asarray(sum(w * s[name].astype(np.float64) for w, s in shares))
        else:
            mean = name.removesuffix(_VAR) + _MEAN
            square = sum(w * (s[name].astype(np.float64) + s[mean].astype(np.float64) ** 2) for w, s in shares)
            result[name] = np.maximum(square - result[mean] ** 2, 0)
    return {name: np.asarray(array, parts[0][1][name].dtype) for name, array in result.items()}
