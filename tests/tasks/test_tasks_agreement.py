"""What nodes with data of their own agree on: unions, exact statistics, and who is left out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flsparse.tasks.agreement import Agreement, agree, holdings
from flsparse.tasks.own import own_task, server_task
from flsparse.tasks.table import table
from flsparse.tasks.task import load

pytest.importorskip("pyarrow")

HEADER = "speed,steel,load,state"
EAST = ["1.25,hard,3,ok", "2.5,soft,4,ok", "0.1,hard,5,torn", "7,hard,2,ok", "3,soft,1,torn"]
WEST = ["100.5,mild,9,bent", "-3,hard,8,ok", "0.3,mild,7,bent", "6,hard,7,ok"]


@pytest.fixture
def roots(tmp_path: Path) -> list[str]:
    for name, rows in (("east", EAST), ("west", WEST)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "plant.csv").write_text("\n".join([HEADER, *rows]))
    return [str(tmp_path / name) for name in ("east", "west")]


def config(**dataset: Any) -> dict[str, Any]:
    settings = {"name": "table", "file": "plant.csv", "target": "state", "validation_fraction": 0.0, **dataset}
    return {
        "dataset": settings,
        "model": {"name": "mlp", "hidden": 4},
        "partition": {"kind": "own"},
        "num_clients": 2,
        "seed": 0,
    }


def held(cfg: dict[str, Any], roots: list[str]) -> dict[int, dict[str, Any]]:
    """Return what nodes say, as it comes out of a message."""
    return {node: json.loads(json.dumps(own_task(cfg, root, None).holdings())) for node, root in enumerate(roots)}


def test_the_agreement_is_the_union(roots: list[str]) -> None:
    cfg = config()
    agreement, left_out = agree(held(cfg, roots), cfg["dataset"])
    assert left_out == {}
    assert agreement.settings["classes"] == agreement.labels == ["bent", "ok", "torn"]
    assert agreement.settings["features"] == ["speed", "steel", "load"]
    assert agreement.settings["categories"] == {"steel": ["hard", "mild", "soft"]}
    assert agreement.shape == [5]
    tasks = [own_task(cfg, root, agreement) for root in roots]
    model = server_task(cfg, agreement).model()
    for task in tasks:
        assert task.source.labels == ("bent", "ok", "torn")
        assert task.evaluate(model, task.test_data())["num-examples"] == 1
    counted = [int(task.source.test_targets[0]) for task in tasks]
    assert agreement.counts == np.bincount(counted, minlength=3).tolist()


def test_statistics_over_nodes_are_those_of_all_rows_to_the_bit(roots: list[str], tmp_path: Path) -> None:
    cfg = config()
    agreement, _ = agree(held(cfg, roots), cfg["dataset"])
    tagged = [f"{row},{site}" for site, rows in (("e", EAST), ("w", WEST)) for row in rows]
    (tmp_path / "all.csv").write_text("\n".join([f"{HEADER},site", *tagged]))
    together = table(file=str(tmp_path / "all.csv"), target="state", group="site")
    ours = [own_task(cfg, root, agreement).source for root in roots]
    assert torch.equal(torch.cat([each.train_inputs for each in ours]), together.train_inputs)
    assert torch.equal(torch.cat([each.test_inputs for each in ours]), together.test_inputs)
    assert torch.equal(torch.cat([each.train_targets for each in ours]), together.train_targets)


def test_what_is_declared_holds(roots: list[str]) -> None:
    cfg = config(classes=["ok", "torn", "bent", "burnt"], features=["load"], statistics={"load": [5.0, 2.0]})
    agreement, _ = agree(held(cfg, roots), cfg["dataset"])
    assert agreement.settings == {"categories": {}}
    assert (agreement.num_classes, agreement.shape) == (4, [1])
    assert own_task(cfg, roots[0], agreement).source.train_inputs.max() <= 0


def test_a_node_that_lacks_a_column_is_left_out(roots: list[str], tmp_path: Path) -> None:
    (tmp_path / "north").mkdir()
    (tmp_path / "north" / "plant.csv").write_text("speed,load,state\n1,2,ok\n2,3,torn\n3,1,ok")
    cfg = config()
    agreement, left_out = agree(held(cfg, [*roots, str(tmp_path / "north")]), cfg["dataset"])
    assert left_out.keys() == {2}
    assert "has features ['speed', 'load'], and ['speed', 'steel', 'load'] is what most have" in left_out[2]
    with pytest.raises(ValueError, match=r"has no column 'steel' \(dataset.features\), only speed, load, state"):
        own_task(cfg, str(tmp_path / "north"), agreement)


def test_a_node_may_have_further_columns_in_any_order(roots: list[str], tmp_path: Path) -> None:
    (tmp_path / "north").mkdir()
    (tmp_path / "north" / "plant.csv").write_text(
        "color,load,state,speed,steel\n1,2,ok,4,hard\n2,3,torn,5,hard\n3,1,ok,1,soft"
    )
    cfg = config()
    agreement, left_out = agree(held(cfg, [*roots, str(tmp_path / "north")]), cfg["dataset"])
    assert left_out == {}
    assert own_task(cfg, str(tmp_path / "north"), agreement).source.input_shape == (5,)


def test_what_nobody_has_agreed_on_is_told(roots: list[str]) -> None:
    cfg = config()
    agreement, _ = agree(held(cfg, roots[:1]), cfg["dataset"])
    with pytest.raises(ValueError, match="'steel' is mild in row 1, none of hard, soft"):
        own_task(cfg, roots[1], agreement)


def test_shapes_have_to_be_the_same(tmp_path: Path) -> None:
    cfg = config() | {"dataset": {"name": "arrays", "file": "x.npz"}}
    roots = []
    for name, width in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "x.npz", inputs=np.zeros((6, width), np.float32), targets=np.arange(6) % 2)
        roots.append(str(tmp_path / name))
    agreement, left_out = agree(held(cfg, roots), cfg["dataset"])
    assert left_out.keys() == {2}
    with pytest.raises(ValueError, match=r"this node has samples of shape \[4\], and \[3\] is agreed"):
        own_task(cfg, roots[2], agreement)


def test_one_class_in_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plant.csv").write_text("x,state\n1,ok\n2,ok\n")
    cfg = config()
    with pytest.raises(ValueError, match="all nodes together hold one class, ok: nothing can be told apart"):
        agree(held(cfg, [str(tmp_path)] * 2), cfg["dataset"])


GOOD: dict[str, Any] = holdings(load({"dataset": {"name": "digits"}}))


@pytest.mark.parametrize(
    "change",
    [
        {"shape": None},
        {"shape": [-1]},
        {"shape": ["x"]},
        {"num_classes": 10**9},
        {"counts": {"a": 1}},
        {"labels": [1]},
        {"is_text": 2},
        {"objective": None},
        {"features": ["x"]},
        {"features": ["x"], "categories": {}, "moments": {"x": ["1", "1/0", "1"]}},
        {"classes": ["x" * 300]},
        {"train": True},
    ],
)
def test_a_node_that_talks_nonsense_is_left_out(change: dict[str, Any]) -> None:
    agreement, left_out = agree({0: GOOD, 1: {**GOOD, **change}}, {})
    assert left_out.keys() == {1}
    assert agreement.num_classes == 10


def test_nobody_is_left() -> None:
    with pytest.raises(ValueError, match="no node says what data it holds: node 4 says of its data"):
        agree({4: {}}, {})


def test_an_agreement_travels_as_plain_values() -> None:
    agreement, _ = agree({0: GOOD}, {})
    assert Agreement(**json.loads(json.dumps(agreement.plain()))) == agreement
