"""Data that cannot be learned from: one sentence with the file, the value and the mend, before anything starts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flsparse.tasks import build_task

pytest.importorskip("pyarrow")

Settings = dict[str, Any]
Case = tuple[Callable[[Path], Settings], str]

GOOD = ["speed,heat,line,day,state"] + [
    f"{i},{i * i % 7},{'AB'[i % 2]},{i},{'ok' if i % 3 else 'torn'}" for i in range(12)
]


def rows(*changed: tuple[int, str], header: str = GOOD[0], **settings: Any) -> Callable[[Path], Settings]:
    """Write the good table with some of its rows changed, counted from 1."""

    def write(folder: Path) -> Settings:
        lines = [header, *GOOD[1:]]
        for row, text in changed:
            lines[row] = text
        (folder / "plant.csv").write_text("\n".join(lines))
        return {"name": "table", "file": "plant.csv", "target": "state", "group": "line", "time": "day"} | settings

    return write


def series(**settings: Any) -> Callable[[Path], Settings]:
    return rows(name="series", features=["speed"], **settings)


def raw(name: str, content: bytes) -> Callable[[Path], Settings]:
    def write(folder: Path) -> Settings:
        (folder / name).write_bytes(content)
        return {"name": "table", "file": name, "target": "state"}

    return write


def later(*lines: str) -> Callable[[Path], Settings]:
    def write(folder: Path) -> Settings:
        (folder / "later.csv").write_text("\n".join([GOOD[0], *lines]))
        return rows()(folder) | {"test_file": "later.csv"}

    return write


def arrays(settings: Settings | None = None, **stored: Any) -> Callable[[Path], Settings]:
    def write(folder: Path) -> Settings:
        made = {"inputs": np.zeros((6, 2), np.float32), "targets": np.arange(6) % 2} | stored
        kept: Any = {key: each for key, each in made.items() if each is not None}
        np.savez(folder / "set.npz", **kept)
        return {"name": "arrays", "file": "set.npz", **(settings or {})}

    return write


def cut_short(folder: Path) -> Settings:
    made = arrays()(folder)
    (folder / "set.npz").write_bytes((folder / "set.npz").read_bytes()[:-40])
    return made


def images(*paths: str, spoil: Callable[[Path], object] | None = None, **settings: Any) -> Callable[[Path], Settings]:
    """Draw gray images of 8x8 pixels, and do something to the folder."""

    def write(folder: Path) -> Settings:
        for path in paths or ("train/a/1.jpg", "train/a/2.jpg", "train/b/1.jpg", "train/b/2.jpg"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 99).save(folder / path)
        if spoil:
            spoil(folder)
        return {"name": "folder", **settings}

    return write


def halve(folder: Path) -> None:
    file = folder / "train" / "a" / "2.jpg"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


CASES: dict[str, Case] = {
    "missing target": (
        rows(target="stat"),
        r"plant.csv has no column 'stat' \(dataset.target\).*did you mean state",
    ),
    "missing feature": (
        rows(features=["sped"]),
        r"has no column 'sped' \(dataset.features\).*did you mean speed",
    ),
    "missing group": (rows(group="lime"), r"plant.csv has no column 'lime' \(dataset.group\).*did you mean line"),
    "target among features": (
        rows(features=["state"]),
        "dataset.features names 'state', which is the target: leave it out",
    ),
    "text in a number column": (
        rows((5, "about 4,2,A,4,ok")),
        "plant.csv: column 'speed' is about 4 in row 5, no number: mend it, or leave it empty",
    ),
    "decimal comma": (
        rows((5, '"3,5",2,A,4,ok')),
        r"column 'speed' is 3,5 in row 5, no number: .* \(dataset.decimal=',' reads 3,14\)",
    ),
    "infinity": (rows((4, "inf,2,B,3,ok")), "column 'speed' is inf in row 4: mend it, or leave it empty"),
    "empty class": (rows((7, "6,1,A,6,")), "column 'state' is empty in row 7: leave such rows out, or fill them in"),
    "empty target": (
        rows((7, "6,,A,6,ok"), target="heat"),
        "column 'heat' is empty in row 7: leave such rows out, or fill them in",
    ),
    "one class": (
        rows(*((i, f"{i},2,{'AB'[i % 2]},{i},ok") for i in range(1, 13))),
        "column 'state' has one class only, ok: nothing can be told apart",
    ),
    "undeclared class": (
        rows((2, "1,1,B,1,tron"), classes=["ok", "torn"]),
        "'state' is 'tron' in row 2, none of the classes ok, torn; did you mean torn",
    ),
    "fractions for classes": (
        rows(*((i, f"{i / 4},2,A,{i},ok") for i in range(1, 13)), target="speed", objective={"name": "classification"}),
        "column 'speed' is 0.25 in row 1, no class; objective=regression predicts numbers",
    ),
    "a group of one": (
        rows((3, "2,4,C,2,ok")),
        "plant.csv: group 'C' has 1 sample, which cannot be both trained",
    ),
    "whose row": (rows((3, "2,4,,2,ok")), r"column 'line' \(dataset.group\) is empty in row 3: say whose each row is"),
    "no time": (
        rows(*((i, f"1,2,A,monday {i},ok") for i in range(1, 13))),
        r"column 'day' \(dataset.time\) is 'monday 1' in row 1, neither a number nor a time such as 2026-01-31",
    ),
    "a time as a feature": (
        rows(*((i, f"1,2,A,2026-01-{i:02},ok") for i in range(1, 13)), time=None),
        "column 'day' holds times: name it by dataset.time, or leave it out by dataset.features",
    ),
    "too many texts": (
        raw("ids.csv", ("id,state\n" + "\n".join(f"part {i},{'ab'[i % 2]}" for i in range(300))).encode()),
        "ids.csv: column 'id' has 300 different texts in 300 rows, and 100 at most are told apart: leave it out",
    ),
    "missing values refused": (
        rows((3, ",4,A,2,ok"), missing="refuse"),
        "column 'speed' is empty in row 3 and 0 more: fill it in, or let dataset.missing=mean do so",
    ),
    "nothing to predict from": (rows(features=[]), "plant.csv has no columns beside target, group and time"),
    "a class only tested on": (
        later("1,2,A,20,ok", "3,4,B,21,bent"),
        "'state' is bent in row 2 of later.csv to test on, a class that nobody trains on",
    ),
    "a group only tested on": (
        later("1,2,Z,20,ok"),
        "rows to test on have the group 'Z', and none to train on has: take them out",
    ),
    "kinds that differ": (
        later("fast,2,A,20,ok"),
        "later.csv: column 'speed' holds texts where the other file holds wholes: make them alike",
    ),
    "no rows": (raw("plant.csv", b"speed,state\n"), "plant.csv has no rows below its header: put some in"),
    "ragged rows": (raw("plant.csv", b"a,state\n1,ok\n2\n"), "plant.csv cannot be read as a table: CSV parse error"),
    "twice one name": (raw("plant.csv", b"a,a,state\n1,2,ok\n"), "plant.csv has two columns named 'a': rename one"),
    "a workbook": (
        raw("plant.xlsx", b"PK"),
        "plant.xlsx cannot be read as a table: its name ends in '.xlsx'",
    ),
    "no parquet": (raw("plant.parquet", b"PAR"), "plant.parquet cannot be read as a table"),
    "a short series": (
        series(window=6),
        "plant.csv: group 'A' has 5 rows to train on, fewer than dataset.window=6: shorten that, or take them out",
    ),
    "no window": (rows(name="series", window=0), "dataset.window=0 must be at least 1: it counts rows"),
    "labels from 1": (
        arrays(targets=np.arange(6) % 3 + 1),
        "set.npz: targets are from 1 to 3: classes count from 0; subtract 1, or name all by dataset.classes",
    ),
    "a label below 0": (
        arrays(targets=np.arange(6) - 1),
        "targets holds -1: classes are whole numbers from 0 on",
    ),
    "NaN targets": (
        arrays(targets=np.array([1, 2, np.nan, 4, 5, 6])),
        "set.npz: targets is nan in row [0-9], no number to learn: leave such rows out",
    ),
    "unequal lengths": (
        arrays(targets=np.arange(5) % 2),
        r"set.npz: arrays of one part differ in length \(inputs 6, targets 5\): a sample has one of each",
    ),
    "a missing array": (arrays(targets=None), "set.npz has no array 'targets', only inputs"),
    "an archive cut short": (cut_short, "set.npz cannot be read as .npz .*: write it again"),
    "objects": (arrays(inputs=np.array([{}] * 6)), "set.npz cannot be read as .npz .*: write it again"),
    "an empty folder": (
        images(spoil=lambda folder: (folder / "train" / "c").mkdir()),
        "train/c holds no image: put some in, or remove the folder",
    ),
    "a corrupt JPEG": (
        images(spoil=halve),
        r"train/a/2.jpg cannot be read as an image \(.*\): mend it, or take it out",
    ),
    "no image at all": (
        images(spoil=lambda folder: (folder / "train" / "a" / "x.png").write_text("hello")),
        r"train/a/x.png cannot be read as an image \(.*\): mend it, or take it out of the folder",
    ),
    "two channel counts": (
        images(spoil=lambda folder: Image.new("RGB", (8, 8)).save(folder / "train" / "b" / "3.png")),
        "train/b/3.png is in color, .*jpg gray: dataset.channels=1 or 3 makes them alike",
    ),
    "two sizes": (
        images(spoil=lambda folder: Image.new("L", (9, 8)).save(folder / "train" / "b" / "3.png")),
        "train/b/3.png has 9x8 pixels, .*jpg 8x8: dataset.image_size=N resizes all",
    ),
    "no train folder": (images("a/1.png", "b/1.png"), "holds a, b, not train/CLASS/IMAGE"),
    "a site without train": (
        images("e/train/a/1.png", "e/train/b/1.png", "w/a/1.png"),
        "/w has no folder train, as e beside it has: give it one, or take it out",
    ),
    "one class of images": (images("train/a/1.png", "train/a/2.png"), "the class has one class only, a"),
    "images of a class only tested on": (
        images("train/a/1.png", "train/b/1.png", "test/c/1.png"),
        "the class is c in test/c/1.png to test on, a class that nobody trains on",
    ),
    "images beside the classes": (images("train/1.png"), "train holds no images: they lie in a folder for each class"),
    "five channels": (images(channels=5), "dataset.channels=5 is neither 1, for gray, nor 3, for color"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_is_told_in_one_sentence(name: str, tmp_path: Path) -> None:
    write, message = CASES[name]
    dataset = write(tmp_path)
    objective = dataset.pop("objective", None)
    if dataset["name"] == "folder":
        dataset["cache"] = str(tmp_path / "cache")
    config = {
        "dataset": dataset | {"root": str(tmp_path)},
        "model": {"name": "mlp"},
        "partition": {"kind": "iid"},
        "num_clients": 2,
        "seed": 0,
        "objective": objective,
    }
    with pytest.raises((ValueError, FileNotFoundError), match=message) as told:
        build_task(config)
    assert "\n" not in str(told.value)


def test_there_are_twenty_five_at_least() -> None:
    assert len(CASES) >= 25
