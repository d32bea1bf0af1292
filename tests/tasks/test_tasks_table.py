"""Tables, series and arrays of one's own: what is read, in which order, and what of it is tested on."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from flsparse.tasks import Task, build_task
from flsparse.tasks.arrays import arrays
from flsparse.tasks.lazy import Lazy
from flsparse.tasks.series import series
from flsparse.tasks.table import table

pytest.importorskip("pyarrow")

PLANT = """\
line;day;speed;steel;bends
B;2026-01-03;3,5;hard;0
A;2026-01-02;2,5;soft;1
A;2026-01-01;1,5;;0
B;2026-01-01;;hard;1
A;2026-01-03;4,5;soft;1
B;2026-01-02;5,5;mild;0
"""


def config(dataset: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "dataset": {"validation_fraction": 0.0, **dataset},
        "model": {"name": "mlp", "hidden": 4},
        "partition": {"kind": "natural"},
        "seed": 0,
        **changes,
    }


def is_lazy(samples: object) -> bool:
    return isinstance(samples, Lazy)


@pytest.fixture
def plant(tmp_path: Path) -> str:
    (tmp_path / "plant.csv").write_text(PLANT)
    return str(tmp_path / "plant.csv")


def test_columns_by_name_rows_in_time_texts_one_hot(plant: str) -> None:
    source = table(file=plant, target="bends", group="line", time="day", decimal=",", test_fraction=0.3)
    assert source.train_groups is not None
    assert source.test_groups is not None
    assert source.train_groups.tolist() == [0, 0, 1, 1]
    assert source.test_groups.tolist() == [0, 1]
    speed = np.array([1.5, 2.5, np.nan, 5.5])  # of lines A and B, the last day held out
    mean, std = np.nanmean(speed), np.nanstd(speed)
    rows = np.array([*speed, 4.5, 3.5])
    scaled = np.nan_to_num((rows - mean) / std)
    hard, mild, soft = [0, 0, 1, 0, 0, 1], [0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0]
    wanted = torch.tensor(np.stack([scaled, hard, mild, soft], axis=1), dtype=torch.float32)
    stored = torch.cat([torch.as_tensor(source.train_inputs), torch.as_tensor(source.test_inputs)])
    assert torch.allclose(stored, wanted, atol=1e-6)
    assert source.train_targets.tolist() == [0, 1, 1, 0]
    assert (source.labels, source.objective) == (("0", "1"), "classification")
    assert source.notes == (
        f"{plant}: 1 of 6 values of 'speed' are missing and count as the mean",
        f"{plant}: 1 of 6 values of 'steel' are missing and count as none of its texts",
    )


@pytest.mark.parametrize("name", ["plant.tsv", "plant.csv.gz", "plant.parquet"])
def test_every_format_reads_the_same(name: str, plant: str, tmp_path: Path) -> None:
    import pyarrow.csv
    import pyarrow.parquet

    path = tmp_path / name
    text = PLANT.replace(",", ".")
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    elif name.endswith(".tsv"):
        path.write_text(text.replace(";", "\t"))
    else:
        (tmp_path / "dots.csv").write_text(text.replace(";", ","))
        pyarrow.parquet.write_table(pyarrow.csv.read_csv(tmp_path / "dots.csv"), path)
    settings: dict[str, Any] = {"target": "bends", "group": "line", "time": "day"}
    ours, theirs = table(file=str(path), **settings), table(file=plant, decimal=",", **settings)
    assert torch.equal(ours.train_inputs, theirs.train_inputs)
    assert ours.train_targets.tolist() == theirs.train_targets.tolist()


def test_a_group_alone_is_divided_as_it_is_among_others(plant: str, tmp_path: Path) -> None:
    header, *rows = PLANT.splitlines()
    (tmp_path / "a.csv").write_text("\n".join([header, *(row for row in rows if row.startswith("A"))]))
    settings: dict[str, Any] = {"target": "bends", "group": "line", "decimal": ",", "features": ["speed"]}
    both = table(file=plant, **settings)
    alone = table(file=str(tmp_path / "a.csv"), partial=True, statistics={"speed": [0.0, 1.0]}, **settings)
    together = table(file=plant, statistics={"speed": [0.0, 1.0]}, **settings)
    assert both.train_groups is not None
    assert torch.equal(
        alone.train_inputs, together.train_inputs[torch.from_numpy(np.flatnonzero(both.train_groups == 0))]
    )


def test_numbers_are_predicted_in_standard_deviations(plant: str) -> None:
    task = build_task(
        config(
            {"name": "table", "file": plant, "target": "bends", "group": "line", "time": "day", "decimal": ","},
            objective={"name": "regression"},
        )
    )
    targets = torch.cat([task.train_data(node).targets for node in range(task.num_nodes)])
    assert targets.dtype == torch.float32
    assert float(targets.mean()) == pytest.approx(0, abs=1e-6)
    assert float(targets.std(correction=0)) == pytest.approx(1)
    assert "standard deviations of 0." in task.notes[-1]
    assert task.model()(task.train_data(0).inputs).shape == (2, 1)


def test_several_targets_and_flags(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,a,b,c\n" + "\n".join(f"{i},{i / 2},{i * i / 3},{i % 2}" for i in range(10)))
    several = table(file=str(tmp_path / "t.csv"), target=["a", "b"], features=["x"])
    assert several.train_targets.shape == (8, 2)
    (tmp_path / "f.csv").write_text("x,a,b\n" + "\n".join(f"{i / 3},{i % 2},{i // 5}" for i in range(10)))
    flags = table(file=str(tmp_path / "f.csv"), target=["a", "b"])
    assert flags.train_targets.dtype == torch.uint8
    assert flags.num_classes == 0


def test_a_test_file_is_tested_on(plant: str, tmp_path: Path) -> None:
    (tmp_path / "later.csv").write_text("line;day;speed;steel;bends\nA;2026-02-01;1,5;soft;0\n")
    source = table(
        file=plant, test_file=str(tmp_path / "later.csv"), target="bends", group="line", decimal=",", time="day"
    )
    assert (len(source.train_inputs), len(source.test_inputs)) == (6, 1)


def test_num_clients_follows_from_the_groups(plant: str) -> None:
    task = build_task(
        config({"name": "table", "file": plant, "target": "bends", "group": "line", "time": "day", "decimal": ","})
    )
    assert task.num_nodes == 2
    one = build_task(
        config(
            {"name": "table", "file": plant, "target": "bends", "group": "line", "time": "day", "decimal": ","},
            num_clients=1,
        )
    )
    assert "num_clients=1 of the 2 natural nodes take part" in one.notes[-1]
    assert "2 training and 1 test samples" in one.notes[-1]


SIGNAL = "\n".join(
    ["unit,hour,heat,state", *(f"{unit},{hour},{hour * unit},{int(hour > 5)}" for unit in (1, 2) for hour in range(10))]
)


@pytest.fixture
def signal(tmp_path: Path) -> str:
    (tmp_path / "signal.csv").write_text(SIGNAL)
    return str(tmp_path / "signal.csv")


def test_windows_stay_within_a_group_and_a_part(signal: str) -> None:
    source = series(
        file=signal, target="heat", window=3, horizon=2, features=["heat"], group="unit", time="hour", test_fraction=0.5
    )
    assert source.input_shape == (1, 3)
    assert is_lazy(source.train_inputs)
    mean, std = 3.0, float(np.std([0, 1, 2, 3, 4, 0, 2, 4, 6, 8]))
    first = source.train_inputs[[0, 1]] * std + mean
    assert torch.allclose(first.flatten(), torch.tensor([0.0, 1, 2, 0, 2, 4]), atol=1e-5)
    ahead = source.train_targets * std + mean
    assert torch.allclose(ahead, torch.tensor([[3.0, 4], [6, 8]]), atol=1e-5)
    assert source.train_groups is not None
    assert source.train_groups.tolist() == [0, 1]
    tested = source.test_inputs[[0]] * std + mean
    assert torch.allclose(tested.flatten(), torch.tensor([5.0, 6, 7]), atol=1e-5)


def test_a_windows_class_is_that_of_its_last_row(signal: str) -> None:
    source = series(file=signal, target="state", window=2, stride=2, group="unit", time="hour", test_fraction=0.2)
    assert source.train_targets.tolist() == [0, 0, 0, 1] * 2
    assert source.test_targets.tolist() == [1, 1]
    assert source.num_classes == 2
    assert source.in_time


def test_validation_is_the_end_in_time(signal: str) -> None:
    dataset = {"name": "series", "file": signal, "target": "state", "window": 2, "time": "hour", "test_file": signal}
    task = build_task(config(dataset | {"validation_fraction": 0.25}, partition={"kind": "iid"}, num_clients=2))
    held = task.validation_data().index
    trained = torch.cat([task.train_data(node).index for node in range(2)])
    assert int(trained.max()) < int(held.min())


def trains(task: Task) -> float:
    model = task.model()
    return float(task.evaluate(model, task.test_data())["loss"])


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_of_an_archive(layout: str, save: Any, tmp_path: Path) -> None:
    stream = np.random.default_rng(0)
    images = stream.integers(0, 256, (20, 3, 8, 10), dtype=np.uint8)
    stored = images if layout == "channels_first" else np.moveaxis(images, 1, -1)
    path = tmp_path / "set.npz"
    save(path, train_inputs=stored[:15], train_targets=np.arange(15) % 3, test_inputs=stored[15:], y=np.arange(5) % 3)
    dataset = {"name": "arrays", "file": str(path), "layout": layout, "names": {"test_targets": "y"}}
    task = build_task(config(dataset, model={"name": "cnn"}, partition={"kind": "iid"}, num_clients=2))
    assert task.source.input_shape == (3, 8, 10)
    assert torch.equal(task.test_data().all_inputs[torch.arange(5)], torch.from_numpy(images[15:]))
    assert np.isfinite(trains(task))


def test_an_archive_is_mapped_not_read(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, inputs=np.arange(12.0).reshape(6, 2), targets=np.array([0, 1] * 3))
    source = arrays(file=str(path))
    assert is_lazy(source.train_inputs)
    with path.open("r+b") as file:  # the third row of the inputs, behind its name and header
        content = path.read_bytes()
        file.seek(content.index(np.float64(5.0).tobytes()))
        file.write(np.float64(-5.0).tobytes())
    everything = torch.cat([part[torch.arange(len(part))] for part in (source.train_inputs, source.test_inputs)])
    assert -5.0 in everything


def test_groups_of_safetensors_are_natural_nodes(tmp_path: Path) -> None:
    stream = np.random.default_rng(0)
    path = tmp_path / "set.safetensors"
    stored: dict[str, Any] = {
        "inputs": stream.standard_normal((30, 4)),
        "targets": stream.standard_normal((30, 2)).astype(np.float32),
        "groups": np.arange(30) % 3 + 5,
    }
    save_file(stored, path)
    task = build_task(config({"name": "arrays", "file": str(path)}))
    assert task.num_nodes == 3
    assert [len(task.train_data(node)) for node in range(3)] == [8, 8, 8]
    assert task.objective.name == "regression"
    assert np.isfinite(trains(task))


def test_arrays_in_files_of_their_own(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(20, dtype=np.float32).reshape(10, 2))
    np.save(tmp_path / "y.npy", np.array(["ok", "torn"] * 5))
    np.save(tmp_path / "who.npy", np.repeat(["a", "b"], 5))
    source = arrays(root=str(tmp_path), file="x.npy", target_file="y.npy", group_file="who.npy")
    assert source.labels == ("ok", "torn")
    assert source.test_groups is not None
    assert source.test_groups.tolist() == [0, 1]


def test_whole_numbers_of_one_dimension_are_text_of_three_are_masks(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", inputs=np.arange(40).reshape(10, 4) % 7, targets=np.arange(10) % 2)
    assert arrays(file=str(tmp_path / "t.npz")).is_text
    masks = np.arange(160).reshape(10, 4, 4) % 3
    np.savez(tmp_path / "m.npz", inputs=np.zeros((10, 4, 4), np.uint8), targets=masks)
    source = arrays(file=str(tmp_path / "m.npz"))
    assert source.train_targets.dtype == torch.uint8
    assert (source.num_classes, source.objective, source.input_shape) == (3, "segmentation", (1, 4, 4))
