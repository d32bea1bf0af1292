"""Augmentation of training images, by transforms of ``torchvision.transforms.v2``; each sample draws its own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flsparse.configs import did_you_mean
from flsparse.tasks.torchvision_compat import import_torchvision

# A configuration may come by a message: nothing but these is ever made.
TRANSFORMS = (
    *("RandomHorizontalFlip", "RandomVerticalFlip", "RandomCrop", "RandomResizedCrop", "RandomRotation"),
    *("RandomAffine", "RandomPerspective", "ElasticTransform", "ColorJitter", "RandomGrayscale", "RandomInvert"),
    *("RandomPosterize", "RandomSolarize", "RandomAdjustSharpness", "RandomAutocontrast", "RandomEqualize"),
    *("GaussianBlur", "GaussianNoise", "RandomErasing", "AutoAugment", "RandAugment", "TrivialAugmentWide", "AugMix"),
)
Augment = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def make_augmentation(steps: Sequence[str | Mapping[str, Any]], *, masks: bool) -> Augment:
    """Return a function of a batch of stored images and targets, which draws from torch's global generator.

    Parameters
    ----------
    steps : sequence of str or Mapping
        Names of ``TRANSFORMS`` in their order, with arguments as ``{name: {argument: value}}``.
    masks : bool
        Targets are masks, which are moved as their images are.

    Raises
    ------
    ValueError
        A name is unknown, or a transform refuses its arguments; later, where images change in size.
    """
    v2 = import_torchvision("transforms.v2")
    transform = v2.Compose([_made(v2, step) for step in steps])
    tv_tensors = import_torchvision("tv_tensors")

    def one(image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if masks:
            moved, mask = transform(tv_tensors.Image(image), tv_tensors.Mask(target))
            return moved.as_subclass(Tensor), mask.as_subclass(Tensor)
        return transform(tv_tensors.Image(image)).as_subclass(Tensor), target

    def augment(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [one(*pair) for pair in zip(images, targets, strict=True)]
        moved = torch.stack([image for image, _ in pairs])
        if moved.shape != images.shape:
            raise ValueError(
                f"augment: images of {_shape(images)} come out as {_shape(moved)}; give a crop the size of the images"
            )
        return moved, torch.stack([target for _, target in pairs])

    return augment


def _made(v2: Any, step: str | Mapping[str, Any]) -> Any:
    names = [step] if isinstance(step, str) else list(step)
    if len(names) != 1 or names[0] not in TRANSFORMS:
        mend = did_you_mean(str(names[0]) if names else "", TRANSFORMS)
        raise ValueError(f"augment: {step!r} is none of {', '.join(TRANSFORMS)}, with its arguments{mend}")
    arguments = {} if isinstance(step, str) else step[names[0]] or {}
    try:
        return getattr(v2, names[0])(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"augment: {names[0]} takes no such arguments {dict(arguments)}: {error}") from error


def _shape(images: Tensor) -> str:
    return "x".join(map(str, images.shape[1:]))
