"""The soft threshold against its definition and its optimality."""

import numpy as np
import pytest

from flsparse.sparsity import soft_threshold


def test_by_hand():
    z = np.array([-3.0, -1.0, -0.5, 0.0, 0.25, 1.5], np.float32)
    np.testing.assert_array_equal(soft_threshold(z, 1.0), np.array([-2, 0, 0, 0, 0, 0.5], np.float32))
    assert soft_threshold(z, 0.3).dtype == np.float32
    np.testing.assert_array_equal(soft_threshold(z, 0.0), z)


def test_it_minimizes_the_proximal_objective():
    rng = np.random.default_rng(0)
    z, t = rng.standard_normal(50), 0.4
    x = soft_threshold(z, t)
    best = 0.5 * (x - z) ** 2 + t * np.abs(x)
    for other in np.linspace(-3, 3, 301):
        assert (best <= 0.5 * (other - z) ** 2 + t * abs(other) + 1e-12).all()


def test_a_negative_threshold_is_refused():
    with pytest.raises(ValueError, match="0 or more"):
        soft_threshold(np.zeros(2), -0.1)
