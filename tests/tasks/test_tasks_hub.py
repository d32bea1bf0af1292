import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flsparse.tasks import build_task
from flsparse.tasks.hub import hub_images

datasets = pytest.importorskip("datasets")
pytest.importorskip("flwr_datasets")


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder laid out like a repository of the hub: gray images of 6x7, labels 3 and 5, four writers."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for module in (datasets.config, pytest.importorskip("huggingface_hub").constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    stream = np.random.default_rng(0)
    folder = tmp_path / "drawings"
    folder.mkdir()
    for split, count in (("train", 40), ("test", 8)):
        rows: dict[str, Any] = {
            "picture": [Image.fromarray(stream.integers(0, 256, (7, 6), dtype=np.uint8)) for _ in range(count)],
            "kind": [3 + 2 * (i % 2) for i in range(count)],
            "writer": [f"writer {i % 4}" for i in range(count)],
        }
        features = datasets.Features(
            {"picture": datasets.Image(), "kind": datasets.Value("int64"), "writer": datasets.Value("string")}
        )
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return str(folder)


def test_images_labels_and_writers(repo: str) -> None:
    dataset = {"name": "hf", "repo": repo, "image": "picture", "label": "kind", "natural_id": "writer"}
    task = build_task(
        {
            "dataset": dataset,
            "model": {"name": "cnn"},
            "partition": {"kind": "natural"},
            "num_clients": None,
            "seed": 0,
        }
    )
    assert task.num_nodes == 4
    assert task.source.input_shape == (1, 7, 6)
    assert task.source.num_classes == 2
    assert len(task.test_data()) == 8
    assert set(task.test_data().targets.tolist()) == {0, 1}
    assert np.isfinite(task.evaluate(task.model(), task.test_data())["loss"])


def test_resizing(repo: str) -> None:
    assert hub_images(repo=repo, image="picture", label="kind", image_size=9).input_shape == (1, 9, 9)


def test_a_missing_column_lists_those_there_are(repo: str) -> None:
    with pytest.raises(ValueError, match="no column 'image'; it has picture, kind, writer"):
        hub_images(repo=repo)


def of(folder: Path, **columns: Any) -> str:
    """Write a repository of four gray images a split, with further columns."""
    for split in ("train", "test"):
        rows = {"image": [Image.new("L", (4, 4), shade) for shade in range(4)], **columns}
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{split}.parquet")
    return str(folder)


@pytest.mark.parametrize(
    ("labels", "codes"),
    [([1, 2, 3, 1], [0, 1, 2, 0]), (["b", "a"] * 2, [1, 0, 1, 0]), ([True, False] * 2, [1, 0, 1, 0])],
)
def test_labels_are_numbered_in_their_order(labels: list[Any], codes: list[int], tmp_path: Path) -> None:
    source = hub_images(repo=of(tmp_path, label=labels))
    assert source.train_targets.tolist() == source.test_targets.tolist() == codes
    assert source.num_classes == len(set(labels))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([[0, 1], [2], [0], [1]], r"label: row 0 of train is \[0, 1\] \(list\)"),
        ([0.5, 1.7, 2.0, 3.3], r"label: row 0 of train is 0.5 \(float\), not one whole number or text"),
        ([0, 1, None, 1], "label: row 2 of train has no value; leave such rows out"),
        ([1.0, float("nan"), 1.0, 1.0], "label: row 0 of train is 1.0"),
    ],
)
def test_what_is_no_class_is_refused_by_column_and_row(labels: list[Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        hub_images(repo=of(tmp_path, label=labels))


def test_an_image_without_a_class_is_refused(tmp_path: Path) -> None:
    """A test set whose classes are kept secret, as of a competition: a class label of -1."""
    label = datasets.ClassLabel(names=["a", "b"])
    for split, labels in (("train", [0, 1]), ("test", [-1, -1])):
        rows = {"image": [Image.new("L", (4, 4))] * 2, "label": labels}
        features = datasets.Features({"image": datasets.Image(), "label": label})
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(ValueError, match="label: row 0 of test has no value"):
        hub_images(repo=str(tmp_path))


def test_what_is_no_image_is_refused_by_column(tmp_path: Path) -> None:
    repo = of(tmp_path, label=[0, 1, 0, 1], name=["a", "b", "c", "d"], thumb=[None, None, None, None])
    for column in ("label", "name"):
        with pytest.raises(
            ValueError, match=f"image={column}: row 0 of train cannot be read as an image; name another"
        ):
            hub_images(repo=repo, image=column)
    with pytest.raises(ValueError, match="image=thumb: row 0 has no image"):
        hub_images(repo=repo, image="thumb")


def test_an_unreachable_repository_says_what_to_check(repo: str) -> None:
    with pytest.raises(OSError, match=r"check the network and dataset\.repo") as caught:
        hub_images(repo="nobody/nothing")
    assert "\n" not in str(caught.value)


def test_without_flwr_datasets_names_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install flwr-datasets"):
        hub_images(repo="nobody/nothing")


def test_a_file_and_a_saved_folder_are_read_as_they_are(repo: str, tmp_path: Path) -> None:
    columns: dict[str, Any] = {"image": "picture", "label": "kind"}
    file = hub_images(repo=f"{repo}/train.parquet", **columns)
    assert (len(file.train_inputs), len(file.test_inputs)) == (32, 8)
    loaded = datasets.load_dataset(repo)
    loaded.save_to_disk(str(tmp_path / "saved"))
    saved, hub = hub_images(repo=str(tmp_path / "saved"), **columns), hub_images(repo=repo, **columns)
    assert saved.train_inputs.tolist() == hub.train_inputs.tolist()
    assert saved.test_targets.tolist() == hub.test_targets.tolist()
    with pytest.raises(ValueError, match="has no split 'validation', only"):
        hub_images(repo=str(tmp_path / "saved"), test_split="validation", **columns)
