"""A small convolutional net for small images."""

from torch import nn

from flsparse.tasks.models.resnet import norm_layer


def cnn(
    input_shape: tuple[int, ...], num_classes: int, *, width: int = 16, groups: int = 4, norm: str = "group"
) -> nn.Module:
    """Build three convolutions (a norm and ReLU after each) and two linear layers, sized by the input.

    From 16 pixels on: 5x5 stride 2, 3x3 stride 2, 3x3 stride 2 (a 28x28 image comes out as 4x4); below: 3x3 stride 1
    first, so that an 8x8 image comes out as 2x2. Larger images are averaged down to 4x4. For Fashion-MNIST that is
    89,616 weights and 298 biases and norm parameters, for the 8x8 digits 40,208 and 298.

    Parameters
    ----------
    input_shape : tuple of int
        (channels, height, width).
    num_classes : int
    width : int
        Channels of the first convolution, a multiple of `groups`; the others have 2 and 4 times as many.
    groups : int
        Groups of each GroupNorm.
    norm : {"group", "batch"}
        Which norm; ``batch`` keeps running statistics.

    Raises
    ------
    ValueError
        ``width`` is not a multiple of ``groups``, or the norm is unknown.
    """
    if norm == "group" and width % groups:
        raise ValueError(f"model.width={width} is not a multiple of model.groups={groups}: change either")
    channels, height, breadth = input_shape
    large = min(height, breadth) >= 16
    make_norm = norm_layer(norm, groups)
    layers: list[nn.Module] = []
    plan = [(width, 5 if large else 3, 2 if large else 1), (2 * width, 3, 2), (4 * width, 3, 2)]
    for out_channels, kernel, stride in plan:
        layers += [
            nn.Conv2d(channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
            make_norm(out_channels),
            nn.ReLU(),
        ]
        channels, height, breadth = out_channels, -(-height // stride), -(-breadth // stride)
    if height > 4 or breadth > 4:
        layers.append(nn.AdaptiveAvgPool2d(4))
        height = breadth = 4
    hidden = 4 * width
    layers += [nn.Flatten(), nn.Linear(channels * height * breadth, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)]
    return nn.Sequential(*layers)
