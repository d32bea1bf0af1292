"""The dithered quantizer of MALCOM-PSGD (arXiv 2311.05760): L levels on either side of 0, rounded by a dither.

    Q(x)_k = (||x|| sign(x_k) / L) floor(L |x_k| / ||x|| + u_k)        u_k uniform in [0, 1): E Q(x) = x

What travels is the integers ``sign(x_k) floor(...)`` and one step ``||x|| / L``. Scaling is free, it happens inside the
step: by ``1 / (1 + omega)`` to make Q a contraction in expectation, where ``E ||Q(x) - x||^2 <= omega ||x||^2``, or by
``<x, q> / ||q||^2``, the least-squares factor, which makes it one for every draw of the dither::

    ||x - a q||^2 = ||x||^2 - <x, q>^2 / ||q||^2 <= ||x||^2
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NORMS = ("max", "l2")
SCALINGS = ("unbiased", "contractive", "least_squares")
MAX_LEVELS = 1024

Vector = NDArray[np.float32]
Integers = NDArray[np.int16]


_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Dither:
    """The quantizer of one unit: a layer, or the whole vector.

    Parameters
    ----------
    levels : int
        L, 1..1024.
    norm : {"max", "l2"}
        ``||x||``; with the l2 norm of a long vector nearly all integers are 0.
    scaling : {"unbiased", "contractive", "least_squares"}
        Of the step.

    Raises
    ------
    ValueError
        A parameter is out of range.
    """

    levels: int = 2
    norm: str = "max"
    scaling: str = "least_squares"

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= MAX_LEVELS:
            raise ValueError(f"levels={self.levels} is not in 1..{MAX_LEVELS}")
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm!r} is none of {', '.join(NORMS)}")
        if self.scaling not in SCALINGS:
            raise ValueError(f"scaling={self.scaling!r} is none of {', '.join(SCALINGS)}")

    def quantize(self, x: Vector, rng: np.random.Generator) -> tuple[Integers, np.float32]:
        """Quantize a unit.

        Parameters
        ----------
        x : np.ndarray
            Shape (d,), float32, finite.
        rng : np.random.Generator
            Draws the dither.

        Returns
        -------
        q : np.ndarray
            Shape (d,), int16, in -L..L.
        step : np.float32
            What q is to be multiplied by; 0 for a vector of zeros, or of nothing but denormal numbers.
        """
        length = (
            float(np.abs(x).max(initial=0.0)) if self.norm == "max" else float(np.linalg.norm(x.astype(np.float64)))
        )
        if length < _TINY:
            return np.zeros(x.size, np.int16), np.float32(0)
        magnitude = np.floor(np.abs(x) * np.float32(self.levels / length) + rng.random(x.size, np.float32))
        q = np.copysign(np.minimum(magnitude, self.levels), x)
        step = length / self.levels
        if self.scaling == "contractive":
            step /= 1.0 + self.omega(x.size)
        elif self.scaling == "least_squares":
            energy = float(np.dot(q, q))
            step = float(np.dot(x, q)) / energy if energy else 0.0
        return q.astype(np.int16), np.float32(step)

    def omega(self, d: int) -> float:
        """Return the bound of the relative variance, ``E ||Q(x) - x||^2 <= omega ||x||^2``, for d elements.

        ``min(d / L^2, sqrt(d) / L)`` with the l2 norm (Alistarh et al. 2017, arXiv 1610.02132). An element's variance
        is at most ``(||x|| / L)^2 / 4`` and at most ``|x_k| ||x|| / L``, so with the max norm it is
        ``min(d / (4 L^2), sqrt(d) / L)``.
        """
        quarter = 4 if self.norm == "max" else 1
        return float(min(d / (quarter * self.levels**2), d**0.5 / self.levels))


def dequantize(q: Integers, step: np.float32) -> Vector:
    """Return ``step * q``: float32, the same bits on every machine."""
    return q.astype(np.float32) * np.float32(step)


def entropy_bits(q: np.ndarray) -> float:
    """Return ``n H``, the empirical entropy of integers times their number, in bits.

    Examples
    --------
    >>> entropy_bits(np.array([0, 0, 1, 1]))
    4.0
    """
    if q.size == 0:
        return 0.0
    counts = np.bincount(q - q.min())
    counts = counts[counts > 0]
    return float((counts * np.log2(q.size / counts)).sum())
