import pytest
import torch
from torch import nn

from flsparse.sparsity import inverse_power, power, sparsify, spectral_exponent
from flsparse.sparsity.powerprop import spectral_inverse


@pytest.mark.parametrize("beta", [1.0, 1.25, 1.5, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_power_and_its_inverse(beta: float, dtype: torch.dtype) -> None:
    v = torch.tensor([-2.0, -0.5, 0.0, 0.25, 3.0], dtype=dtype)
    torch.testing.assert_close(power(v, beta), v.sign() * v.abs() ** beta)
    torch.testing.assert_close(power(inverse_power(v, beta), beta), v)
    assert power(v, beta).dtype == inverse_power(v, beta).dtype == dtype


@pytest.mark.parametrize("beta", [1.25, 1.5, 2.0])
def test_gradient_is_the_derivative_and_zero_at_zero(beta: float) -> None:
    v = torch.tensor([-2.0, 0.0, 0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: power(v[[0, 2]], beta), v)
    (gradient,) = torch.autograd.grad(power(v, beta).sum(), v)
    assert gradient[1] == 0
    assert gradient.isfinite().all()


def test_spectral_exponent_by_hand() -> None:
    # all ones, 2 x 8: sigma = sqrt(16) = 4, mean = 1
    assert spectral_exponent(torch.ones(2, 2, 4)) == pytest.approx(1.25)
    assert spectral_exponent(torch.zeros(3, 3)) == 1.0


def test_spectral_exponent_is_close_to_the_exact_singular_value() -> None:
    v = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    sigma = torch.linalg.matrix_norm(v.abs(), 2)
    assert spectral_exponent(v) == pytest.approx(1 + float(v.abs().mean() / sigma), rel=1e-3)


def test_spectral_conversion_is_consistent() -> None:
    w = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    v, beta = spectral_inverse(w)
    assert spectral_exponent(v) == pytest.approx(beta, abs=1e-6)
    torch.testing.assert_close(power(v, beta), w, rtol=1e-4, atol=1e-6)


def test_initial_distribution_of_the_computed_weights_is_the_plain_one() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(200, 300)
    before = plain.weight.detach().clone()
    sparsify(plain, 1.25)
    torch.testing.assert_close(power(plain.weight.detach(), 1.25), before, rtol=1e-5, atol=0)
    assert plain.weight.std() > before.std()  # v itself is distributed otherwise
