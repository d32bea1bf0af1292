"""Image models of torchvision and timm, by name."""

import difflib
from typing import Any, Literal

from torch import Tensor, nn

from flsparse.tasks.torchvision_compat import import_torchvision

_COLORS = 3
_SEVERAL_OUTPUTS = ("googlenet", "inception_v3")  # auxiliary classifiers, in training


class _Repeated(nn.Module):
    """Mixed into a model of color images: a gray one is repeated for each color."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x.expand(-1, _COLORS, -1, -1))


def torchvision_model(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    arch: str = "mobilenet_v3_small",
    channels: Literal["repeat", "stem"] = "repeat",
) -> nn.Module:
    """Build a torchvision classification model with fresh weights.

    Parameters
    ----------
    input_shape : tuple of int
        (channels, height, width); the sizes accepted depend on the model.
    num_classes : int
        Number of outputs.
    arch : str
        A name of ``torchvision.models.list_models(module=torchvision.models)``.
    channels : {"repeat", "stem"}
        What becomes of images that are not in color: gray ones are repeated three times, as pre-trained weights want
        it; or the first convolution is a new one, of as many channels as there are.

    Raises
    ------
    ValueError
        There is no such model, or images of two or of more than three channels cannot be repeated.
    """
    models = import_torchvision("models")
    names = models.list_models(module=models)
    if arch not in names:
        near = difflib.get_close_matches(arch, names, n=3, cutoff=0.4) or names[:3]
        raise ValueError(f"model.arch={arch!r} is no torchvision classification model, as {', '.join(near)} are")
    several = {"init_weights": True} if arch in _SEVERAL_OUTPUTS else {}
    model: nn.Module = models.get_model(arch, weights=None, num_classes=num_classes, **several)
    if input_shape[0] == _COLORS:
        return model
    if channels == "stem":
        return _with_stem(model, input_shape[0])
    if input_shape[0] != 1:
        raise ValueError(
            f"model.channels=repeat takes gray images and color ones, not {input_shape[0]} channels: use "
            f"model.channels=stem"
        )
    model.__class__ = type(f"Gray{type(model).__name__}", (_Repeated, type(model)), {})
    return model


def _with_stem(model: nn.Module, channels: int) -> nn.Module:
    """Replace a model's first convolution by a fresh one of other input channels."""
    name, first = next((name, each) for name, each in model.named_modules() if isinstance(each, nn.Conv2d))
    stem = nn.Conv2d(
        channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, stem)
    return model


def timm_model(input_shape: tuple[int, ...], num_classes: int, *, arch: str = "resnet10t") -> nn.Module:
    """Build an image model of timm with fresh weights, for images of any number of channels.

    Parameters
    ----------
    input_shape : tuple of int
        (channels, height, width); vision transformers are built for this size.
    num_classes : int
        Number of outputs.
    arch : str
        A name of ``timm.list_models()``.

    Raises
    ------
    ModuleNotFoundError
        timm is not installed.
    ValueError
        There is no such model.
    """
    try:
        import_torchvision()  # timm imports it, whichever torch it was compiled for
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("model=timm needs timm: pip install 'flsparse[timm]'") from error
    if arch not in (names := timm.list_models()):
        near = difflib.get_close_matches(arch, names, n=3, cutoff=0.4) or names[:3]
        raise ValueError(f"model.arch={arch!r} is no model of timm, as {', '.join(near)} are")
    options: dict[str, Any] = {"pretrained": False, "in_chans": input_shape[0], "num_classes": num_classes}
    try:
        model: nn.Module = timm.create_model(arch, img_size=input_shape[1:], **options)
    except TypeError:  # a convolutional net takes any size
        model = timm.create_model(arch, **options)
    return model
