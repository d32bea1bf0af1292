"""Models by name."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from flsparse.configs import build
from flsparse.tasks.models.char_lstm import char_lstm
from flsparse.tasks.models.cnn import cnn
from flsparse.tasks.models.mlp import mlp
from flsparse.tasks.models.resnet import resnet18, resnet20
from flsparse.tasks.models.vit import vit_tiny
from flsparse.tasks.models.zoo import torchvision_model

MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": cnn,
    "mlp": mlp,
    "resnet20": resnet20,
    "resnet18": resnet18,
    "char_lstm": char_lstm,
    "vit_tiny": vit_tiny,
    "torchvision": torchvision_model,
}


def build_model(config: Mapping[str, Any], input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build the model that a configuration names, with torch's default generator for its initial weights.

    Parameters
    ----------
    config : Mapping
        ``name``, one of ``MODELS``, and the model's own arguments.
    input_shape : tuple of int
        (channels, height, width) of an image, or (length,) of a text.
    num_classes : int
        Number of outputs.

    Raises
    ------
    ValueError
        If the name or an argument is unknown, or the model is for another kind of data.
    """
    arguments = dict(config)
    name = arguments.pop("name", None)
    reads_text, is_text = name == "char_lstm", len(input_shape) == 1
    if name in MODELS and reads_text != is_text:
        mend = "model=char_lstm" if is_text else "model=cnn"
        raise ValueError(f"model.name={name} does not read {'text' if is_text else 'images'}; use {mend}")
    offered = {"input_shape": input_shape, "num_classes": num_classes}
    return build(MODELS, name, arguments, what="model", offered=offered)
