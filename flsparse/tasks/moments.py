"""Mean and standard deviation of columns that are spread over nodes, exact: equal whatever way the rows are divided."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

_LARGEST = 1e100  # of a value: its square must be finite
_HALF = 26  # bits: the sum of so many from each of 2**36 values fits int64


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of squares of a column; addition joins the rows of two nodes.

    Attributes
    ----------
    count : int
        Values.
    total, squares : Fraction
        Sum of the values and of their squares, without rounding.

    Examples
    --------
    >>> here, there = Moments.of(np.array([0.1, 1e20])), Moments.of(np.array([0.2]))
    >>> here + there == Moments.of(np.array([0.2, 0.1, 1e20]))
    True
    """

    count: int = 0
    total: Fraction = Fraction(0)
    squares: Fraction = Fraction(0)

    @classmethod
    def of(cls, values: npt.NDArray[np.float64]) -> "Moments":
        """Measure values, float64 (count,), finite and of an absolute value up to 1e100."""
        return cls(len(values), exact_sum(values), exact_sum(np.concatenate(_squared(values))))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """Mean, rounded once; 0 of no values."""
        return float(self.total / self.count) if self.count else 0.0

    @property
    def std(self) -> float:
        """Standard deviation over the count, 1 where all values are equal: something to divide by."""
        if not self.count:
            return 1.0
        return math.sqrt(self.squares / self.count - (self.total / self.count) ** 2) or 1.0

    def written(self) -> list[str]:
        """Return the three numbers as texts, as a message carries them."""
        return [str(self.count), str(self.total), str(self.squares)]

    @classmethod
    def read(cls, texts: Sequence[str]) -> "Moments":
        """Return what :meth:`written` wrote.

        Raises
        ------
        ValueError
            It is something else, or no rows have such moments.
        """
        try:
            count, total, squares = (Fraction(text) for text in texts)
        except (ValueError, TypeError, ZeroDivisionError) as error:
            raise ValueError(f"{str(texts)[:60]} are no count, sum and sum of squares") from error
        if count.denominator != 1 or count < 0 or squares < 0 or max(abs(total), squares) > Fraction(_LARGEST) ** 3:
            raise ValueError(f"{str(texts)[:60]} are the count, sum and sum of squares of no rows")
        return cls(int(count), total, squares)


def _squared(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return squares and the errors of their rounding (T. J. Dekker, 1971)."""
    high = values * (2.0**27 + 1)
    high = high - (high - values)
    low, rounded = values - high, values * values
    return rounded, low * low - ((rounded - high * high) - 2 * high * low)


def exact_sum(values: npt.NDArray[np.float64]) -> Fraction:
    """Sum float64 values, shape (count,), without rounding.

    A value is a whole number of 53 bits times a power of two: whole numbers of one power are added as integers.

    Raises
    ------
    ValueError
        A value is not finite, or beyond 1e200.

    Examples
    --------
    >>> exact_sum(np.array([1e20, 1.0, -1e20]))
    Fraction(1, 1)
    """
    if len(values) and not np.abs(values).max() <= _LARGEST**2:
        raise ValueError(f"{values[np.argmax(np.abs(values))]} is no value that can be averaged")
    fractions, powers = np.frexp(values)
    whole = np.ldexp(fractions, 53).astype(np.int64)
    total = Fraction(0)
    for power in np.unique(powers):
        chosen = whole[powers == power]
        high, low = int((chosen >> _HALF).sum()), int((chosen & (1 << _HALF) - 1).sum())
        total += Fraction((high << _HALF) + low) * Fraction(2) ** (int(power) - 53)
    return total
