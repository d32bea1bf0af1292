"""Start-up and memory of ``dataset=folder`` against torchvision's ImageFolder, over a folder of small JPEGs.

``python benchmarks/folder_of_images.py [--images 10000]`` draws the images into a temporary folder, and prints seconds
and peak memory of a process that opens the folder, and of one that also reads every image once.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

OURS = """
from flsparse.tasks.folder import folder
started = time.perf_counter()
source = folder(root={root!r}, cache={cache!r})
opened = time.perf_counter()
for first in range(0, {read}, 100):
    source.train_inputs[list(range(first, first + 100))]
"""
THEIRS = """
from flsparse.tasks.torchvision_compat import import_torchvision
datasets = import_torchvision("datasets")
started = time.perf_counter()
images = datasets.ImageFolder({root!r} + "/train")
opened = time.perf_counter()
for place in range({read}):
    np.asarray(images[place][0])
"""
FRAME = """
import resource, time
import numpy as np, torch
{code}
done = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(f"{{opened - started:.2f}} {{done - opened:.2f}} {{peak:.0f}}")
"""


def draw(root: Path, count: int) -> None:
    """Draw gray JPEGs of 96x96 pixels in ten classes."""
    stream = np.random.default_rng(0)
    for number in range(count):
        path = root / "train" / str(number % 10) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(stream.integers(0, 256, (96, 96), dtype=np.uint8)).save(path)
    test = root / "test" / "0" / "0.jpg"
    test.parent.mkdir(parents=True)
    Image.new("L", (96, 96)).save(test)


def main() -> None:
    """Draw, run each in a process of its own, and print a line for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=10_000)
    count = parser.parse_args().images
    with tempfile.TemporaryDirectory() as folder:
        root, cache = str(Path(folder) / "set"), str(Path(folder) / "cache")
        draw(Path(root), count)
        print(f"{count} JPEGs            open (s)   read all (s)   peak memory (MB)")
        for name, code, read in (
            ("ImageFolder, opened", THEIRS, 0),
            ("ours, opened first", OURS, 0),
            ("ours, opened again", OURS, 0),
            ("ImageFolder, read", THEIRS, count),
            ("ours, read first", OURS, count),
            ("ours, read again", OURS, count),
        ):
            script = FRAME.format(code=code.format(root=root, cache=cache, read=read))
            done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
            opened, reading, peak = done.stdout.split()
            print(f"{name:20} {opened:>12} {reading:>14} {peak:>18}")


if __name__ == "__main__":
    main()
