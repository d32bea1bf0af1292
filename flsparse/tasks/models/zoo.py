"""torchvision's classification models, by name."""

import difflib

from torch import nn

from flsparse.tasks.torchvision_compat import import_torchvision

_SEVERAL_OUTPUTS = ("googlenet", "inception_v3")  # auxiliary classifiers: no single tensor of logits in training


def torchvision_model(input_shape: tuple[int, ...], num_classes: int, *, arch: str = "mobilenet_v3_small") -> nn.Module:
    """Build a torchvision classification model with fresh weights.

    Parameters
    ----------
    input_shape : tuple of int
        (3, height, width); the sizes accepted depend on the model.
    num_classes : int
    arch : str
        A name of ``torchvision.models.list_models(module=torchvision.models)``.

    Raises
    ------
    ValueError
        If there is no such model, or the images are not in color.
    """
    models = import_torchvision("models")
    if arch in _SEVERAL_OUTPUTS:
        raise ValueError(f"model.arch={arch!r} has several outputs in training, for auxiliary losses; take a resnet18")
    names = models.list_models(module=models)
    if arch not in names:
        near = difflib.get_close_matches(arch, names, n=3, cutoff=0.4) or names[:3]
        raise ValueError(f"model.arch={arch!r} is no torchvision classification model, as {', '.join(near)} are")
    if input_shape[0] != 3:
        raise ValueError(
            f"model.arch={arch} takes images of 3 channels, not {input_shape[0]}; use model=cnn or resnet18"
        )
    model: nn.Module = models.get_model(arch, weights=None, num_classes=num_classes)
    return model
