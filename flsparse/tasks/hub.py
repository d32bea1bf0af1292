"""Any image data set of the Hugging Face hub, through flwr-datasets."""

from typing import Any

import numpy as np
import torch

from flsparse.tasks.data import Normalize, Source
from flsparse.tasks.datasets import Stats

_CHUNK = 1000


def hub_images(
    *,
    repo: str,
    subset: str | None = None,
    image: str = "image",
    label: str = "label",
    natural_id: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    image_size: int | None = None,
    mean: Stats = 0.5,
    std: Stats = 0.5,
) -> Source:
    """Load an image data set of the hub, or one in a local folder.

    Parameters
    ----------
    repo : str
        Such as ``"ylecun/mnist"``, or a folder that ``datasets.load_dataset`` reads.
    subset : str, optional
        The configuration to take of a data set that has several.
    image, label : str
        Column names.
    natural_id : str, optional
        Column with the natural node of each sample, for ``partition.kind=natural``.
    train_split, test_split : str
        Split names.
    image_size : int, optional
        Side of the square in pixels that images are resized to; without it all must have one size.
    mean, std : float or sequence of float
        Of the pixels in [0, 1], for all channels or one each.

    Returns
    -------
    Source
        Gray images with one channel, all others with three.

    Raises
    ------
    ModuleNotFoundError
        If flwr-datasets is not installed.
    OSError
        If the data set cannot be fetched.
    ValueError
        If a split or column is missing, or images differ in size.
    """
    try:
        from datasets import Image
        from flwr_datasets import FederatedDataset
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("dataset=hf needs flwr-datasets: pip install flwr-datasets") from error
    try:
        fetched = FederatedDataset(dataset=repo, subset=subset, shuffle=False, partitioners={train_split: 1})
        train, test = fetched.load_split(train_split), fetched.load_split(test_split)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"data set {repo} could not be fetched from the hub ({str(error).splitlines()[0]}): check the network and "
            f"dataset.repo; what was fetched once is read from the cache with HF_HUB_OFFLINE=1"
        ) from error
    wanted = [image, label] + ([natural_id] if natural_id else [])
    for column in wanted:
        if column not in train.column_names or column not in test.column_names:
            raise ValueError(
                f"{repo} has no column {column!r}; it has {', '.join(train.column_names)} "
                f"(dataset.image, dataset.label, dataset.natural_id)"
            )
    train, test = (split.cast_column(image, Image()) for split in (train, test))
    labels = {value: code for code, value in enumerate(sorted(set(train[label]) | set(test[label])))}
    people = {value: code for code, value in enumerate(sorted(set(train[natural_id])))} if natural_id else {}

    def codes(column: Any, table: dict[Any, int]) -> np.ndarray:
        return np.array([table.get(value, -1) for value in column], dtype=np.int64)

    mode = "L" if train[0][image].mode in ("1", "L") else "RGB"
    return Source(
        _pixels(train, image, mode, image_size),
        torch.from_numpy(codes(train[label], labels)),
        _pixels(test, image, mode, image_size),
        torch.from_numpy(codes(test[label], labels)),
        len(labels),
        Normalize.of(mean, std),
        train_groups=codes(train[natural_id], people) if natural_id else None,
    )


def _pixels(split: Any, column: str, mode: str, size: int | None) -> torch.Tensor:
    """Decode a split's images into uint8 (samples, channels, height, width), a chunk at a time."""
    first = split[0][column]
    width, height = (size, size) if size else first.size
    pixels = torch.empty((len(split), len(mode), height, width), dtype=torch.uint8)
    row = 0
    for start in range(0, len(split), _CHUNK):
        for picture in split[start : start + _CHUNK][column]:
            if size:
                picture = picture.resize((size, size))
            elif picture.size != first.size:
                raise ValueError(
                    f"images differ in size ({first.size} and {picture.size}): set dataset.image_size to resize them"
                )
            array = np.asarray(picture.convert(mode)).reshape(height, width, -1)
            pixels[row] = torch.from_numpy(array.transpose(2, 0, 1).copy())
            row += 1
    return pixels
