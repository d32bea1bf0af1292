"""A module's state as arrays and back: what is no array stays the module's own."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flsparse.nets.arrays import load_arrays, state_arrays
from flsparse.sparsity import sparsify


class Versioned(nn.Linear):
    """A layer that reads an older version's weights another way, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, local_metadata: dict[str, Any], *rest: Any) -> None:
        assert local_metadata.get("version") == 2
        super()._load_from_state_dict(state, prefix, local_metadata, *rest)


class Extra(nn.Linear):
    """A layer with an extra state."""

    def __init__(self, extra: object) -> None:
        super().__init__(2, 2)
        self.extra = extra

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


@pytest.mark.parametrize("prepared", [lambda model: model, sparsify])
def test_arrays_are_loaded_as_the_version_that_they_are(prepared: Any) -> None:
    model = prepared(nn.Sequential(Versioned(3, 2), nn.BatchNorm1d(2)))
    arrays = {name: array + 1 for name, array in state_arrays(model).items()}
    load_arrays(model, arrays)
    for name, array in state_arrays(model).items():
        np.testing.assert_array_equal(array, arrays[name])


def test_an_extra_state_travels_as_a_tensor_or_stays() -> None:
    plain, tensor = Extra({"scale": 3}), Extra(torch.tensor([1.0, 2.0]))
    assert list(state_arrays(plain)) == ["weight", "bias"]
    load_arrays(plain, state_arrays(plain))
    assert plain.extra == {"scale": 3}
    arrays = state_arrays(tensor)
    arrays["_extra_state"] += 1
    load_arrays(tensor, arrays)
    assert isinstance(tensor.extra, torch.Tensor)
    assert tensor.extra.tolist() == [2.0, 3.0]


@pytest.mark.parametrize(("change", "said"), [({"bias": None}, "bias"), ({"more": 1.0}, "more"), ({"bias": 1}, "size")])
def test_arrays_of_another_model_are_refused(change: dict[str, Any], said: str) -> None:
    model = nn.Linear(3, 2)
    arrays = state_arrays(model) | {name: np.full(3, value) for name, value in change.items() if value is not None}
    for name, value in change.items():
        if value is None:
            del arrays[name]
    with pytest.raises(ValueError, match=said):
        load_arrays(model, arrays)


def test_a_bfloat16_model_travels_as_float32_and_comes_back() -> None:
    model = nn.Linear(5, 3).to(torch.bfloat16)
    arrays = state_arrays(model)
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    other = nn.Linear(5, 3).to(torch.bfloat16)
    load_arrays(other, arrays)
    assert other.weight.dtype == torch.bfloat16
    assert torch.equal(other.weight, model.weight)
