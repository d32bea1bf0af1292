"""Layers with the reparametrization alone: recurrent, attention and transposed layers compute in operations of torch's.

They read ``w = sign(v)|v|^beta`` where a plain layer reads its parameter, and the gradient flows into ``v``; the saved
activations are torch's own.
"""

from typing import Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from flsparse.sparsity.effective import effective, in_forward, stored
from flsparse.sparsity.layers import LayerState
from flsparse.sparsity.powerprop import power


class PowerRNNBase(nn.RNNBase):
    """A recurrent layer whose weight matrices hold ``v``; biases are untouched."""

    powerprop: dict[str, LayerState]

    @property
    def _flat_weights(self) -> list[Any]:  # what the forward pass of torch's takes
        return [getattr(self, name, None) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Any]) -> None:
        self.__dict__["_flat_weights"] = weights

    def _update_flat_weights(self) -> None:
        """Nothing to do: they are read anew in every forward pass."""

    def flatten_parameters(self) -> None:
        """Nothing to do: what the forward pass computes with is no parameter."""

    def __getattr__(self, name: str) -> Any:
        value: Any = super().__getattr__(name)
        state = self.__dict__.get("powerprop", {}).get(name)
        return value if state is None or not in_forward() else power(value, state.beta)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if "_is_replica" in self.__dict__ and name in self.__dict__.get("powerprop", {}):
            # Replicas of DataParallel get their parameters as plain attributes, which __getattr__ would not see.
            self._parameters[name] = self.__dict__.pop(name)


class PowerLSTM(PowerRNNBase, nn.LSTM):
    """`torch.nn.LSTM` whose weight matrices hold ``v``."""


class PowerGRU(PowerRNNBase, nn.GRU):
    """`torch.nn.GRU` whose weight matrices hold ``v``."""


class PowerRNN(PowerRNNBase, nn.RNN):
    """`torch.nn.RNN` whose weight matrices hold ``v``."""


class PowerMultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` whose projection matrices hold ``v``."""

    powerprop: dict[str, LayerState]
    in_proj_weight = effective("in_proj_weight")
    q_proj_weight = effective("q_proj_weight")
    k_proj_weight = effective("k_proj_weight")
    v_proj_weight = effective("v_proj_weight")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # torch reads each of them several times
        self._computed = {name: power(stored(self, name), state.beta) for name, state in self.powerprop.items()}
        try:
            return super().forward(*args, **kwargs)
        finally:
            self.__dict__.pop("_computed", None)


class PowerOutProjection(NonDynamicallyQuantizableLinear):
    """The output projection of attention, whose ``weight`` holds ``v``; `torch.nn.MultiheadAttention` reads it."""

    powerprop: dict[str, LayerState]
    weight = effective("weight")


class PowerConvTranspose1d(nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` whose ``weight`` holds ``v``."""

    powerprop: dict[str, LayerState]
    weight = effective("weight")


class PowerConvTranspose2d(nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` whose ``weight`` holds ``v``."""

    powerprop: dict[str, LayerState]
    weight = effective("weight")


class PowerConvTranspose3d(nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` whose ``weight`` holds ``v``."""

    powerprop: dict[str, LayerState]
    weight = effective("weight")
