"""Images of files: first their headers are read; they are decoded when a batch asks for them, and kept so on disk."""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from flsparse.tasks.lazy import lazily

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
Resize = Literal["stretch", "crop"]
_DEEP = ("I", "I;16", "I;16B", "I;16L", "F")  # of more than 8 bits a pixel
_GRAY = ("1", "L", "LA", *_DEEP)
_ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}  # of a whole JPEG and PNG, by its beginning
_IDLE_S = 30 * 24 * 3600.0
_TAIL = 4096


@dataclass(frozen=True)
class Look:
    """How images are stored once decoded.

    Attributes
    ----------
    channels : int
        1 for gray, 3 for color.
    height, width : int
        In pixels.
    deep : bool
        16 bits a pixel, kept in int32; otherwise bytes.
    """

    channels: int
    height: int
    width: int
    deep: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, self.height, self.width


def look_at(files: Sequence[Path], size: Sequence[int] | None, channels: int | None) -> Look:
    """Read the headers of images, and say how they are stored.

    Parameters
    ----------
    files : sequence of Path
        At least one.
    size : sequence of int, optional
        Height and width in pixels that images are resized to; without, all must have one size.
    channels : int, optional
        1 or 3: images are turned gray or colored; without, all must be one or the other.

    Raises
    ------
    ValueError
        An image cannot be read or is cut short, or images differ; the message names the file.
    """
    first: tuple[Path, int, tuple[int, int]] | None = None
    deep = False
    for file in files:
        mode, measured = _header(file)
        count = 1 if mode in _GRAY else 3
        deep = deep or mode in _DEEP
        if first is None:
            first = file, count, measured
        if channels is None and count != first[1]:
            words = {1: "gray", 3: "in color"}
            raise ValueError(
                f"{file} is {words[count]}, {first[0].name} {words[first[1]]}: dataset.channels=1 or 3 makes them alike"
            )
        if size is None and measured != first[2]:
            raise ValueError(
                f"{file} has {measured[0]}x{measured[1]} pixels, {first[0].name} {first[2][0]}x{first[2][1]}: "
                "dataset.image_size=N resizes all"
            )
    assert first is not None
    height, width = size or reversed(first[2])
    return Look(channels or first[1], int(height), int(width), deep)


def _header(file: Path) -> tuple[str, tuple[int, int]]:
    """Return mode and (width, height) of an image, whose end is there, too."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            mode, size = picture.mode, picture.size
        with file.open("rb") as raw:
            end = _ENDS.get(raw.read(2))
            raw.seek(max(0, file.stat().st_size - _TAIL))
            if end and end not in raw.read():
                with Image.open(file) as picture:
                    picture.load()  # something else may follow the image
    except Exception as error:  # PIL raises many kinds
        raise _unreadable(file, error) from error
    return mode, size


def _unreadable(file: Path, error: Exception) -> ValueError:
    reason = str(error).splitlines()[0].replace(f" {str(file)!r}", "") if str(error) else type(error).__name__
    return ValueError(f"{file} cannot be read as an image ({reason}): mend it, or take it out of the folder")


def decode(file: Path, look: Look, resize: Resize) -> np.ndarray:
    """Decode an image into uint8 (channels, height, width), or int32 where images are deep.

    Raises
    ------
    ValueError
        It cannot be decoded; the message names the file.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            scale = 257 if look.deep and opened.mode not in _DEEP else 1  # 8 bits among images of 16
            picture = opened.convert("F" if look.deep else "L" if look.channels == 1 else "RGB")
        size = look.width, look.height
        if picture.size != size:
            picture = ImageOps.fit(picture, size) if resize == "crop" else picture.resize(size)
        pixels = np.asarray(picture).reshape(look.height, look.width, -1).transpose(2, 0, 1)
        if look.deep:
            pixels = np.rint(pixels * scale).astype(np.int32).repeat(look.channels, axis=0)
        return np.ascontiguousarray(pixels)
    except Exception as error:
        raise _unreadable(file, error) from error


class Pixels:
    """Images of a folder, decoded once and kept in a file of pixels.

    Parameters
    ----------
    files : sequence of Path
        In order.
    size, channels
        As for :func:`look_at`.
    resize : {"stretch", "crop"}
        Images of other proportions are stretched, or cropped to their middle.
    cache : Path
        Folder of the files of pixels: one for each state of the files and each setting. One that has not been used for
        a month is removed. Where it cannot be written to, images are decoded each time.

    Attributes
    ----------
    look : Look
    """

    def __init__(
        self, files: Sequence[Path], size: Sequence[int] | None, channels: int | None, resize: Resize, cache: Path
    ) -> None:
        self._files, self._resize = list(files), resize
        stated = [(str(file.resolve()), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in self._files]
        settings = json.dumps([stated, size, channels, resize])
        self._cache = cache / f"{hashlib.sha256(settings.encode()).hexdigest()[:32]}.pixels"
        self.look = self._known() or look_at(self._files, size, channels)
        self._dtype = np.dtype(np.int32 if self.look.deep else np.uint8)
        self._bytes = int(np.prod(self.look.shape)) * self._dtype.itemsize
        with suppress(OSError):
            _trim(cache)
            cache.mkdir(parents=True, exist_ok=True)
            self._cache.with_suffix(".json").write_text(json.dumps(asdict(self.look)))

    def _known(self) -> Look | None:
        """Return what an earlier look at the same files found."""
        with suppress(OSError, ValueError, TypeError):
            return Look(**json.loads(self._cache.with_suffix(".json").read_text()))
        return None

    def lazy(self) -> Tensor:
        """Return the images as an array that is read when it is asked for."""
        dtype = torch.int32 if self.look.deep else torch.uint8
        return lazily(self._read, len(self._files), self.look.shape, dtype)

    def _read(self, positions: Tensor) -> Tensor:
        batch = np.empty((len(positions), *self.look.shape), self._dtype)
        file = self._opened()
        try:
            for place, position in enumerate(positions.tolist()):
                batch[place] = self._one(file, position)
        finally:
            if file is not None:
                os.close(file)
        return torch.from_numpy(batch)

    def _opened(self) -> int | None:
        with suppress(OSError):
            file = os.open(self._cache, os.O_RDWR | os.O_CREAT, 0o600)
            os.ftruncate(file, len(self._files) * (self._bytes + 1))  # with holes, where nothing is decoded yet
            return file
        return None

    def _one(self, file: int | None, position: int) -> np.ndarray:
        """Return one image, from the file of pixels where its flag, behind all pixels, is set."""
        flag = len(self._files) * self._bytes + position
        if file is not None and os.pread(file, 1, flag) == b"\1":
            return np.frombuffer(os.pread(file, self._bytes, position * self._bytes), self._dtype).reshape(
                self.look.shape
            )
        pixels = decode(self._files[position], self.look, self._resize)
        if file is not None:
            with suppress(OSError):  # a full disk
                if os.pwrite(file, pixels.tobytes(), position * self._bytes) == self._bytes:
                    os.pwrite(file, b"\1", flag)
        return pixels


def _trim(cache: Path) -> None:
    for old in cache.glob("*.pixels"):
        if time.time() - max(old.stat().st_atime, old.stat().st_mtime) > _IDLE_S:
            old.unlink(missing_ok=True)
            old.with_suffix(".json").unlink(missing_ok=True)
