"""Pruning by magnitude, and metrics of masks. Pure functions of numpy arrays; True in a mask means kept.

Arrays are a mapping from name to array; ``names`` are the prunable ones. Other arrays pass through unchanged.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flsparse.sparsity.lamp import lamp_positions
from flsparse.sparsity.topk import kept_count, top_k

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
Select = Callable[[Sequence[Array], int], list[npt.NDArray[np.int64]]]


class _Spec(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...


def default_prunable(arrays: Mapping[str, Array] | Mapping[str, _Spec]) -> list[str]:
    """Return the names of the floating arrays with two or more dimensions, the default prunable arrays."""
    return [name for name, a in arrays.items() if len(a.shape) >= 2 and np.issubdtype(a.dtype, np.floating)]


def match_prunable(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Return the names that match at least one shell pattern (``*``, ``?``, ``[...]``), in their own order.

    Raises
    ------
    ValueError
        When a pattern matches nothing: a typing mistake would silently leave a layer dense.
    """
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"the prunable pattern {pattern!r} matches none of: {', '.join(names)}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def prune_global(arrays: Arrays, sparsity: float, names: Sequence[str]) -> dict[str, Array]:
    """Keep the largest magnitudes of all named arrays together and zero the rest (SparsyFed, step 5).

    Parameters
    ----------
    arrays : Mapping[str, ndarray]
        Arrays by name; they are not changed.
    sparsity : float
        Fraction of zeros over the named arrays together, in [0, 1).
    names : Sequence[str]
        The arrays that are ranked; layers end up with different sparsities.

    Returns
    -------
    dict[str, ndarray]
        New arrays for the names, the same objects for the rest. Exactly ``kept_count`` values (fewer when there are
        fewer non-zeros) are kept; of equal magnitudes the first in the order of ``names`` and of flat index. Copies
        of a tied weight keep equal positions, and may be a value short (`top_k`).

    Raises
    ------
    ValueError
        When ``sparsity`` is out of range or a value is NaN.
    """
    return _pruned(arrays, sparsity, names, top_k)


def prune_lamp(arrays: Arrays, sparsity: float, names: Sequence[str]) -> dict[str, Array]:
    """Like `prune_global`, ranked by each magnitude's share of its layer (LAMP, `lamp_positions`).

    As many values are kept, and none of the arrays is emptied while there is one value for each.
    """
    return _pruned(arrays, sparsity, names, lamp_positions)


def prune_per_layer(arrays: Arrays, sparsity: float | Mapping[str, float], names: Sequence[str]) -> dict[str, Array]:
    """Like `prune_global`, each named array ranked by itself; ``sparsity`` is one number or one for each name."""
    pruned = dict(arrays)
    for name in names:
        target = sparsity if isinstance(sparsity, (int, float)) else sparsity[name]
        pruned[name] = _keep(arrays[name], top_k([arrays[name]], kept_count(arrays[name].size, target))[0])
    return pruned


def _pruned(arrays: Arrays, sparsity: float, names: Sequence[str], select: Select) -> dict[str, Array]:
    ranked = [arrays[name] for name in names]
    positions = select(ranked, kept_count(sum(array.size for array in ranked), sparsity))
    kept = {name: _keep(arrays[name], where) for name, where in zip(names, positions, strict=True)}
    return {**arrays, **kept}


def _keep(array: Array, positions: npt.NDArray[np.int64]) -> Array:
    kept = np.zeros(array.size, array.dtype)
    kept[positions] = array.reshape(-1)[positions]
    return kept.reshape(array.shape)


def layer_sparsity(arrays: Arrays, names: Sequence[str]) -> dict[str, float]:
    """Return the fraction of zeros of each named array, in [0, 1]; 0 for an empty array."""
    return {name: sparsity_of(arrays, [name]) for name in names}


def sparsity_of(arrays: Arrays, names: Sequence[str]) -> float:
    """Return the fraction of zeros over all named arrays together, in [0, 1]; 0 when they are empty."""
    size = sum(arrays[name].size for name in names)
    nonzero = sum(int(np.count_nonzero(arrays[name])) for name in names)
    return 1.0 - nonzero / size if size else 0.0


def mask_iou(a: Arrays, b: Arrays, names: Sequence[str]) -> float:
    """Return |intersection| / |union| of two supports over all named arrays, in [0, 1]; 1 for two empty ones."""
    both = either = 0
    for name in names:
        left, right = a[name] != 0, b[name] != 0
        both += int(np.count_nonzero(left & right))
        either += int(np.count_nonzero(left | right))
    return both / either if either else 1.0


def regrowth(trained: Arrays, received: Arrays, names: Sequence[str]) -> float:
    """Return the fraction of all named weights that were zero when received and are not after training, in [0, 1].

    ``trained`` is taken before pruning. With ``beta > 1`` and plain SGD it is exactly 0.
    """
    size = sum(received[name].size for name in names)
    grown = sum(int(np.count_nonzero((received[name] == 0) & (trained[name] != 0))) for name in names)
    return grown / size if size else 0.0
