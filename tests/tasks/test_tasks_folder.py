"""Folders of images: layouts, depths, sizes; decoded when a batch asks for them, once."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flsparse.tasks import build_task
from flsparse.tasks.datasets import mnist
from flsparse.tasks.folder import folder
from flsparse.tasks.images import Pixels

SHADES = {"dark": 40, "light": 200}


def draw(path: Path, shade: Any, size: tuple[int, int] = (6, 5), mode: str = "L", **save: Any) -> None:
    """Save an image of one shade, whose pixel in the corner is black."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new(mode, size, shade)
    picture.putpixel((0, 0), 0 if mode not in ("RGB",) else (0, 0, 0))
    picture.save(path, **save)


def draw_set(root: Path, parts: dict[str, int], **image: Any) -> Path:
    """Draw so many images of each class in each part."""
    for part, count in parts.items():
        for name, shade in SHADES.items():
            for number in range(count):
                draw(root / part / name / f"{number}.png", shade + number, **image)
    return root


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {"root": str(tmp_path / "set"), "cache": str(tmp_path / "cache")}


def config(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "dataset": {"name": "folder", "validation_fraction": 0.0, **settings},
        "model": {"name": "cnn", "width": 4},
        "partition": {"kind": "iid"},
        "num_clients": 2,
        "seed": 0,
        **changes,
    }


def test_train_and_test_folders(settings: dict[str, Any]) -> None:
    draw_set(Path(settings["root"]), {"train": 3, "test": 2})
    (Path(settings["root"]) / "train" / "dark" / "Thumbs.db").write_bytes(b"x")
    (Path(settings["root"]) / "train" / "dark" / ".hidden.png").write_bytes(b"x")
    source = folder(**settings)
    assert source.labels == ("dark", "light")
    assert source.train_targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.test_targets.tolist() == [0, 0, 1, 1]
    assert source.input_shape == (1, 5, 6)
    images = source.train_inputs[torch.tensor([4, 0])]
    assert images.dtype == torch.uint8
    assert (int(images[0, 0, 0, 0]), int(images[0, 0, 4, 5]), int(images[1, 0, 4, 5])) == (0, 201, 40)
    assert source.notes == (f"{settings['root']}/train: 1 file is no image and is left out",)


def test_sites_are_nodes_and_one_without_a_test_part_gets_one(settings: dict[str, Any]) -> None:
    root = Path(settings["root"])
    draw_set(root / "east", {"train": 5})
    draw_set(root / "west", {"train": 3, "test": 4})
    task = build_task(config(settings, partition={"kind": "natural"}, num_clients=None))
    assert [len(task.train_data(node)) for node in range(task.num_nodes)] == [8, 6]
    assert len(task.test_data()) == 2 + 8
    assert task.source.test_groups is not None
    assert task.source.test_groups.tolist() == [0] * 2 + [1] * 8
    assert np.isfinite(task.evaluate(task.model(), task.test_data())["loss"])


@pytest.mark.parametrize(
    ("mode", "shade", "stored", "dtype"),
    [
        ("L", 7, 7, torch.uint8),
        ("1", 1, 255, torch.uint8),
        ("I;16", 40000, 40000, torch.int32),
    ],
)
def test_depths(mode: str, shade: int, stored: int, dtype: torch.dtype, settings: dict[str, Any]) -> None:
    for name in ("a", "b"):
        for number in range(2):
            draw(Path(settings["root"]) / "train" / name / f"{number}.png", shade, mode=mode)
    source = folder(**settings)
    batch = source.train_inputs[torch.tensor([0])]
    assert batch.dtype == dtype
    assert int(batch[0, 0, 4, 5]) == stored
    largest = 65535 if dtype == torch.int32 else 255
    assert float(source.prepare(batch)[0, 0, 4, 5]) == pytest.approx((stored / largest - 0.5) / 0.5, abs=1e-6)


def test_color_gray_and_size_by_setting(settings: dict[str, Any]) -> None:
    for name, shade in SHADES.items():
        draw(Path(settings["root"]) / "train" / name / "0.png", shade, size=(8, 4))
        draw(Path(settings["root"]) / "train" / name / "1.jpg", (shade, 0, 0), mode="RGB", size=(9, 9))
    gray = folder(**settings, channels=1, image_size=4)
    assert gray.input_shape == (1, 4, 4)
    color = folder(**settings, channels=3, image_size=[4, 8], resize="crop")
    assert color.input_shape == (3, 4, 8)
    batch = color.train_inputs[torch.arange(len(color.train_inputs))]
    assert set(batch[:, 0, 3, 7].tolist()) <= {40, 200} | set(range(35, 46)) | set(range(190, 206))


def test_a_crop_keeps_proportions(settings: dict[str, Any]) -> None:
    halves = Image.new("L", (8, 4), 0)
    halves.paste(255, (4, 0, 8, 4))
    for name in SHADES:
        for number in range(2):
            path = Path(settings["root"]) / "train" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            halves.save(path)
    cropped = folder(**settings, image_size=4, resize="crop").train_inputs[torch.tensor([0])][0, 0]
    assert cropped.tolist() == [[0, 0, 255, 255]] * 4


def test_images_are_decoded_once_and_when_asked_for(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import flsparse.tasks.images as images

    decoded: list[Path] = []
    decode = images.decode

    def counting(file: Path, *rest: Any) -> np.ndarray:
        decoded.append(file)
        return decode(file, *rest)

    monkeypatch.setattr(images, "decode", counting)
    root = draw_set(Path(settings["root"]), {"train": 3, "test": 2})
    source = folder(**settings)
    assert decoded == []
    first = source.train_inputs[torch.tensor([0, 5])]
    assert [file.name for file in decoded] == ["0.png", "2.png"]
    assert torch.equal(folder(**settings).train_inputs[torch.tensor([0, 5])], first)
    assert len(decoded) == 2
    draw(root / "train" / "dark" / "0.png", 99)
    os.utime(root / "train" / "dark" / "0.png", (1, 1))
    assert int(folder(**settings).train_inputs[torch.tensor([0])][0, 0, 4, 5]) == 99


def test_without_room_for_a_cache_images_are_decoded_each_time(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    draw_set(Path(settings["root"]), {"train": 3, "test": 2})
    source = folder(**settings)
    assert int(source.test_inputs[torch.tensor([3])][0, 0, 4, 5]) == 201


def test_caches_that_nobody_uses_are_removed(settings: dict[str, Any], tmp_path: Path) -> None:
    files = sorted(draw_set(Path(settings["root"]), {"train": 2}).rglob("*.png"))
    cache = tmp_path / "cache"
    Pixels(files[:2], None, None, "stretch", cache).lazy()[torch.tensor([0])]
    (old,) = cache.glob("*.pixels")
    os.utime(old, (1, 1))
    Pixels(files, None, None, "stretch", cache).lazy()[torch.tensor([0])]
    assert not old.exists()
    assert len(list(cache.glob("*.pixels"))) == 1


def test_a_folder_larger_than_memory(settings: dict[str, Any]) -> None:
    """Decoded, the set takes 200 MB; an epoch over it raises the memory of the process by a small part of that."""
    root = Path(settings["root"])
    for number in range(50):
        draw(root / "train" / ("dark" if number % 2 else "light") / f"{number}.jpg", number, size=(2048, 2048))
    code = (
        "import resource, torch\n"
        "from flsparse.tasks.folder import folder\n"
        f"source = folder(root={settings['root']!r}, cache={settings['cache']!r})\n"
        "inputs = source.train_inputs\n"
        "inputs[torch.tensor([0])]\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for epoch in range(2):\n"
        "    for position in range(len(inputs)):\n"
        "        inputs[torch.tensor([position])]\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60 * 1024


def test_mnist_as_it_is_delivered(tmp_path: Path) -> None:
    import gzip

    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 5), ("t10k", 2)):
        images = np.arange(count * 28 * 28, dtype=np.uint32).astype(np.uint8)
        header = b"\0\0\x08\x03" + np.array([count, 28, 28], ">u4").tobytes()
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        labels = b"\0\0\x08\x01" + np.array([count], ">u4").tobytes() + bytes(range(count))
        (raw / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    source = mnist(root=str(tmp_path))
    assert source.train_inputs.shape == (5, 1, 28, 28)
    assert source.train_targets.tolist() == [0, 1, 2, 3, 4]
    assert source.test_inputs[1, 0, 0, :3].tolist() == [16, 17, 18]
    packed = raw / "train-labels-idx1-ubyte.gz"
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(ValueError, match="fetch it again"):
        mnist(root=str(tmp_path))
