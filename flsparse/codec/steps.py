"""Uniform quantizers: steps, rounding, and the exact arithmetic of decoding.

A value x becomes the integer q = round(x / step), clipped to -bound..bound, and comes back as q * step. Steps are
codes of 14 bits, the exponent and 3 bits of fraction of a double: eight steps an octave, at any magnitude.
Decoding computes in double precision, where q * step is exact, and rounds once to the array's dtype.
"""

import math

import numpy as np
from numpy.typing import NDArray

from flsparse.codec import kernel
from flsparse.codec.portable import total, totals

Floats = NDArray[np.float64]
Integers = NDArray[np.int16]

FINE_BOUND = 2047  # of small arrays: biases, norms, statistics
_SHIFT = 49
_SAMPLE = 1 << 12
_TOGETHER = 1 << 13  # sampled values times steps that are tried at once
MAX_CODE = 0x3FF7  # the largest finite step; one more would be infinity
ONE_CODE = 0x1FF8  # a step of 1
_ONE = 0x3F800000  # 1.0 as float32


def step_code(step: float, *, up: bool = False) -> int:
    """Return the code of the representable step nearest ``step``, or of the next one at or above it."""
    bits = int(np.float64(step).view(np.int64))
    return min(max(1, bits + ((1 << _SHIFT) - 1 if up else 1 << _SHIFT - 1) >> _SHIFT), MAX_CODE)


def step_of(code: int) -> float:
    """Return the step of a code in 1..MAX_CODE."""
    return float(np.int64(code << _SHIFT).view(np.float64))


def _sample(x: Floats) -> Floats:
    return x[:: max(1, -(-x.size // _SAMPLE))]


def rms(x: Floats) -> float:
    """Root mean square of a strided sample, safe from overflow and underflow."""
    sample = _sample(x)
    top = float(np.abs(sample).max(initial=0.0))
    if top == 0.0:
        return 0.0
    scaled = sample / top
    return top * math.sqrt(total(scaled * scaled) / sample.size)


def least_squares_code(x: Floats, bound: int) -> int:
    """Return the step code with the least mean squared error under nearest rounding with clipping at ``bound``.

    Parameters
    ----------
    x : np.ndarray
        Shape (n,), float64, finite; strided samples of its bulk and of its tail are looked at.
    bound : int
        Largest integer, 7 for int4 and 127 for int8.
    """
    widest = widest_code(x, bound)
    magnitude = np.abs(x)
    edge = float(magnitude.max(initial=0.0)) / 8
    bulk, tail = _sample(x), x[magnitude > edge]  # clipping hurts the rare large values: they are sampled apart
    bulk, few = bulk[np.abs(bulk) <= edge], _sample(tail)
    sample = np.concatenate([bulk, few])
    shares = np.repeat([-(-x.size // _SAMPLE), tail.size / max(1, few.size)], [bulk.size, few.size])
    if kernel.compiled is not None:
        code: int = kernel.compiled.least_squares(sample, shares, widest, bound)
        return code
    best_error, best = np.inf, widest
    codes = range(widest, max(0, widest - 28), -1)  # down to a twelfth of the range
    together = max(1, _TOGETHER // sample.size)
    for start in range(0, len(codes), together):
        some = codes[start : start + together]
        for code, error in zip(some, _errors(sample, shares, some, bound), strict=True):
            if error < best_error:
                best_error, best = error, code
            elif error > 2 * best_error:
                return best
    return best


def _errors(sample: Floats, shares: Floats, codes: range, bound: int) -> list[float]:
    """Return the squared error of a sample at each of some step codes."""
    steps = (np.array(codes, np.int64) << _SHIFT).view(np.float64)[:, None]
    with np.errstate(over="ignore", invalid="ignore"):  # at the edge of double precision the widest step stays
        q = np.rint(sample / steps)
        miss = np.minimum(np.maximum(q, -bound), bound) * steps - sample
        errors: list[float] = totals(miss * miss * shares).tolist()
    return errors


def widest_code(x: Floats, bound: int) -> int:
    """Return the code of the smallest step at which nothing is clipped, as unbiased rounding needs."""
    top = float(np.abs(x).max(initial=0.0))
    return step_code(top / bound, up=True)


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
    if rng is None:
        np.rint(scaled, out=scaled)
    else:
        scaled += rng.random(x.size)
        np.floor(scaled, out=scaled)
    return np.clip(scaled, -bound, bound, out=scaled).astype(np.int16)


def dequantize(q: NDArray[np.integer], step: float | Floats, base: np.ndarray | None, dtype: np.dtype) -> np.ndarray:
    """Return ``base + q * step``, one step or one each, rounded to ``dtype`` and saturated at its largest value."""
    with np.errstate(over="ignore"):
        x = q * np.asarray(step, np.float64)
        if base is not None:
            x += base
    limit = float(np.finfo(dtype).max)
    out: np.ndarray = np.clip(x, -limit, limit, out=x).astype(dtype)
    return out


def log_code(x: np.ndarray) -> Floats:
    """Map positive floats to their float32 bit pattern minus the pattern of 1.0: a piecewise linear 2^23 log2(x)."""
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
