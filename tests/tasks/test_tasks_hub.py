import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flsparse.tasks import build_task
from flsparse.tasks.hub import hub_images

datasets = pytest.importorskip("datasets")
pytest.importorskip("flwr_datasets")


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder laid out like a repository of the hub: gray images of 6x7, labels 3 and 5, four writers."""
    from PIL import Image

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


def test_an_unreachable_repository_says_what_to_check(repo: str) -> None:
    with pytest.raises(OSError, match=r"check the network and dataset\.repo") as caught:
        hub_images(repo="nobody/nothing")
    assert "\n" not in str(caught.value)


def test_without_flwr_datasets_names_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install flwr-datasets"):
        hub_images(repo="nobody/nothing")
