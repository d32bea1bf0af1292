"""A U-Net: an output for each pixel (Ronneberger et al., 2015, arXiv 1505.04597), with group norm and padding."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

_GROUPS = 4


def _twice(channels: int, out_channels: int) -> nn.Sequential:
    """Return two 3x3 convolutions that keep the size, each with a norm and ReLU."""
    layers: list[nn.Module] = []
    for inputs in (channels, out_channels):
        layers += [
            nn.Conv2d(inputs, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(_GROUPS, out_channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


class _UNet(nn.Module):
    def __init__(self, channels: int, outputs: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(_twice(*pair) for pair in zip([channels, *widths[:-1]], widths, strict=True))
        self.up = nn.ModuleList(_twice(3 * each, each) for each in reversed(widths[:-1]))
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels: list[Tensor] = []
        for level, down in enumerate(self.down):
            x = down(self.pool(x) if level else x)
            levels.append(x)
        for up, skipped in zip(self.up, reversed(levels[:-1]), strict=True):
            x = interpolate(x, size=skipped.shape[-2:])  # also of odd sizes
            x = up(torch.cat([x, skipped], dim=1))
        masks: Tensor = self.head(x)
        return masks


def unet(input_shape: tuple[int, ...], num_classes: int, *, width: int = 16, depth: int = 2) -> nn.Module:
    """Build a U-Net that gives each pixel its outputs; images of any size from ``2**depth`` pixels a side.

    Parameters
    ----------
    input_shape : tuple of int
        (channels, height, width).
    num_classes : int
        Outputs of a pixel: classes, or 1 for an object and its background.
    width : int
        Channels at full size, a multiple of 4; each level down has twice as many.
    depth : int
        Times that the image is halved, at least 1.

    Returns
    -------
    nn.Module
        Maps (batch, channels, height, width) to (batch, num_classes, height, width).

    Raises
    ------
    ValueError
        ``width`` or ``depth`` is out of range.
    """
    if width < 1 or width % _GROUPS:
        raise ValueError(f"model.width={width} is not a multiple of {_GROUPS}, the groups of its norm: change it")
    channels, height, breadth = input_shape
    if depth < 1 or min(height, breadth) < 2**depth:
        raise ValueError(
            f"model.depth={depth} must be at least 1, and halve an image of {height}x{breadth} down to no less than a "
            f"pixel: lower it"
        )
    return _UNet(channels, num_classes, width, depth)
