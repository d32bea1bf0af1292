"""Quantizers of residuals: the dithered one of MALCOM-PSGD (arXiv 2311.05760), and one without a dither.

The paper's quantizer has L levels on either side of 0 and rounds by a dither::

    Q(x)_k = (||x|| sign(x_k) / L) floor(L |x_k| / ||x|| + u_k)        u_k uniform in [0, 1): E Q(x) = x

The integers ``sign(x_k) floor(...)`` and one step ``||x|| / L`` travel. A scale factor is part of the step and costs no
bytes: ``1 / (1 + omega)`` to make Q a contraction in expectation, where ``E ||Q(x) - x||^2 <= omega ||x||^2``, or the
least-squares factor ``<x, q> / ||q||^2``, which makes Q a contraction for every draw of the dither::

    ||x - a q||^2 = ||x||^2 - <x, q>^2 / ||q||^2 <= ||x||^2

Error feedback carries the quantization error into the next residual, so the quantizer need not be unbiased, and the
dither, which costs most of the bits, is not needed. The quantizer without a dither has steps of twice the root mean
square, whatever L, and rounds to the nearest::

    q_k = round(x_k / (2 rms(x)))  within -L..L                        with the least-squares factor
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from flsparse.codec import portable
from flsparse.codec.portable import total
from flsparse.ranges import one_of, within

Norm = Literal["max", "l2", "rms"]
Scaling = Literal["least_squares", "contractive", "unbiased"]
NORMS, SCALINGS = get_args(Norm), get_args(Scaling)
MAX_LEVELS = 1024

_STEP_RMS = 2.0  # finer steps cost bits; from 3 on too little of a residual passes, and consensus is lost
_TINY = float(np.finfo(np.float32).tiny)

Vector = NDArray[np.float32]
Integers = NDArray[np.int16]


@dataclass(frozen=True)
class Dither:
    """The quantizer of one unit: a layer, or the whole vector.

    Parameters
    ----------
    levels : int
        L, 1..1024.
    norm : {"max", "l2", "rms"}
        ``||x||``; with the l2 norm of a long vector nearly all integers are 0. "rms": steps of 2 rms, no dither.
    scaling : {"unbiased", "contractive", "least_squares"}
        Of the step.

    Raises
    ------
    ValueError
        A parameter is out of range.
    """

    levels: int = 2
    norm: Norm = "max"
    scaling: Scaling = "least_squares"

    def __post_init__(self) -> None:
        within(f"[1, {MAX_LEVELS}]", levels=self.levels)
        one_of(NORMS, norm=self.norm)
        one_of(SCALINGS, scaling=self.scaling)
        if self.norm == "rms" and self.scaling != "least_squares":
            raise ValueError(f"scaling={self.scaling!r} is for a dithered norm; norm='rms' takes 'least_squares'")

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
            Factor of q; 0 for a vector of zeros, or of denormal numbers only.
        """
        length = self._length(x)
        if length < _TINY * self.levels:  # levels / length must not overflow
            return np.zeros(x.size, np.int16), np.float32(0)
        if self.norm == "rms":
            magnitude = np.rint(np.abs(x) / np.float32(_STEP_RMS * length))
        else:
            magnitude = np.floor(np.abs(x) * np.float32(self.levels / length) + rng.random(x.size, np.float32))
        q = np.copysign(np.minimum(magnitude, self.levels), x)
        step = length / self.levels
        if self.scaling == "contractive":
            step /= 1.0 + self.omega(x.size)
        elif self.scaling == "least_squares":
            energy = total(q * q)
            step = total(x.astype(np.float64) * q) / energy if energy else 0.0
        return q.astype(np.int16), np.float32(step)

    def _length(self, x: Vector) -> float:
        if self.norm == "max":
            return float(np.abs(x).max(initial=0.0))
        square = total(x.astype(np.float64) * x)
        return math.sqrt(square / max(1, x.size) if self.norm == "rms" else square)

    def omega(self, d: int) -> float:
        """Return the bound of a dither's relative variance, ``E ||Q(x) - x||^2 <= omega ||x||^2``, for d elements.

        ``min(d / L^2, sqrt(d) / L)`` with the l2 norm (Alistarh et al. 2017, arXiv 1610.02132). An element's variance
        is at most ``(||x|| / L)^2 / 4`` and at most ``|x_k| ||x|| / L``, so with the max norm it is
        ``min(d / (4 L^2), sqrt(d) / L)``.
        """
        quarter = 4 if self.norm == "max" else 1
        return min(d / (quarter * self.levels * self.levels), math.sqrt(d) / self.levels)


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
    return portable.entropy_bits(np.bincount(q - q.min()))
