"""Moments: equal to the bit whatever way rows are divided, and equal to what numpy finds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flsparse.tasks.moments import Moments, exact_sum

floats = st.floats(-1e90, 1e90, allow_nan=False)


@given(st.lists(floats, max_size=30), st.integers(0, 30))
def test_rows_divided_in_two_have_the_same_moments(values: list[float], cut: int) -> None:
    rows = np.array(values, dtype=np.float64)
    assert Moments.of(rows[:cut]) + Moments.of(rows[cut:]) == Moments.of(np.sort(rows))


@given(st.lists(floats, max_size=30))
def test_the_exact_sum_rounds_to_that_of_fsum(values: list[float]) -> None:
    assert float(exact_sum(np.array(values, dtype=np.float64))) == math.fsum(values)


@given(st.lists(floats, max_size=10))
def test_moments_travel_as_text(values: list[float]) -> None:
    moments = Moments.of(np.array(values, dtype=np.float64))
    assert Moments.read(moments.written()) == moments


def test_mean_and_deviation() -> None:
    values = np.array([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    assert (Moments.of(values).mean, Moments.of(values).std) == (5.0, 2.0)
    shifted = Moments.of(values + 1e8)  # one pass in float64 would lose the deviation
    assert shifted.std == 2.0
    assert Moments.of(np.full(3, 0.1)).std == 1.0
    assert (Moments().mean, Moments().std) == (0.0, 1.0)


@pytest.mark.parametrize(
    "texts", [["1", "1/0", "1"], ["1"], ["-1", "0", "0"], ["1", "2", "-3"], "abc", ["1", "9e999", "1"]]
)
def test_what_no_rows_have_is_refused(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="count, sum and sum of squares"):
        Moments.read(texts)


def test_infinity_is_refused() -> None:
    with pytest.raises(ValueError, match="inf is no value"):
        exact_sum(np.array([1.0, np.inf]))
