"""Residual nets for small images."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from flsparse.tasks.torchvision_compat import import_torchvision

_GROUPS = 8


def norm_layer(kind: str, groups: int = _GROUPS) -> Callable[[int], nn.Module]:
    """Return the factory of a norm by its channels: ``batch``, or ``group``, which keeps no running statistics."""
    if kind == "batch":
        return nn.BatchNorm2d
    if kind == "group":
        return partial(nn.GroupNorm, groups)
    raise ValueError(f"model.norm={kind!r} must be batch or group")


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (He et al., 2016, option A)."""

    def __init__(self, channels: int, out_channels: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = norm(out_channels)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()  # modules, so that sparsify can keep their masks as bits
        self.stride, self.new_channels = stride, out_channels - channels

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            shortcut = pad(shortcut, (0, 0, 0, 0, self.new_channels // 2, self.new_channels - self.new_channels // 2))
        out: Tensor = self.relu2(self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x))))) + shortcut)
        return out


def resnet20(input_shape: tuple[int, ...], num_classes: int, *, norm: str = "batch", width: int = 16) -> nn.Module:
    """Build the 20-layer net of He et al. (2016) for CIFAR: three stages of three blocks, 0.27 M parameters.

    Parameters
    ----------
    input_shape : tuple of int
        (channels, height, width).
    num_classes : int
    norm : {"batch", "group"}
    width : int
        Channels of the first stage, a multiple of 8 for group norm; the others have 2 and 4 times as many.
    """
    make_norm = norm_layer(norm)
    layers: list[nn.Module] = [nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False), make_norm(width), nn.ReLU()]
    channels = width
    for stage in range(3):
        for block in range(3):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(_Block(channels, width * 2**stage, stride, make_norm))
            channels = width * 2**stage
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]
    model = nn.Sequential(*layers)
    _initialize(model)
    return model


def resnet18(input_shape: tuple[int, ...], num_classes: int, *, norm: str = "batch") -> nn.Module:
    """Build torchvision's ResNet-18 with a stem for small images: a 3x3 convolution of stride 1, and no max-pool.

    Parameters
    ----------
    input_shape : tuple of int
        (channels, height, width).
    num_classes : int
    norm : {"batch", "group"}
    """
    resnet: Any = import_torchvision("models").resnet18(
        weights=None, num_classes=num_classes, norm_layer=norm_layer(norm)
    )
    resnet.conv1 = nn.Conv2d(input_shape[0], 64, 3, padding=1, bias=False)
    resnet.maxpool = nn.Identity()
    _initialize(resnet)
    model: nn.Module = resnet
    return model


def _initialize(model: nn.Module) -> None:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
