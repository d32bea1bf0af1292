"""Functions of the user's own: what they are called with, what they may return, and who may name them."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from flsparse.runtime.apps import client
from flsparse.runtime.inprocess import InProcessGrid
from flsparse.runtime.owner import FACTORIES, at_home, at_home_here, check_factories, root_here
from flsparse.tasks import build_task
from flsparse.wire.messages import RECORD

MODULE = """\
import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset


def arrays(root=None, samples=24):
    x = np.random.default_rng(0).normal(size=(samples, 5)).astype("f4")
    return {"inputs": x, "targets": (x.sum(1) > 0).astype(int), "groups": np.arange(samples) % 3}


class Waves(Dataset):
    read = []

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        Waves.read.append(i)
        return torch.full((2, 6), float(i)), i % 2


def waves():
    return {"train": Waves(8), "test": Waves(4), "train_groups": [0, 0, 0, 0, 1, 1, 1, 1], "classes": ["even", "odd"]}


def strange():
    return 3


class Net(nn.Sequential):
    def __init__(self, input_shape, num_classes, width=8):
        super().__init__(nn.Flatten(), nn.Linear(input_shape[-1], width), nn.ReLU(), nn.Linear(width, num_classes))


def series_net(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))


def nothing():
    return nn.ReLU()
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Work in a folder that holds the module of the user."""
    (tmp_path / "mydata.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("mydata", None)


def config(factory: str = "mydata:arrays", model: str = "mydata:Net", **changes: Any) -> dict[str, Any]:
    return {
        "dataset": {"name": "python", "factory": factory, "root": None, "validation_fraction": 0.0},
        "model": {"name": "python", "factory": model},
        "partition": {"kind": "natural"},
        "seed": 0,
        **changes,
    }


def test_arrays_and_a_net() -> None:
    task = build_task(config())
    assert task.num_nodes == 3
    model = task.model()
    assert task.evaluate(model, task.test_data())["num-examples"] == 6
    assert torch.equal(model[1].weight, task.model()[1].weight)  # type: ignore[index]
    wide = build_task(config(model="mydata:Net") | {"model": {"name": "python", "factory": "mydata:Net", "width": 3}})
    assert wide.model()[1].out_features == 3  # type: ignore[index]
    few = config() | {"dataset": {"name": "python", "factory": "mydata:arrays", "samples": 12}}
    assert len(build_task(few).test_data()) == 3


def test_datasets_of_torch_are_read_batch_by_batch() -> None:
    task = build_task(config("mydata:waves", "mydata:series_net"))
    assert task.source.labels == ("even", "odd")
    assert task.source.input_shape == (2, 6)
    read = sys.modules["mydata"].Waves.read
    read.clear()
    batch = task.train_data(1).inputs[[0, -1]]
    assert read == [4, 7]
    assert batch[:, 0, 0].tolist() == [4.0, 7.0]
    assert np.isfinite(task.evaluate(task.model(), task.test_data())["loss"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factory": "mydata.arrays"}, "is no dotted name of a function, such as mypackage.data:load"),
        (
            {"factory": "nodata:load"},
            "there is no module nodata here: install it, or start in the folder",
        ),
        ({"factory": "mydata:array"}, "mydata has no function array; did you mean arrays"),
        ({"factory": None}, "dataset.factory must be set for python"),
        ({"factory": "mydata:strange"}, "returns int, not a Source, or a mapping"),
        (
            {"factory": "mydata:arrays", "sample": 3},
            "dataset.sample is not a setting of mydata:arrays; did you mean samples",
        ),
    ],
)
def test_data_that_no_function_gives(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_task(config() | {"dataset": {"name": "python", **change}})


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("mydata:arrays", "returns dict, not a torch.nn.Module"),
        ("mydata:nothing", "a module without parameters: nothing would train"),
        ("mydata:Waves", "model.size must be set for mydata:Waves"),
    ],
)
def test_models_that_no_function_gives(factory: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_task(config(model=factory)).model()


def test_what_a_module_lacks_itself_is_said(tmp_path: Path) -> None:
    (tmp_path / "lacking.py").write_text("import a_package_that_is_not_there\n")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        build_task(config("lacking:load"))


def test_a_message_names_only_what_the_owner_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config()
    monkeypatch.delenv(FACTORIES, raising=False)
    with pytest.raises(ValueError, match="runs no functions: its owner allows it by FLSPARSE_FACTORIES=mydata:arrays"):
        check_factories(cfg)
    monkeypatch.setenv(FACTORIES, "mydata:arrays")
    with pytest.raises(ValueError, match=r"model.factory='mydata:Net'.*FLSPARSE_FACTORIES=mydata:arrays,mydata:Net"):
        check_factories(cfg)
    monkeypatch.setenv(FACTORIES, "mydata:arrays, mydata:Net")
    check_factories(cfg)


def hello(cfg: dict[str, Any], **node_config: str) -> Message:
    import json

    grid = InProcessGrid(client, 1, run_config={"cfg": json.dumps(cfg)}, node_config=node_config)
    (node,) = grid.get_node_ids()
    (reply,) = grid.send_and_receive([Message(RecordDict({RECORD: ConfigRecord()}), node, MessageType.QUERY)])
    return reply


def test_a_device_runs_no_function_of_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FACTORIES, raising=False)
    cfg = config() | {"num_clients": 1}
    assert "its owner allows it by" in str(hello(cfg).error.reason)
    monkeypatch.setenv(FACTORIES, "mydata:arrays,mydata:Net")
    assert hello(cfg).content.config_records[RECORD]["num-examples"] == 6


def test_a_device_reads_below_its_own_root_alone(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", inputs=np.zeros((8, 2), np.float32), targets=np.arange(8) % 2)
    dataset = {"name": "arrays", "file": "set.npz", "root": None, "validation_fraction": 0.0}
    cfg = config() | {"dataset": dataset, "model": {"name": "mlp"}, "partition": {"kind": "iid"}, "num_clients": 1}
    assert "names no data for dataset=arrays" in str(hello(cfg).error.reason)
    there = {"dataset-root": str(tmp_path)}
    assert hello(cfg, **there).content.config_records[RECORD]["num-examples"] == 6
    for file in (str(tmp_path / "set.npz"), "../set.npz", "a/../../set.npz"):
        reply = hello(cfg | {"dataset": dataset | {"file": file}}, **there)
        assert "leaves this node's dataset-root" in str(reply.error.reason)


def test_a_message_says_neither_where_to_cache_nor_which_local_set() -> None:
    folder = {"dataset": {"name": "folder", "root": "x", "cache": "/etc"}}
    assert at_home(folder, "/data") == {"name": "folder", "root": "/data"}
    with pytest.raises(ValueError, match="no repository of the hub"):
        at_home({"dataset": {"name": "hf", "repo": str(Path.cwd())}}, "/data")
    assert at_home({"dataset": {"name": "digits"}}, "/data") == {"name": "digits"}


def test_nodes_of_this_machine_are_given_their_roots(tmp_path: Path) -> None:
    table = {"name": "table", "root": None, "file": "a/x.csv", "test_file": str(tmp_path / "b" / "y.csv")}
    here = at_home_here({"dataset": table, "partition": {"kind": "natural"}})
    assert here["dataset"] == {"name": "table", "root": str(tmp_path), "file": "a/x.csv", "test_file": "b/y.csv"}
    assert at_home_here(here) == here
    assert root_here(here, 1) == str(tmp_path)
    own = at_home_here(
        {"dataset": {"name": "folder", "root": "data"}, "partition": {"kind": "own", "roots": ["a", "b"]}}
    )
    assert root_here(own, 1) == str(tmp_path / "b")
    assert root_here({"dataset": {"name": "mnist", "root": "data"}}, 0) == ""
