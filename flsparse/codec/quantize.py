"""Uniform quantizers: steps, rounding, and the exact arithmetic of decoding.

A value x becomes the integer q = round(x / step), clipped to -bound..bound, and comes back as q * step. Steps travel in
15 bits: the exponent and 5 bits of fraction of a double, so that a step is within 1.6 % of the wanted one at any
magnitude. Decoding computes in double precision, where q * step is exact, and rounds once to the array's dtype.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int16]

FINE_BOUND = 2047  # of small arrays: biases, norms, statistics
_SHIFT = 47
_SAMPLE = 1 << 14
_ONE = 0x3F800000  # 1.0 as float32


def step_code(step: float) -> int:
    """Return the 15-bit code of the largest representable step at or below ``step``; at least the smallest one."""
    return max(1, int(np.float64(step).view(np.int64)) >> _SHIFT)


def step_of(code: int) -> float:
    """Return the step of a code in 1..0x7fdf (finite)."""
    return float(np.int64(code << _SHIFT).view(np.float64))


MAX_CODE = step_code(float(np.finfo(np.float64).max))


def _sample(x: Floats) -> Floats:
    return x[:: -(-x.size // _SAMPLE)]


def rms(x: Floats) -> float:
    """Root mean square of a strided sample, safe from overflow and underflow."""
    sample = _sample(x)
    top = float(np.abs(sample).max(initial=0.0))
    return top * float(np.sqrt(np.mean((sample / top) ** 2))) if top > 0.0 else 0.0


def least_squares_step(x: Floats, bound: int) -> float:
    """Return the step with the least mean squared error under nearest rounding with clipping at ``bound``.

    Parameters
    ----------
    x : np.ndarray
        Shape (n,), float64, finite.
    bound : int
        Largest integer, 7 for int4 and 127 for int8.
    """
    top = float(np.abs(x).max(initial=0.0))
    if top == 0.0:
        return 0.0
    sample = _sample(x) / top
    best_error, best = np.inf, 1.0
    for ratio in np.geomspace(1.0, 0.1, 16) / bound:  # from no clipping to clipping nine tenths of the range
        error = float(np.mean((sample - ratio * np.clip(np.rint(sample / ratio), -bound, bound)) ** 2))
        if error < best_error:
            best_error, best = error, float(ratio)
    return best * top


def widest_step(x: Floats, bound: int) -> float:
    """Return a step at which nothing is clipped: what unbiased rounding needs."""
    top = float(np.abs(x).max(initial=0.0))
    return min(top / (bound - 0.5) * 1.04, float(np.finfo(np.float64).max))  # codes round down by up to 1/32


def quantize(x: Floats, step: float, bound: int, rng: np.random.Generator | None = None) -> Integers:
    """Quantize to integers in -bound..bound.

    Parameters
    ----------
    x : np.ndarray
        Shape (n,), float64, finite.
    step : float
        Positive.
    bound : int
        At most 32767.
    rng : np.random.Generator, optional
        Rounds stochastically: up with the probability of the fraction, so that the expectation is x (where nothing
        clips). Nearest, ties to even, without it.
    """
    with np.errstate(over="ignore"):
        scaled = x / step
    scaled = np.rint(scaled) if rng is None else np.floor(scaled + rng.random(x.size))
    return np.clip(scaled, -bound, bound).astype(np.int16)


def dequantize(q: NDArray[np.integer], step: float, base: np.ndarray | None, dtype: np.dtype) -> np.ndarray:
    """Return ``base + q * step`` rounded to ``dtype`` and saturated at its largest finite value."""
    with np.errstate(over="ignore"):
        x = q * np.float64(step)
        if base is not None:
            x += base
    limit = float(np.finfo(dtype).max)
    return np.clip(x, -limit, limit).astype(dtype)


def log_code(x: np.ndarray) -> Floats:
    """Map positive floats to their float32 bit pattern minus that of 1.0: a piecewise linear 2^23 log2(x)."""
    tiny = np.finfo(np.float32).smallest_subnormal
    with np.errstate(over="ignore", under="ignore"):
        single = np.clip(x.astype(np.float32), tiny, np.finfo(np.float32).max)
    return (single.view(np.int32).astype(np.int64) - _ONE).astype(np.float64)


def log_value(code: Floats, dtype: np.dtype) -> np.ndarray:
    """Invert :func:`log_code` (rounded, kept positive and finite in ``dtype``)."""
    info = np.finfo(dtype)
    bits = np.clip(np.rint(code) + _ONE, 1, float(np.float32(np.finfo(np.float32).max).view(np.int32))).astype(np.int32)
    with np.errstate(under="ignore"):
        out: np.ndarray = np.clip(bits.view(np.float32).astype(np.float64), info.smallest_subnormal, info.max)
        return out.astype(dtype)
