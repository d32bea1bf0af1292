"""Writes example data below data/: images of three sites, a table of three lines, series of four machines."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

DATA = Path("data")


def images(stream: np.random.Generator) -> None:
    """Draw bright parts on a dark belt: whole, scratched or with a hole; each site has another camera."""
    for site, (size, light) in {"east": (20, 150), "north": (24, 190), "west": (16, 220)}.items():
        for kind in ("good", "hole", "scratch"):
            for part, count in (("train", 60), ("test", 20)):
                folder = DATA / "defects" / site / part / kind
                folder.mkdir(parents=True, exist_ok=True)
                for number in range(count):
                    Image.fromarray(drawn(kind, size, light, stream)).save(folder / f"{number:03}.png")


def drawn(kind: str, size: int, light: int, stream: np.random.Generator) -> np.ndarray:
    """Return a gray image, uint8 (size, size)."""
    rows, columns = np.mgrid[:size, :size] / size - 0.5
    picture = np.where(rows**2 + columns**2 < 0.16, float(light), 40.0)
    x, y, angle = stream.uniform((-0.15, -0.15, 0), (0.15, 0.15, np.pi))
    if kind == "hole":
        picture[(rows - y) ** 2 + (columns - x) ** 2 < 0.01] = 40
    if kind == "scratch":
        picture[abs((rows - y) * np.cos(angle) + (columns - x) * np.sin(angle)) < 0.05] = 40
    return (picture + stream.normal(0, 12, picture.shape)).clip(0, 255).astype(np.uint8)


def table(stream: np.random.Generator) -> None:
    """Write what presses of three lines measured, and the strength of the parts."""
    header = ["line", "day", "steel", "force", "speed", "temperature", "strength"]
    rows = []
    for line, offset in (("A", 0.0), ("B", 2.0), ("C", -1.0)):
        for day in range(1, 201):
            steel = str(stream.choice(["soft", "mild", "hard"]))
            force, speed, heat = stream.normal(50 + offset, 4), stream.normal(9, 2), stream.normal(180 + 5 * offset, 12)
            strength = 2.0 * force - 3.0 * speed + 0.1 * (heat - 180) + 12 * (steel == "hard") + stream.normal(0, 2)
            shown = "" if stream.random() < 0.02 else f"{heat:.1f}"
            rows.append([line, day, steel, f"{force:.2f}", f"{speed:.2f}", shown, f"{strength:.2f}"])
    write("press.csv", header, rows)


def series(stream: np.random.Generator) -> None:
    """Write what sensors of four machines said each minute, and the machine's state."""
    rows = []
    for machine in range(1, 5):
        for minute in range(600):
            worn = minute // 100 % 2
            turn = minute / (3.0 + 0.2 * machine)
            shake = np.sin(turn) + 0.8 * worn * np.sin(3 * turn) + stream.normal(0, 0.1)
            heat = 40 + machine + stream.normal(0, 1)
            rows.append([machine, minute, f"{shake:.3f}", f"{heat:.2f}", ["new", "worn"][worn]])
    write("machines.csv", ["machine", "minute", "vibration", "heat", "state"], rows)


def write(name: str, header: list[str], rows: list[list[object]]) -> None:
    """Write a CSV file."""
    with (DATA / name).open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


if __name__ == "__main__":
    images(np.random.default_rng(0))
    table(np.random.default_rng(1))
    series(np.random.default_rng(2))
