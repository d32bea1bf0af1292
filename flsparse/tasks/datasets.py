"""Image data sets: the embedded digits, and the ones that torchvision reads from a folder."""

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flsparse import rng
from flsparse.tasks.data import Normalize, Source
from flsparse.tasks.targets import Stats
from flsparse.tasks.torchvision_compat import import_torchvision

_DIGITS = Path(__file__).with_name("digits.npz")
_DIGITS_TEST_SHARE = 0.2
_PARTS = ("train", "t10k")  # of MNIST's files


def digits(*, mean: Stats = 0.5, std: Stats = 0.5) -> Source:
    """Return the handwritten digits that come with flsparse: 1,797 images of 8x8, a fixed fifth of them the test set.

    The test part of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998 (CC BY 4.0), in the order in which scikit-learn has it.
    """
    with np.load(_DIGITS) as stored:
        images = torch.from_numpy(np.rint(stored["images"] * (255 / 16)).astype(np.uint8)).unsqueeze(1)
        targets = torch.from_numpy(stored["targets"].astype(np.int64))
    order = torch.from_numpy(rng.stream(0, 0, -1, "digits-test").permutation(len(images)))
    test, train = order[: round(_DIGITS_TEST_SHARE * len(order))], order[round(_DIGITS_TEST_SHARE * len(order)) :]
    return Source(images[train], targets[train], images[test], targets[test], 10, Normalize.of(mean, std))


def fashion_mnist(*, root: str, download: bool = False, mean: Stats = 0.5, std: Stats = 0.5) -> Source:
    """Return Fashion-MNIST: 60,000 + 10,000 images of 28x28, 10 classes."""
    return _from_torchvision("FashionMNIST", "fashion_mnist", "FashionMNIST/raw", root, download, mean, std)


def mnist(*, root: str, download: bool = False, mean: Stats = 0.5, std: Stats = 0.5) -> Source:
    """Return MNIST: 60,000 + 10,000 images of 28x28, 10 classes."""
    return _from_torchvision("MNIST", "mnist", "MNIST/raw", root, download, mean, std)


def cifar10(*, root: str, download: bool = False, mean: Stats = 0.5, std: Stats = 0.5) -> Source:
    """Return CIFAR-10: 50,000 + 10,000 images of 3x32x32, 10 classes."""
    return _from_torchvision("CIFAR10", "cifar10", "cifar-10-batches-py", root, download, mean, std)


def read_idx(path: Path) -> np.ndarray:
    """Read a file of MNIST's format, as it is or with ``.gz`` behind its name: uint8, of the shape in its header.

    Raises
    ------
    FileNotFoundError
        Neither is there.
    ValueError
        It is not of this format, or cut short.
    """
    packed = path.with_name(f"{path.name}.gz")
    try:
        data = path.read_bytes() if path.is_file() else gzip.decompress(packed.read_bytes())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{packed} cannot be unpacked ({error}): fetch it again") from error
    dimensions = data[3] if data[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(data, ">u4", dimensions, 4) if len(data) >= 4 + 4 * dimensions else np.zeros(0)
    if not dimensions or len(data) != 4 + 4 * dimensions + np.prod(shape, dtype=int):
        raise ValueError(f"{path} is no whole file of MNIST's format: fetch it again")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape.astype(int)).copy()


def _from_idx(folder: Path, mean: Stats, std: Stats) -> Source:
    """Return the images and classes of a folder of MNIST's four files."""
    images = [torch.from_numpy(read_idx(folder / f"{part}-images-idx3-ubyte")).unsqueeze(1) for part in _PARTS]
    classes = [torch.from_numpy(read_idx(folder / f"{part}-labels-idx1-ubyte").astype(np.int64)) for part in _PARTS]
    return Source(images[0], classes[0], images[1], classes[1], 10, Normalize.of(mean, std))


def _from_torchvision(
    class_name: str, name: str, folder: str, root: str, download: bool, mean: Stats, std: Stats
) -> Source:
    path = Path(root).expanduser()
    if folder.endswith("raw") and list((path / folder).glob("*-ubyte*")):  # torchvision does not read them packed
        return _from_idx(path / folder, mean, std)
    dataset_class = getattr(import_torchvision("datasets"), class_name)
    try:
        train = dataset_class(path, train=True, download=download)
        test = dataset_class(path, train=False, download=download)
    except (RuntimeError, OSError) as error:
        if download:
            raise OSError(
                f"{name} could not be downloaded to {path.resolve()} ({' '.join(str(error).split())}): check the "
                f"network, or put {folder} there by other means"
            ) from error
        raise FileNotFoundError(
            f"no {name} files in {(path / folder).resolve()}: set dataset.root to the folder that holds {folder}, "
            f"or dataset.download=true to fetch them"
        ) from error
    return Source(
        _channels_first(train.data),
        torch.as_tensor(train.targets, dtype=torch.int64),
        _channels_first(test.data),
        torch.as_tensor(test.targets, dtype=torch.int64),
        len(train.classes),
        Normalize.of(mean, std),
    )


def _channels_first(images: Any) -> torch.Tensor:
    """Map uint8 images (n, h, w) or (n, h, w, channels) to (n, channels, h, w)."""
    stored = torch.as_tensor(images)
    return (stored.unsqueeze(1) if stored.ndim == 3 else stored.permute(0, 3, 1, 2)).contiguous()
