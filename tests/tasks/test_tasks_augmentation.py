"""Augmentation: of training alone, each sample its own draw, masks with their images, from a seed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from flsparse.tasks import build_task
from flsparse.tasks.augmentation import TRANSFORMS, make_augmentation
from flsparse.tasks.torchvision_compat import import_torchvision

FitNode = Callable[..., Any]
FLIP = ["RandomHorizontalFlip"]


def images(count: int = 40) -> torch.Tensor:
    return torch.arange(count * 3 * 6 * 6, dtype=torch.int64).remainder(256).to(torch.uint8).reshape(count, 3, 6, 6)


def test_each_sample_draws_its_own() -> None:
    augment = make_augmentation(FLIP, masks=False)
    torch.manual_seed(0)
    stored, labels = images(), torch.arange(40)
    moved, targets = augment(stored, labels)
    flipped = [torch.equal(a, b.flip(-1)) for a, b in zip(moved, stored, strict=True)]
    assert 5 < sum(flipped) < 35
    assert all(f or torch.equal(a, b) for f, a, b in zip(flipped, moved, stored, strict=True))
    assert torch.equal(targets, labels)
    assert moved.dtype == torch.uint8


def test_a_mask_moves_with_its_image() -> None:
    augment = make_augmentation([*FLIP, {"RandomCrop": {"size": 6, "padding": 2}}], masks=True)
    torch.manual_seed(0)
    stored = images()
    moved, masks = augment(stored, stored[:, 0])
    assert not torch.equal(moved, stored)
    assert torch.equal(moved[:, 0], masks)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("RandomFlip", "augment: 'RandomFlip' is none of RandomHorizontalFlip.*with its arguments"),
        ("RandomHorizontalFlop", "did you mean RandomHorizontalFlip"),
        ({"Lambda": {"lambd": 1}}, "is none of"),
        ({"RandomCrop": {"sise": 8}}, "augment: RandomCrop takes no such arguments"),
        ({"RandomHorizontalFlip": {"p": 7}}, "augment: RandomHorizontalFlip takes no such arguments"),
        ({}, "is none of"),
    ],
)
def test_what_is_no_transform_is_refused(step: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_augmentation([step], masks=False)


def test_a_crop_of_another_size_is_refused() -> None:
    augment = make_augmentation([{"RandomCrop": {"size": 4}}], masks=False)
    with pytest.raises(ValueError, match="images of 3x6x6 come out as 3x4x4; give a crop the size of the images"):
        augment(images(), torch.arange(40))


def test_every_name_is_one_of_torchvision() -> None:
    v2 = import_torchvision("transforms.v2")
    assert all(hasattr(v2, name) for name in TRANSFORMS)


def test_training_alone_is_augmented_and_follows_the_seed(digits_config: dict[str, Any], fit_node: FitNode) -> None:
    plain, moved = build_task(digits_config), build_task(digits_config | {"augment": FLIP})
    assert moved.evaluate(moved.model(), moved.test_data()) == plain.evaluate(plain.model(), plain.test_data())
    (first, *_), (second, *_), (without, *_) = (fit_node(task, 0) for task in (moved, moved, plain))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not all(np.array_equal(first[name], without[name]) for name in first)
