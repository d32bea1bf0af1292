"""Any image data set of the Hugging Face hub, through flwr-datasets."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flsparse.tasks.data import Normalize, Source
from flsparse.tasks.splits import held_out
from flsparse.tasks.targets import Stats

_CHUNK = 1000
_FORMATS = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".json": "json", ".jsonl": "json"}


def hub_images(
    *,
    repo: str,
    subset: str | None = None,
    image: str = "image",
    label: str = "label",
    natural_id: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    test_fraction: float = 0.2,
    image_size: int | None = None,
    mean: Stats = 0.5,
    std: Stats = 0.5,
) -> Source:
    """Load an image data set of the hub, or one in a local folder.

    Parameters
    ----------
    repo : str
        Such as ``"ylecun/mnist"``; a folder that ``datasets`` has saved, or that it reads as a repository; or a file,
        ``.parquet``, ``.arrow``, ``.csv``, ``.json`` or ``.jsonl``.
    subset : str, optional
        The configuration to take of a data set that has several.
    image, label : str
        Column names. A label is a whole number, a text or a boolean, one for each image; as many classes as there are
        different ones.
    natural_id : str, optional
        Column with the natural node of each sample, for ``partition.kind=natural``.
    train_split, test_split : str
        Split names.
    test_fraction : float
        Share of the samples that is held out for the test where a file or a saved folder has one split, in (0, 1).
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
        If a split or column is missing, a row has no image or no label, a label is something else than one class, or
        images differ in size.
    """
    try:
        from datasets import Image
        from flwr_datasets import FederatedDataset  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("dataset=hf needs flwr-datasets: pip install flwr-datasets") from error
    train, test = _splits(repo, subset, train_split, test_split, test_fraction)
    wanted = [image, label] + ([natural_id] if natural_id else [])
    for column in wanted:
        if column not in train.column_names or column not in test.column_names:
            raise ValueError(
                f"{repo} has no column {column!r}; it has {', '.join(train.column_names)} "
                f"(dataset.image, dataset.label, dataset.natural_id)"
            )
    splits = {train_split: train, test_split: test}
    (train_labels, test_labels), classes = _codes("dataset.label", label, splits)
    people = _codes("dataset.natural_id", natural_id, {train_split: train})[0][0] if natural_id else None
    for name, split in splits.items():
        try:
            splits[name] = split.cast_column(image, Image())
            splits[name][0]
        except Exception as error:  # of pyarrow, the file system or the decoder
            raise ValueError(
                f"dataset.image={image}: row 0 of {name} cannot be read as an image; name another of "
                f"{', '.join(split.column_names)}"
            ) from error
    train, test = splits.values()
    mode = "L" if train[0][image] is not None and train[0][image].mode in ("1", "L") else "RGB"
    return Source(
        _pixels(train, image, mode, image_size),
        torch.from_numpy(train_labels),
        _pixels(test, image, mode, image_size),
        torch.from_numpy(test_labels),
        classes,
        Normalize.of(mean, std),
        train_groups=people,
    )


def _splits(repo: str, subset: str | None, train_split: str, test_split: str, test_fraction: float) -> tuple[Any, Any]:
    """Return the two splits of a file, of a folder that was saved, or of a repository."""
    import datasets
    from flwr_datasets import FederatedDataset

    path = Path(repo).expanduser()
    try:
        if path.is_file():
            kind = _FORMATS.get(path.suffix)
            if kind is None:
                raise ValueError(f"dataset.repo={repo}: a file ends in {', '.join(_FORMATS)}")
            found = datasets.load_dataset(kind, data_files=str(path))["train"]
        elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            found = datasets.load_from_disk(path)
        else:
            fetched = FederatedDataset(dataset=repo, subset=subset, shuffle=False, partitioners={train_split: 1})
            return fetched.load_split(train_split), fetched.load_split(test_split)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"data set {repo} could not be fetched from the hub ({str(error).splitlines()[0]}): check the network and "
            f"dataset.repo; what was fetched once is read from the cache with HF_HUB_OFFLINE=1"
        ) from error
    if not isinstance(found, datasets.DatasetDict):
        train, test = held_out(len(found), test_fraction, where=repo)
        return found.select(train), found.select(test)
    for split in (train_split, test_split):
        if split not in found:
            raise ValueError(
                f"{repo} has no split {split!r}, only {', '.join(found)} (dataset.train_split, test_split)"
            )
    return found[train_split], found[test_split]


def _codes(key: str, column: str, splits: Mapping[str, Any]) -> tuple[list[np.ndarray], int]:
    """Number the different values of a column in their order, over all splits.

    Returns
    -------
    codes : list of np.ndarray
        int64 (samples,) for each split, in [0, count).
    count : int
        Different values.

    Raises
    ------
    ValueError
        A row has no value, or one that is no whole number, text or boolean, or of another kind than the first.
    """
    values = {name: list(split[column]) for name, split in splits.items()}
    kinds = {type(each[0]) for each in values.values() if each} & {int, str, bool}
    for name, each in values.items():
        unlabeled = -1 if hasattr(splits[name].features[column], "names") else None  # of a ClassLabel: no class
        for row, value in enumerate(each):
            if value is None or value == unlabeled or value != value:  # NaN is not itself
                raise ValueError(
                    f"{key}={column}: row {row} of {name} has no value; leave such rows out, or name another column"
                )
            if type(value) not in kinds or len(kinds) > 1:
                raise ValueError(
                    f"{key}={column}: row {row} of {name} is {str(value)[:40]} ({type(value).__name__}), not one whole "
                    f"number or text as in a column of classes; name another of {', '.join(splits[name].column_names)}"
                )
    numbers = {value: code for code, value in enumerate(sorted(set(itertools.chain(*values.values()))))}
    return [np.array([numbers[value] for value in each], np.int64) for each in values.values()], len(numbers)


def _pixels(split: Any, column: str, mode: str, size: int | None) -> torch.Tensor:
    """Decode a split's images into uint8 (samples, channels, height, width), a chunk at a time."""
    for row, missing in enumerate(split.data.column(column).is_null().to_pylist()):
        if missing:
            raise ValueError(f"dataset.image={column}: row {row} has no image; leave such rows out")
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
