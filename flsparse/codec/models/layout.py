"""Layout of a payload: arrays that travel sparse, dense or lossless, in one order for both ends."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from flsparse.codec.coders import bits
from flsparse.codec.specs import DTYPES, ArraySpec, Specs
from flsparse.codec.wire import Reader

BOUNDS = {"int8": 127, "int4": 7}


@dataclass(frozen=True)
class Layout:
    """Names of the arrays by the way they travel.

    Parameters
    ----------
    sparse : list of str
        Floating arrays of which only some positions travel.
    dense : list of str
        The other floating arrays, empty ones excluded.
    lossless : list of list of str
        Exact, integer and boolean arrays, one list per dtype.
    """

    sparse: list[str]
    dense: list[str]
    lossless: list[list[str]]


def by_dtype(specs: Specs, names: Iterable[str]) -> list[list[str]]:
    """Group names by dtype, in the order of ``DTYPES``."""
    lists: dict[np.dtype, list[str]] = {np.dtype(each): [] for each in DTYPES}
    for name in names:
        lists[specs[name].dtype].append(name)
    return [names for names in lists.values() if names]


def _weights(specs: Specs) -> list[str]:
    return [name for name, spec in specs.items() if spec.dtype.kind == "f" and not spec.exact and spec.size]


def layout_of(specs: Specs, sparse: set[str]) -> Layout:
    """Lay arrays out, given the names of the sparse ones."""
    weights = _weights(specs)
    others = [name for name, spec in specs.items() if spec.dtype.kind != "f" or spec.exact]
    return Layout(
        [name for name in weights if name in sparse],
        [name for name in weights if name not in sparse],
        by_dtype(specs, others),
    )


def write_forms(specs: Specs, layout: Layout) -> bytes:
    """Write one bit per array of weights that is not empty: whether it is sparse."""
    sparse = set(layout.sparse)
    return np.packbits(np.array([name in sparse for name in _weights(specs)], np.bool_)).tobytes()


def read_forms(reader: Reader, specs: Specs) -> Layout:
    """Decode the bits that :func:`write_forms` writes."""
    names = _weights(specs)
    forms = bits.read_flags(reader, len(names))
    return layout_of(specs, {name for name, form in zip(names, forms, strict=True) if form})


def is_sparse(spec: ArraySpec, kept: int) -> bool:
    """Whether an array's zeros are worth keeping exactly: any zero of a matrix or kernel, half of a vector's."""
    zeros = spec.size - kept
    return zeros > 0 and (len(spec.shape) >= 2 or 2 * zeros >= spec.size)


def is_fine(spec: ArraySpec) -> bool:
    """Whether a dense array is one of the small ones, biases, norms and statistics, that need a finer step."""
    return len(spec.shape) < 2


def words_of(array: np.ndarray) -> np.ndarray:
    """View a flat array's bits as unsigned integers."""
    return array.view(f"u{array.itemsize}")
