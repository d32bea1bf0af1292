"""Nets for series: convolutions over time, and a gated recurrent unit."""

from torch import Tensor, nn

_GROUPS = 4
_KEPT = 4  # places in time behind the convolutions


def conv1d(input_shape: tuple[int, ...], num_classes: int, *, width: int = 16, kernel: int = 5) -> nn.Module:
    """Build three convolutions over time of stride 2 (group norm and ReLU after each) and two linear layers.

    Parameters
    ----------
    input_shape : tuple of int
        (channels, length); any length will do.
    num_classes : int
        Number of outputs.
    width : int
        Channels of the first convolution, a multiple of 4; the others have 2 and 4 times as many.
    kernel : int
        Steps that a convolution sees, an odd number.

    Raises
    ------
    ValueError
        ``width`` is no multiple of 4, or ``kernel`` is even.
    """
    if width < 1 or width % _GROUPS:
        raise ValueError(f"model.width={width} is not a multiple of {_GROUPS}, the groups of its norm: change it")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"model.kernel={kernel} must be an odd number, so that the middle is a step of its own")
    channels, length = input_shape
    layers: list[nn.Module] = []
    for out_channels in (width, 2 * width, 4 * width):
        layers += [
            nn.Conv1d(channels, out_channels, kernel, 2, padding=kernel // 2, bias=False),
            nn.GroupNorm(_GROUPS, out_channels),
            nn.ReLU(),
        ]
        channels, length = out_channels, -(-length // 2)
    if length > _KEPT:
        layers.append(nn.AdaptiveAvgPool1d(_KEPT))
        length = _KEPT
    hidden = 4 * width
    layers += [nn.Flatten(), nn.Linear(channels * length, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)]
    return nn.Sequential(*layers)


class _LastStep(nn.Module):
    """A GRU over (batch, channels, length), of which the top layer's last state is kept."""

    def __init__(self, channels: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.gru = nn.GRU(channels, hidden, layers, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        last: Tensor = self.gru(x.transpose(1, 2))[0][:, -1]
        return last


def gru(input_shape: tuple[int, ...], num_classes: int, *, hidden: int = 64, layers: int = 1) -> nn.Module:
    """Build a gated recurrent unit (Cho et al., 2014) and a linear layer on its last state.

    Parameters
    ----------
    input_shape : tuple of int
        (channels, length); any length will do.
    num_classes : int
        Number of outputs.
    hidden, layers : int
        Units of a layer, and layers, at least 1.
    """
    if hidden < 1 or layers < 1:
        raise ValueError(f"model.hidden={hidden} and model.layers={layers} must be at least 1")
    return nn.Sequential(_LastStep(input_shape[0], hidden, layers), nn.Linear(hidden, num_classes))
