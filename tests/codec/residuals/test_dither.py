"""The dithered quantizer: by hand, unbiased, contractive."""

from typing import cast

import numpy as np
import pytest

from flsparse.codec.residuals.dither import NORMS, SCALINGS, Dither, dequantize, entropy_bits


class Fixed:
    """A generator whose dither is known."""

    def __init__(self, u: float) -> None:
        self.u = u

    def random(self, size: int, dtype: type) -> np.ndarray:
        return np.full(size, self.u, dtype)


NONE = cast(np.random.Generator, None)  # no dither is drawn


def fixed(u: float) -> np.random.Generator:
    return cast(np.random.Generator, Fixed(u))


X = np.array([4.0, -1.0, 2.0, 0.0], np.float32)


def test_by_hand_with_the_max_norm():
    q, step = Dither(2, "max", "unbiased").quantize(X, fixed(0.5))  # L|x|/4 = 2, 0.5, 1, 0
    assert q.tolist() == [2, -1, 1, 0]
    assert step == 2.0
    assert dequantize(q, step).tolist() == [4, -2, 2, 0]


def test_by_hand_with_the_l2_norm():
    x = np.array([3.0, -4.0], np.float32)  # norm 5; L|x|/5 = 2.4, 3.2 with L = 4
    q, step = Dither(4, "l2", "unbiased").quantize(x, fixed(0.7))
    assert q.tolist() == [3, -3]
    assert step == np.float32(1.25)


def test_the_least_squares_step_by_hand():
    q, step = Dither(2, "max", "least_squares").quantize(X, fixed(0.5))
    assert step == np.float32((4 * 2 + 1 * 1 + 2 * 1) / (4 + 1 + 1))
    assert q.tolist() == [2, -1, 1, 0]


def test_steps_of_twice_the_rms_by_hand():
    x = np.array([6.0, -2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], np.float32)  # rms 2: 6/4 and 2/4, which is even
    q, step = Dither(7, "rms").quantize(x, NONE)
    assert q.tolist() == [2, 0, *[0] * 8]
    assert step == 3
    q, step = Dither(1, "rms").quantize(x, NONE)
    assert q.tolist()[:2] == [1, 0]
    assert step == 6


def test_the_contractive_step_by_hand():
    dither = Dither(2, "max", "contractive")
    assert dither.omega(4) == 4 / 16
    assert Dither(2, "l2", "contractive").omega(10_000) == 50
    _, step = dither.quantize(X, fixed(0.5))
    assert step == np.float32(2 / 1.25)


@pytest.mark.parametrize("norm", ["max", "l2"])
@pytest.mark.parametrize("levels", [1, 2, 7])
def test_unbiased(norm, levels):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(64).astype(np.float32)
    dither = Dither(levels, norm, "unbiased")
    draws = np.array([dequantize(*dither.quantize(x, rng)) for _ in range(4000)])
    error = np.sqrt(dither.omega(64) / 4000) * np.linalg.norm(x)
    np.testing.assert_allclose(draws.mean(axis=0), x, atol=5 * error)
    assert ((draws - x) ** 2).sum(axis=1).mean() <= dither.omega(64) * (x**2).sum() * 1.05


@pytest.mark.parametrize(
    ("norm", "scaling"), [(n, s) for n in NORMS for s in SCALINGS if n != "rms" or s == "least_squares"]
)
@pytest.mark.parametrize("levels", [2, 16, 1024])
def test_a_residual_that_dwindles_to_nothing_stays_finite(levels, norm, scaling):
    rng = np.random.default_rng(1)
    for exponent in range(-150, -100):
        x = np.ldexp(rng.standard_normal(64), exponent).astype(np.float32)
        q, step = Dither(levels, norm, scaling).quantize(x, rng)
        assert np.isfinite(step)
        assert np.isfinite(dequantize(q, step)).all()


@pytest.mark.parametrize("norm", ["rms", "max", "l2"])
def test_least_squares_contracts_for_every_draw(norm):
    rng = np.random.default_rng(1)
    x = rng.standard_normal(1000).astype(np.float32)
    for levels in (1, 2, 16):
        y = dequantize(*Dither(levels, norm).quantize(x, rng))
        assert ((x - y) ** 2).sum() <= (x**2).sum() * (1 + 1e-6)


def test_zeros_levels_and_ranges():
    q, step = Dither(3).quantize(np.zeros(5, np.float32), np.random.default_rng(0))
    assert q.tolist() == [0] * 5
    assert step == 0
    assert dequantize(q, step).tolist() == [0] * 5
    x = np.random.default_rng(2).standard_normal(10_000).astype(np.float32)
    q, _ = Dither(5).quantize(x, np.random.default_rng(3))
    assert np.abs(q).max() == 5
    assert ((q == 0) | (np.sign(q) == np.sign(x))).all()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((0,), "levels=0"),
        ((2000,), "levels=2000"),
        ((2, "l1"), "norm='l1'"),
        ((2, "max", "free"), "scaling='free'"),
        ((2, "rms", "unbiased"), "rms"),
    ],
)
def test_what_does_not_exist_is_refused(arguments, what):
    with pytest.raises(ValueError, match=what):
        Dither(*arguments)


def test_entropy():
    assert entropy_bits(np.array([], np.int16)) == 0
    assert entropy_bits(np.array([3, 3, 3])) == 0
    assert entropy_bits(np.array([-1, 0, 1, 2])) == 8
