"""Arithmetic with the same bits on every machine: integers and IEEE 754 operations alone.

A sum, a dot product, a power or a logarithm differs in its last bits from processor to processor: vector units add in
another order, fuse a multiplication with an addition, or take another polynomial. The functions here use +, -, x, /,
comparisons, integers and casts alone, in an order that is written down, so equal inputs give equal bits everywhere.
``tests/codec/test_portable.py`` keeps the modules that need this from calling anything else.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from flsparse.codec import kernel

FRACTION = 16  # bits behind the point of a logarithm
_INDEX = 14  # leading bits of an integer that its logarithm looks at: exact up to 2^14


@lru_cache(maxsize=1)
def _mantissa_logs() -> NDArray[np.int64]:
    """Return ``log2(1 + i / 2^13)`` for i in 0..2^13 - 1, in units of 2^-FRACTION: by repeated squaring."""
    x = (np.arange(1 << _INDEX - 1, dtype=np.uint64) << np.uint64(31 - (_INDEX - 1))) + np.uint64(1 << 31)
    logs = np.zeros(x.size, np.int64)
    for _ in range(FRACTION):  # x in [1, 2) with 31 bits behind the point
        x = x * x >> np.uint64(31)
        digit = x >> np.uint64(32)
        logs = logs << 1 | digit.astype(np.int64)
        x >>= digit
    return logs


def log2(n: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the binary logarithm of positive integers, in units of ``2^-FRACTION``, exact to 1e-3 bits.

    Parameters
    ----------
    n : np.ndarray
        Any shape, integers of 1 to 2**53; beyond 2**14 the 14 leading bits count.

    Examples
    --------
    >>> (log2(np.array([1, 2, 3, 1024])) / (1 << FRACTION)).round(3).tolist()
    [0.0, 1.0, 1.585, 10.0]
    """
    mantissa, exponent = np.frexp(np.asarray(n, np.float64))  # exact: the bits of a double, taken apart
    index = (mantissa * (1 << _INDEX)).astype(np.int64) - (1 << _INDEX - 1)
    logs: NDArray[np.int64] = _mantissa_logs()[index] + ((exponent.astype(np.int64) - 1) << FRACTION)
    return logs


def entropy_bits(counts: NDArray[np.integer]) -> float:
    """Return the empirical entropy of symbols with these counts times their number, in bits.

    Parameters
    ----------
    counts : np.ndarray
        Shape (alphabet,), integers of 0 or more, summing to less than 2**31.

    Examples
    --------
    >>> entropy_bits(np.array([2, 0, 2]))
    4.0
    """
    if kernel.compiled is not None:
        bits: float = kernel.compiled.entropy(np.ascontiguousarray(counts, np.int64))
        return bits
    used = counts[counts > 0].astype(np.int64)
    if not used.size:
        return 0.0
    total = used.sum(keepdims=True, dtype=np.int64)
    return int((used * (log2(total) - log2(used))).sum()) / (1 << FRACTION)


def total(x: NDArray[np.floating]) -> float:
    """Return the sum of a vector in double precision: halves are added until little is left, then that in a row.

    Parameters
    ----------
    x : np.ndarray
        Shape (n,), floating.

    Examples
    --------
    >>> total(np.array([0.5, 0.25, 4.0]))
    4.75
    """
    return float(totals(x[None])[0])


def totals(x: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return :func:`total` of each row of a matrix, shape (rows, n), the same bits.

    Examples
    --------
    >>> totals(np.array([[0.5, 0.25], [4.0, 1.0]])).tolist()
    [0.75, 5.0]
    """
    x = x.astype(np.float64, copy=False)
    while x.shape[1] > 512:
        half = x.shape[1] // 2
        x = np.concatenate([x[:, :half] + x[:, half : 2 * half], x[:, 2 * half :]], axis=1)
    return np.add.accumulate(x, axis=1)[:, -1] if x.shape[1] else np.zeros(len(x))


def power(base: float, exponent: int) -> float:
    """Return ``base**exponent`` by squaring, for an exponent of 0 or more.

    Examples
    --------
    >>> power(0.5, 3)
    0.125
    """
    value = 1.0
    while exponent:
        if exponent & 1:
            value *= base
        base *= base
        exponent >>= 1
    return value


def powers(base: float, exponents: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return :func:`power` of many exponents, shape (n,), the same bits.

    Examples
    --------
    >>> powers(0.5, np.array([0, 1, 3])).tolist()
    [1.0, 0.5, 0.125]
    """
    values = np.ones(exponents.size)
    for bit in range(int(exponents.max(initial=0)).bit_length()):
        values[(exponents >> bit & 1) > 0] *= base
        base *= base
    return values
