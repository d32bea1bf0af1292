"""Learning rates by round and local steps by learning rate."""

import pytest

from flsparse.schedules import learning_rate, quadratic_synchronization


def test_cosine_falls_by_half_a_wave() -> None:
    rates = [learning_rate(t, 4, 0.1, schedule="cosine") for t in range(1, 6)]
    assert rates == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447, 0.0], abs=1e-6)
    assert learning_rate(5, 4, 0.1, 0.02, "cosine") == pytest.approx(0.02)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="lr_schedule='linear'"):
        learning_rate(1, 4, 0.1, schedule="linear")


@pytest.mark.parametrize(("rate", "steps"), [(0.1, 4), (0.05, 4), (0.04, 6), (0.01, 100), (1e-6, 100)])
def test_quadratic_synchronization(rate: float, steps: int) -> None:
    assert quadratic_synchronization(rate, 0.1, 4, 100) == steps
