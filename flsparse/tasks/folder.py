"""Images in folders: train/CLASS/*, test/CLASS/*, or the same for each site; decoded as they are needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from flsparse.tasks.data import Normalize, Source
from flsparse.tasks.images import SUFFIXES, Pixels, Resize
from flsparse.tasks.lazy import rows_of
from flsparse.tasks.splits import held_out
from flsparse.tasks.targets import Stats, as_targets

_LAYOUT = "train/CLASS/IMAGE, and test/CLASS/IMAGE where there are images to test on, or SITE/train/CLASS/IMAGE"


@dataclass(frozen=True)
class _Part:
    """Images of one part of a site with their classes, in order."""

    files: list[Path]
    classes: list[str]


def folder(
    *,
    root: str,
    image_size: int | Sequence[int] | None = None,
    resize: Resize = "stretch",
    channels: int | None = None,
    test_fraction: float = 0.2,
    classes: Sequence[str] | None = None,
    mean: Stats = 0.5,
    std: Stats = 0.5,
    cache: str = "~/.cache/flsparse/images",
    partial: bool = False,
) -> Source:
    """Read a folder of images.

    Parameters
    ----------
    root : str
        Folder with ``train/CLASS/*`` and perhaps ``test/CLASS/*``, or with ``SITE/train/CLASS/*``: a site is a natural
        node. Gray, color, 1 bit and 16 bits.
    image_size : int or pair of int, optional
        Height and width in pixels that images are resized to, one number for both; without, all must have one size.
    resize : {"stretch", "crop"}
        What becomes of images of other proportions.
    channels : {1, 3}, optional
        Turn all images gray, or colored; without, all must be one or the other.
    test_fraction : float
        Share of a site's images that is held out for the test, where it has no ``test``, in (0, 1).
    classes : list of str, optional
        All classes, in order, for a folder that lacks some; by default the folders' names, sorted.
    mean, std : float or sequence of float
        Of the pixels in [0, 1], for all channels or one each.
    cache : str
        Folder for decoded images.
    partial : bool
        Other nodes hold other images: classes may lack.

    Returns
    -------
    Source
        Inputs uint8 (samples, channels, height, width), int32 where images have 16 bits.

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    ValueError
        It holds no images in this layout, or one that cannot be read; the message names it.
    """
    base = Path(root).expanduser()
    if not base.is_dir():
        raise FileNotFoundError(f"no folder {base.resolve()}: dataset.root names the folder that holds {_LAYOUT}")
    if channels not in (None, 1, 3):
        raise ValueError(f"dataset.channels={channels} is neither 1, for gray, nor 3, for color")
    size = [image_size] * 2 if isinstance(image_size, int) else image_size
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"dataset.image_size={image_size} is neither a number of pixels nor a height and a width")
    notes: list[str] = []
    sites = _sites(base, partial)
    parts = [_divided(site, test_fraction, notes, may_lack=classes is not None or partial) for site in sites]
    train, test = ([site[which] for site in parts] for which in (0, 1))
    files = [[file for part in parts for file in part.files] for parts in (train, test)]
    named = [np.array([each for part in parts for each in part.classes], dtype=object) for parts in (train, test)]
    places = [[str(file.relative_to(base)) for file in each] for each in files]
    made = as_targets(
        named[0],
        named[1],
        f"{base}: the class",
        classes=classes,
        rows=(places[0], places[1]),
        named=True,
        partial=partial,
    )
    pixels = Pixels(files[0] + files[1], size, channels, resize, Path(cache).expanduser())
    everything, count = pixels.lazy(), len(files[0])
    by_site = sites[0] != base
    return Source(
        rows_of(everything, torch.arange(count)),
        made.train,
        rows_of(everything, torch.arange(count, len(everything))),
        made.test,
        made.num_classes,
        Normalize.of(mean, std, 65535 if pixels.look.deep else 255),
        train_groups=_site_of(train) if by_site else None,
        test_groups=_site_of(test) if by_site else None,
        labels=made.labels,
        notes=tuple(notes),
        holds={"classes": list(made.labels or ())},
    )


def _sites(base: Path, partial: bool) -> list[Path]:
    if (base / "train").is_dir() or (partial and (base / "test").is_dir()):
        return [base]
    inside = sorted(each for each in base.iterdir() if each.is_dir() and not each.name.startswith("."))
    if sites := [each for each in inside if (each / "train").is_dir()]:
        if odd := [each for each in inside if each not in sites]:
            raise ValueError(
                f"{odd[0]} has no folder train, as {sites[0].name} beside it has: give it one, or take it out"
            )
        return sites
    found = ", ".join(each.name for each in inside[:4]) or "no folders"
    raise ValueError(f"{base} holds {found}, not {_LAYOUT}: arrange it so")


def _divided(site: Path, test_fraction: float, notes: list[str], *, may_lack: bool) -> tuple[_Part, _Part]:
    """Return the images of a site to train and to test on."""
    if not (site / "train").is_dir():  # a server's
        return _Part([], []), _images(site / "test", notes, may_lack=True)
    train = _images(site / "train", notes, may_lack)
    if (site / "test").is_dir():
        return train, _images(site / "test", notes, may_lack=True)
    kept, held = held_out(len(train.files), test_fraction, where=str(site / "train"))
    files, classes = train.files, train.classes
    kept_part, held_part = (_Part([files[i] for i in each], [classes[i] for i in each]) for each in (kept, held))
    return kept_part, held_part


def _images(base: Path, notes: list[str], may_lack: bool) -> _Part:
    part, others = _Part([], []), 0
    for group in sorted(each for each in base.iterdir() if each.is_dir() and not each.name.startswith(".")):
        inside = sorted(each for each in group.iterdir() if each.is_file() and not each.name.startswith("."))
        files = [each for each in inside if each.suffix.lower() in SUFFIXES]
        others += len(inside) - len(files)
        if not files and not may_lack:
            raise ValueError(f"{group} holds no image: put some in, or remove the folder")
        part.files.extend(files)
        part.classes.extend([group.name] * len(files))
    if not part.files:
        raise ValueError(f"{base} holds no images: they lie in a folder for each class, {base.name}/CLASS/IMAGE")
    if others:
        notes.append(
            f"{base}: {others} file{'s are no images and are' if others > 1 else ' is no image and is'} left out"
        )
    return part


def _site_of(parts: Sequence[_Part]) -> np.ndarray:
    return np.repeat(np.arange(len(parts), dtype=np.int64), [len(part.files) for part in parts])
