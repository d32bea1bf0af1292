"""Models by name."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from flsparse.configs import build
from flsparse.tasks.factories import called
from flsparse.tasks.models.char_lstm import char_lstm
from flsparse.tasks.models.cnn import cnn
from flsparse.tasks.models.hugging_face import hf_model
from flsparse.tasks.models.mlp import mlp
from flsparse.tasks.models.resnet import resnet18, resnet20
from flsparse.tasks.models.series import conv1d, gru
from flsparse.tasks.models.unet import unet
from flsparse.tasks.models.vit import vit_tiny
from flsparse.tasks.models.zoo import timm_model, torchvision_model

MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": cnn,
    "mlp": mlp,
    "resnet20": resnet20,
    "resnet18": resnet18,
    "char_lstm": char_lstm,
    "vit_tiny": vit_tiny,
    "unet": unet,
    "conv1d": conv1d,
    "gru": gru,
    "torchvision": torchvision_model,
    "timm": timm_model,
    "hf": hf_model,
}

_READS = {  # the first that reads a kind is the one proposed
    "cnn": ("images",),
    "mlp": ("vectors", "series", "images"),
    "conv1d": ("series",),
    "gru": ("series",),
    "resnet20": ("images",),
    "resnet18": ("images",),
    "char_lstm": ("text",),
    "vit_tiny": ("images",),
    "unet": ("images",),
    "torchvision": ("images",),
    "timm": ("images",),
    "hf": ("images", "text"),
}


def build_model(
    config: Mapping[str, Any], input_shape: tuple[int, ...], num_classes: int, *, is_text: bool | None = None
) -> nn.Module:
    """Build the model that a configuration names, with torch's default generator for its initial weights.

    Parameters
    ----------
    config : Mapping
        ``name``, one of ``MODELS``, and the model's own arguments.
    input_shape : tuple of int
        (channels, height, width) of an image, (length,) of a text, (features,) of a vector, (channels, length) of a
        series.
    num_classes : int
        Number of outputs.
    is_text : bool, optional
        Inputs are character codes; by default as the model reads them.

    Raises
    ------
    ValueError
        If the name or an argument is unknown, or the model is for another kind of data.
    """
    arguments = dict(config)
    name = arguments.pop("name", None)
    offered = {"input_shape": input_shape, "num_classes": num_classes}
    if name == "python":
        return python_model(arguments, offered)
    is_text = name == "char_lstm" and len(input_shape) == 1 if is_text is None else is_text
    kind = "text" if is_text else {1: "vectors", 3: "images"}.get(len(input_shape), "series")
    if kind not in _READS.get(str(name), (kind,)):
        mend = next(each for each, kinds in _READS.items() if kind in kinds)
        raise ValueError(f"model.name={name} does not read {kind}; use model={mend}")
    return build(MODELS, name, arguments, what="model", offered=offered)


def python_model(settings: Mapping[str, Any], offered: Mapping[str, Any]) -> nn.Module:
    """Call a function or class of the user's own, ``settings["factory"]``, with its other settings, for a module.

    It is offered ``input_shape`` and ``num_classes``, the number of outputs. ValueError where it makes something else.
    """
    model = called(settings, offered, "model")
    if not isinstance(model, nn.Module):
        raise ValueError(f"model.factory={settings['factory']} returns {type(model).__name__}, not a torch.nn.Module")
    if not any(True for _ in model.parameters()):
        raise ValueError(
            f"model.factory={settings['factory']} returns a module without parameters: nothing would train"
        )
    return model
