"""Arrays of a state dict that are no weights, and travel exactly: masks, scalers, observers, flags, positions.

Weights are rounded, as are batch-norm statistics, which are averages of batches themselves. Whatever else a model keeps
beside its parameters has a meaning that rounding changes: 0.998 is no flag, and an infinite mask cannot be quantized.
Integers and booleans always travel exactly.

Where the model is at hand, its buffers say it all. Where only arrays are, as around a Flower app of one's own, names
and values do: an array is no weight

- below ``parametrizations``, where a parametrization reads it in its own way (an orthogonal one takes signs from it);
  those of ``weight_norm`` and its like, ``original0`` and ``original1``, are weights;
- that holds an infinity or a magnitude which no weight has;
- whose values are whole numbers, and not all the same: a fresh bias is 0, a fresh norm 1.
"""

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
from torch import nn

from flsparse.nets.batch_norm import statistics_names

LARGEST_WEIGHT = 1e9  # far beyond any network's; sums of such weights stay finite
_PARAMETRIZATION = "parametrizations."


def exact_buffers(model: nn.Module) -> list[str]:
    """Return the state-dict keys of a model that are neither parameters nor batch-norm statistics."""
    state = model.state_dict()
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)} | set(statistics_names(state))
    return [name for name in state if name not in weights]


def exact_arrays(
    arrays: Mapping[str, np.ndarray], *, buffers: Collection[str] | None = None, patterns: Sequence[str] = ()
) -> frozenset[str]:
    """Return the names of the floating and complex arrays that travel exactly.

    Parameters
    ----------
    arrays : mapping of str to np.ndarray
        By state-dict key.
    buffers : collection of str, optional
        Of :func:`exact_buffers`; None: the model is not known, and names and values tell.
    patterns : sequence of str
        More names, as in ``fnmatch``.

    Examples
    --------
    >>> mask = np.triu(np.full((3, 3), -np.inf, np.float32), 1)
    >>> sorted(exact_arrays({"mask": mask, "weight": np.full((2, 2), 0.5), "bias": np.zeros(2)}))
    ['mask']
    """
    floating = {name: array for name, array in arrays.items() if array.dtype.kind in "fc"}
    statistics = set(statistics_names(arrays))
    named = {name for name in floating if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if buffers is not None:
        return frozenset(named | (floating.keys() & set(buffers)))
    return frozenset(named | {n for n, a in floating.items() if n not in statistics and _is_no_weight(n, a)})


def within_reach(values: np.ndarray, sent: np.ndarray) -> bool:
    """Tell whether an exact array that a node returns is one that training may have made of the array it was sent.

    An infinity or NaN stays where it was, and a value grows beyond every weight only by doubling.

    Parameters
    ----------
    values, sent : np.ndarray
        Floating or complex, of one shape.

    Examples
    --------
    >>> mask = np.array([0, -np.inf])
    >>> within_reach(mask, mask), within_reach(np.array([-np.inf, 0]), mask)
    (True, False)
    """
    size, before = np.abs(values), np.abs(sent)
    near = np.isfinite(before) & (size / 2 <= before)
    same = (values == sent) | (np.isnan(values) & np.isnan(sent))
    return bool((small(values) | near | same).all())


def small(array: np.ndarray, limit: float = LARGEST_WEIGHT) -> np.ndarray:
    """Tell which values are finite and of a magnitude up to a limit; boolean, in the array's shape."""
    return np.asarray(np.abs(array) <= np.float64(limit))  # a Python float would be rounded to half precision


def _is_no_weight(name: str, array: np.ndarray) -> bool:
    if _PARAMETRIZATION in name:
        return not name.endswith(("original0", "original1"))
    if array.size == 0 or np.isnan(array).any():
        return False  # diverged: refused as a weight
    if not small(array).all():
        return True
    first = array.flat[0]
    return bool((array != first).any()) and bool((array == np.rint(array)).all())
