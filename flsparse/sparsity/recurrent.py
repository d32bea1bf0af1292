"""Recurrent and attention layers: the reparametrization alone, since their forward pass is one fused operation.

For the time of a forward pass the parameters ``v`` are replaced by ``w = sign(v)|v|^beta``, then put back. The gradient
flows into ``v``; the saved activations are torch's own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from flsparse.sparsity.layers import LayerState
from flsparse.sparsity.powerprop import power


class PowerRNNBase(nn.RNNBase):
    """A recurrent layer whose weight matrices hold ``v``; biases are untouched."""

    powerprop: dict[str, LayerState]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        stored = self._flat_weights
        self._flat_weights = [
            power(v, self.powerprop[name].beta) if isinstance(v, Tensor) and name in self.powerprop else v
            for name, v in zip(self._flat_weights_names, stored, strict=True)
        ]
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._flat_weights = stored


class PowerLSTM(PowerRNNBase, nn.LSTM):
    """`torch.nn.LSTM` whose weight matrices hold ``v``."""


class PowerGRU(PowerRNNBase, nn.GRU):
    """`torch.nn.GRU` whose weight matrices hold ``v``."""


class PowerRNN(PowerRNNBase, nn.RNN):
    """`torch.nn.RNN` whose weight matrices hold ``v``."""


class PowerMultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` whose projection matrices hold ``v``; torch reads ``out_proj.weight`` directly."""

    powerprop: dict[str, LayerState]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _computed_weights(self, self.powerprop):
            return super().forward(*args, **kwargs)


@contextmanager
def _computed_weights(module: nn.Module, states: dict[str, LayerState]) -> Iterator[None]:
    owners = {name: module.get_submodule(name.rpartition(".")[0])._parameters for name in states}
    stored = {name: owners[name][name.rpartition(".")[2]] for name in states}
    try:
        for name, v in stored.items():
            assert v is not None
            owners[name][name.rpartition(".")[2]] = power(v, states[name].beta)  # type: ignore[assignment]
        yield
    finally:
        for name, v in stored.items():
            owners[name][name.rpartition(".")[2]] = v


def matrices_of(module: nn.Module) -> list[str]:
    """Return the names, inside the module, of the parameters that the reparametrization takes."""
    if isinstance(module, nn.MultiheadAttention):
        projections = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
        return [name for name in projections if getattr(module, name) is not None] + ["out_proj.weight"]
    return [name for name, value in module.named_parameters(recurse=False) if value.dim() >= 2]
