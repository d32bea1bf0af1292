"""One running weighted sum in place of a dense model per node."""

from collections.abc import Iterable, Mapping

import numpy as np

from flsparse.codec.coders.gaps import Positions
from flsparse.codec.models.decoder import Layer
from flsparse.codec.specs import ArraySpec, specs_of


class _Sum:
    """The sum of one array: over a few positions while all layers lie within them, dense from the first other one.

    These are the positions of the first layer, or the support of the reference that holds them. Both ways every element
    is added in the same order, so the bits do not depend on the way.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.positions: Positions | None = np.empty(0, np.int64)
        self.values: np.ndarray = np.empty(0)

    def add(self, layer: Layer, share: np.ndarray, first: bool) -> None:
        if first:
            self._begin(layer, share)
        elif self.positions is not None and _same(layer.positions, self.positions):
            self.values += share
        elif self.positions is not None and layer.within is not None and _same(layer.within[0], self.positions):
            self.values[layer.within[1]] += share
        else:
            self.positions, self.values = None, self.dense(self.values)
            if layer.positions is None:
                self.values += share
            else:
                self.values[layer.positions] += share  # right only because positions are unique

    def _begin(self, layer: Layer, share: np.ndarray) -> None:
        self.positions, self.values = layer.positions, share
        if layer.within is not None:
            self.positions, places = layer.within
            self.values = np.zeros(self.positions.size, share.dtype)
            self.values[places] = share

    def dense(self, values: np.ndarray) -> np.ndarray:
        """Return values in their places, zeros elsewhere."""
        if self.positions is None:
            return values
        out = np.zeros(self.size, values.dtype)
        out[self.positions] = values
        return out


def _same(a: Positions | None, b: Positions | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))  # mostly the reference's own support


class Accumulator:
    """Weighted mean of many decoded payloads, in double precision.

    Adding the same layers in the same order gives the same bits. Nodes that keep positions within the reference's, as
    sparse methods do, are summed over these alone.

    Parameters
    ----------
    specs : mapping of str to ArraySpec or np.ndarray
        The arrays to average.
    """

    def __init__(self, specs: Mapping[str, np.ndarray | ArraySpec]) -> None:
        self.specs = specs_of(specs)
        self.total_weight = 0.0
        self._sums = {name: _Sum(spec.size) for name, spec in self.specs.items()}

    def add(self, layers: Iterable[Layer], weight: float) -> None:
        """Add one model.

        Parameters
        ----------
        layers : iterable of Layer
            From :func:`decode_layers` against the same specs; each array once.
        weight : float
            Positive, such as the node's number of examples.

        Raises
        ------
        ValueError
            For a weight that is not positive and finite, or layers of other arrays; nothing is added then.
        """
        layers = list(layers)
        if not (np.isfinite(weight) and weight > 0):
            raise ValueError(f"a weight must be positive and finite, not {weight}")
        if sorted(layer.name for layer in layers) != sorted(self.specs):
            raise ValueError("the layers are not those of the accumulator's arrays, each once")
        for layer in layers:
            size = self.specs[layer.name].size if layer.positions is None else layer.positions.size
            if layer.values.size != size:
                raise ValueError(f"layer {layer.name!r} has {layer.values.size} values instead of {size}")
        for layer in layers:
            share = layer.values * np.float64(weight)
            self._sums[layer.name].add(layer, share, first=self.total_weight == 0.0)
        self.total_weight += weight

    def mean(self) -> dict[str, np.ndarray]:
        """Return the weighted mean in the arrays' shapes and dtypes; integers and booleans are rounded.

        Raises
        ------
        ValueError
            When nothing was added.
        """
        if self.total_weight == 0.0:
            raise ValueError("nothing was added")
        means = {}
        for name, spec in self.specs.items():
            mean = self._sums[name].values / self.total_weight
            means[name] = self._sums[name].dense(rounded(mean, spec.dtype)).reshape(spec.shape)
        return means


def rounded(mean: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return a floating mean in a dtype: rounded to its range where that is an integer's, or a boolean's.

    Examples
    --------
    >>> rounded(np.array([0.6, -3.0, 1e30]), np.dtype("u1"))
    array([  1,   0, 255], dtype=uint8)
    """
    if dtype.kind not in "iub" or mean.dtype.kind != "f":
        return mean.astype(dtype)
    mean = np.rint(mean)
    if dtype.kind != "b":
        info = np.iinfo(dtype)
        # a double rounds the largest 64-bit integers up, out of their range
        top = float(info.max) if float(info.max) <= info.max else float(np.nextafter(float(info.max), 0.0))
        mean = np.clip(mean, float(info.min), top)
    return mean.astype(dtype)
