"""Runs that go by other measures than accuracy: regression on scikit-learn's diabetes, F1 of a rare class."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from sklearn.datasets import load_diabetes
from sklearn.metrics import f1_score

from flsparse.clients import device_app
from flsparse.report.display import Display
from flsparse.report.tables import comparison_table, run_table
from flsparse.runs.folder import read_rows
from flsparse.runtime import InProcessGrid, launch, run_federation
from flsparse.runtime.apps import RoundLog
from flsparse.tasks import Task, build_task
from flsparse.tasks import task as tasks
from flsparse.tasks.data import Data, Normalize, Source
from flsparse.tasks.datasets import digits

Config = Callable[..., dict[str, Any]]


def unchanged(batch: torch.Tensor) -> torch.Tensor:
    return batch


def diabetes(*, offset: float = 0.0) -> Source:
    """Return 353 + 89 patients of 10 numbers; the target is a number, in standard deviations. Sites differ in size."""
    found = load_diabetes()
    inputs = torch.tensor(found.data * 20, dtype=torch.float32)
    targets = torch.tensor((found.target - found.target.mean()) / found.target.std() + offset, dtype=torch.float32)
    sites = np.digitize(np.arange(353), [20, 60, 150])
    return Source(
        *(inputs[:353], targets[:353], inputs[353:], targets[353:], 0, unchanged),
        train_groups=sites,
        objective="regression",
    )


def nines() -> Source:
    """Return the digits with two classes: whether one is a nine, which a tenth is."""
    whole = digits()
    parts = (whole.train_inputs, (whole.train_targets == 9).long(), whole.test_inputs, (whole.test_targets == 9).long())
    return Source(*parts, 2, Normalize.of(0.5, 0.5))


@pytest.fixture(autouse=True)
def _loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tasks.LOADERS, "diabetes", diabetes)
    monkeypatch.setitem(tasks.LOADERS, "nines", nines)


DENSE = {"values": "raw", "rounding": "nearest", "downlink_values": "raw"}


@pytest.fixture
def regression(config: Config) -> dict[str, Any]:
    return config(
        num_rounds=5,
        num_clients=4,
        fraction_train=1.0,
        dataset={"name": "diabetes", "validation_fraction": 0.0},
        partition={"kind": "natural"},
        model={"name": "mlp", "hidden": 16},
        client={"lr": 0.05, "lr_final": 0.0, "batch_size": 16, "local_epochs": 2},
        codec=DENSE,
        strategy={"name": "fedavg", "fraction_evaluate": 1.0},
        evaluate={"every": 1, "on": "test", "target": 0.95},
        metrics=["r2", "mae"],
    )


def test_a_regression_is_shown_and_summed_up_by_its_error(regression: dict[str, Any], tmp_path: Path) -> None:
    screen = StringIO()
    with Display(Console(file=screen, width=200)) as display:
        summary = launch(regression, [display])
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert (summary["final_accuracy"], summary["best_accuracy"]) == (None, None)
    assert summary["metric"] == "rmse"
    assert summary["final_metric"] == rows[-1]["rmse"] == pytest.approx(rows[-1]["loss"] ** 0.5, rel=1e-5)
    assert summary["best_metric"] == min(row["rmse"] for row in rows) < 0.85
    assert rows[-1]["r2"] > 0.3
    assert all(row["accuracy"] is None and "train_accuracy" in row and row["train_accuracy"] is None for row in rows)
    assert summary["to_target"]["rounds"] == 3
    assert summary["warnings"] == []
    last = screen.getvalue().splitlines()[-1]
    assert f"round 5/5  rmse {rows[-1]['rmse']:.4g}  loss" in last
    out = StringIO()
    Console(file=out, width=100).print(run_table(summary), comparison_table([[summary], [summary, summary]]))
    assert f"best {summary['best_metric']:.4g}" in out.getvalue()
    assert "± 0" in out.getvalue()
    assert "accuracy" not in out.getvalue()


def test_the_error_over_all_nodes_is_that_of_their_data_together(regression: dict[str, Any], tmp_path: Path) -> None:
    """Sites of 20, 40, 90 and 203 patients; a mean of roots of means would be another number."""
    launch(regression)
    task, model = build_task(regression), build_task(regression).model()
    model.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"))
    with torch.no_grad():
        errors = model(task.source.train_inputs)[:, 0] - task.source.train_targets
    row = read_rows(tmp_path / "run" / "metrics.jsonl")[-1]
    assert row["evaluate_train_rmse"] == pytest.approx(float((errors.double() ** 2).mean()) ** 0.5, rel=1e-5)
    assert row["evaluate_train_mae"] == pytest.approx(float(errors.double().abs().mean()), rel=1e-5)
    alone = [task.evaluate(model, task.train_data(node))["rmse"] for node in range(4)]
    sizes = [len(task.train_data(node)) for node in range(4)]
    assert row["evaluate_train_rmse"] != pytest.approx(float(np.average(alone, weights=sizes)), rel=1e-4)


def test_a_net_that_learns_no_numbers_is_said_to_answer_their_mean(regression: dict[str, Any]) -> None:
    regression["client"] |= {"lr": 1e-9}
    regression["dataset"] |= {"offset": 9.0}
    (warning,) = launch(regression)["warnings"]
    assert warning.startswith("the loss is that of always answering the mean, ")


def test_a_rare_class_is_followed_by_its_f1(config: Config, tmp_path: Path) -> None:
    cfg = config(
        dataset={"name": "nines"},
        strategy={"name": "fedavg"},
        codec=DENSE,
        fraction_train=1.0,
        num_rounds=6,
        metric="f1",
        metrics=["confusion_matrix"],
        objective={"name": "classification", "class_weights": [1.0, 4.0]},
    )
    summary = launch(cfg)
    task, model = build_task(cfg), build_task(cfg).model()
    model.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"))
    data = task.test_data()
    with torch.no_grad():
        answers = model(data.prepare(data.inputs)).argmax(1)
    assert summary["metric"] == "f1"
    assert summary["final_metric"] == pytest.approx(f1_score(data.targets, answers)) != summary["final_accuracy"]
    row = read_rows(tmp_path / "run" / "metrics.jsonl")[-1]
    matrix = np.array(row["confusion_matrix"])
    assert matrix.shape == (2, 2)
    assert matrix[1, 1] == int(((answers == 1) & (data.targets == 1)).sum())
    assert matrix.sum() == len(data)


def test_a_resumed_run_keeps_its_best_and_its_metric(regression: dict[str, Any], tmp_path: Path) -> None:
    launch(regression | {"num_rounds": 3})
    folder = str(tmp_path / "run")
    with pytest.raises(ValueError, match=r"cannot resume .*: its metric was None"):
        launch(regression | {"resume": folder, "metric": "mae"})
    resumed = launch(regression | {"resume": folder})
    whole = launch(regression | {"output_dir": str(tmp_path / "whole")})
    for key in ("final_metric", "best_metric", "final_loss", "metric"):
        assert resumed[key] == whole[key]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["best_metric"] == whole["best_metric"]


def test_gossip_tells_the_worst_node_by_its_error(regression: dict[str, Any]) -> None:
    regression |= {
        "strategy": {"name": "d_psgd", "topology": {"name": "ring"}, "num_nodes": 4},
        "codec": {},
        "evaluate": {"every": 1, "on": "test"},
    }
    summary = launch(regression)
    assert summary["worst_node_rmse"] >= summary["mean_node_rmse"] > 0
    assert "mean_node_accuracy" not in summary


def test_split_learning_refuses_what_it_cannot_learn(regression: dict[str, Any], config: Config) -> None:
    split = {"name": "split_ms", "cut": "1", "steps_per_round": 1}
    with pytest.raises(ValueError, match="objective=regression with its settings does not go with strategy=split_ms"):
        launch(regression | {"strategy": split, "codec": DENSE})
    smoothed = {"name": "classification", "label_smoothing": 0.1}
    with pytest.raises(ValueError, match="objective=classification with its settings"):
        launch(config(strategy=split, codec=DENSE, objective=smoothed))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metric": "accuracy"}, "metric='accuracy' is none that objective=regression has: loss, mae, rmse, r2"),
        ({"metric": "rsme"}, "metric='rsme' is none of .*; did you mean rmse"),
        ({"metrics": ["confusion_matrix"]}, "metric='confusion_matrix' is none that objective=regression has"),
        ({"objective": {"name": "classification"}}, "use objective=regression"),
        ({"objective": {"name": "regresion"}}, "did you mean regression"),
        ({"objective": {"name": "regression", "error": "hubert"}}, "none of mse, huber, mae; did you mean huber"),
        ({"objective": {"name": "regression", "delta": 0.0}}, r"objective\.delta=0\.0 is not in \(0, inf\)"),
        ({"metric": "r2", "evaluate": {"every": 1, "on": "test", "target": 2}}, None),
    ],
)
def test_what_cannot_be_measured_is_refused_before_round_1(
    regression: dict[str, Any], change: dict[str, Any], said: str | None
) -> None:
    if said is None:  # R2 is no fraction, though never above 1: any number may be asked for
        assert launch(regression | change)["to_target"] is None
        return
    with pytest.raises(ValueError, match=said):
        launch(regression | change)


def test_a_run_starts_from_another_and_goes_on_learning(config: Config, tmp_path: Path) -> None:
    first = launch(config(output_dir=str(tmp_path / "first")))
    later = {"num_rounds": 1, "client": {"lr": 1e-6, "batch_size": 32, "local_epochs": 1}}
    begun = launch(config(**later, init=str(tmp_path / "first"), output_dir=str(tmp_path / "second")))
    assert begun["final_accuracy"] == pytest.approx(first["final_accuracy"], abs=0.03)
    assert launch(config(**later, output_dir=str(tmp_path / "third")))["final_accuracy"] < 0.5
    file = str(tmp_path / "first" / "model.safetensors")
    model = {"name": "cnn", "width": 8, "weights": file}
    same = launch(config(**later, model=model, output_dir=str(tmp_path / "fourth")))
    assert same["final_loss"] == begun["final_loss"]
    with pytest.raises(ValueError, match=r"has of another shape 0\.weight \(8x1x3x3, not 16x1x3x3\)"):
        launch(config(model=model | {"width": 16}))
    with pytest.raises(ValueError, match="are both to start from"):
        launch(config(model=model, init=str(tmp_path / "first")))
    with pytest.raises(FileNotFoundError, match=r"there is no model\.safetensors, which a run leaves when it ends"):
        launch(config(init=str(tmp_path)))


ADAMW = {"optimizer": "adamw", "lr": 0.01, "batch_size": 32, "local_epochs": 2, "weight_decay": 0.01}


def test_adamw_leaves_the_zeros_of_powerpropagation(config: Config, tmp_path: Path) -> None:
    summary = launch(config(client=ADAMW, strategy={"name": "sparsyfed", "sparsity": 0.9, "ramp": False}))
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert all(row["regrowth"] == 0 for row in rows[1:])
    assert summary["final_accuracy"] > 0.25
    launch(config(client=ADAMW, strategy={"name": "topk", "ramp": False}, output_dir=str(tmp_path / "topk")))
    assert all(row["regrowth"] > 0.2 for row in read_rows(tmp_path / "topk" / "metrics.jsonl")[1:])


@pytest.mark.parametrize("strategy", [{"name": "scaffold"}, {"name": "split_ms", "cut": "2", "steps_per_round": 1}])
def test_adamw_is_refused_where_the_other_side_steps_as_sgd(config: Config, strategy: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"client=adamw does not go with .* use client=sgd"):
        launch(config(client=ADAMW, strategy=strategy, codec=DENSE))


def test_nodes_with_data_of_their_own_are_measured_together(regression: dict[str, Any], tmp_path: Path) -> None:
    """The server has no data; a mean of the nodes' roots would not be the root of the mean."""
    draw, roots = np.random.default_rng(0), []
    for site, size in enumerate((30, 80, 200)):
        inputs = draw.normal(size=(size, 3))
        rows = np.column_stack([inputs, inputs @ [1, 2, -1] + site + draw.normal(size=size)])
        (tmp_path / str(site)).mkdir()
        np.savetxt(tmp_path / str(site) / "plant.csv", rows, "%.6f", ",", header="a,b,c,y", comments="")
        roots.append(str(tmp_path / str(site)))
    data = {"name": "table", "file": "plant.csv", "target": "y", "validation_fraction": 0.0, "root": None}
    own = {"dataset": data, "partition": {"kind": "own", "roots": roots}, "strategy": {"name": "fedavg"}}
    summary = launch(regression | own | {"num_clients": 3})
    row = read_rows(tmp_path / "run" / "metrics.jsonl")[-1]
    assert summary["final_metric"] == row["rmse"] == pytest.approx(row["loss"] ** 0.5, rel=1e-6)
    assert row["r2"] > 0.3
    assert summary["best_metric"] < 0.8


FROZEN = {"name": "cnn", "width": 8, "freeze": ["0.*", "1.*", "3.*", "4.*", "6.*", "7.*"]}


@pytest.mark.parametrize("strategy", [{"name": "fedavg"}, {"name": "sparsyfed", "sparsity": 0.5, "ramp": False}])
def test_frozen_arrays_neither_travel_nor_change_and_are_saved(
    config: Config, tmp_path: Path, strategy: dict[str, Any]
) -> None:
    cfg = config(strategy=strategy, codec=DENSE, model=FROZEN)
    summary = launch(cfg)
    task = build_task(cfg)
    trained, whole = task.model().state_dict(), build_task(config(model={"name": "cnn", "width": 8})).model()
    assert summary["dense_bytes_per_model"] == sum(value.nbytes for value in trained.values())
    assert summary["dense_bytes_per_model"] < 0.7 * sum(value.nbytes for value in whole.state_dict().values())
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert saved.keys() == whole.state_dict().keys()
    for name, value in whole.state_dict().items():
        assert torch.equal(saved[name], value) == (name in task.frozen)
    whole.load_state_dict(saved)
    found = task.evaluate(whole, task.test_data())
    assert found["accuracy"] == pytest.approx(summary["final_accuracy"])
    assert summary["final_accuracy"] > 0.2  # of layers drawn at random, in four rounds


def test_a_head_is_trained_on_layers_that_a_file_brings(config: Config, tmp_path: Path) -> None:
    launch(config(output_dir=str(tmp_path / "first"), strategy={"name": "fedavg"}, codec=DENSE))
    file = str(tmp_path / "first" / "model.safetensors")
    model = FROZEN | {"weights": file, "fresh": ["10.*", "12.*"]}
    names = build_task(config(model=FROZEN)).model().state_dict()
    model["fresh"] = sorted({f"{name.partition('.')[0]}.*" for name in names})
    launch(config(model=model, strategy={"name": "fedavg"}, codec=DENSE))
    first, second = load_file(file), load_file(tmp_path / "run" / "model.safetensors")
    for name, value in first.items():
        assert torch.equal(second[name], value) == (name not in names)
    with pytest.raises(ValueError, match=r"does not go with frozen arrays, .* use model\.weights="):
        launch(config(model=FROZEN, init=str(tmp_path / "first"), output_dir=None))


class Liar(Task):
    """A task that says it has evaluated on a million examples."""

    def evaluate(self, model: torch.nn.Module, data: Data) -> dict[str, Any]:
        return super().evaluate(model, data) | {"sums.examples": [1e6]}


def test_a_node_whose_sums_cannot_be_is_left_out_of_the_metric(regression: dict[str, Any]) -> None:
    cfg = regression | {"output_dir": None}
    tasks_of = [build_task(cfg)] * 3 + [Liar(cfg)]
    rows: list[dict[str, Any]] = []

    class Rows(RoundLog):
        def on_round(self, row: Any) -> None:
            rows.append(row)

    def summary_of(*tasks: Task) -> dict[str, Any]:
        app = device_app(lambda context: tasks[int(context.node_config["partition-id"])])
        return run_federation(InProcessGrid(app, 4), cfg, [Rows()])

    honest, lied = summary_of(*[build_task(cfg)] * 4), summary_of(*tasks_of)
    assert (honest["rejected_payloads"], lied["rejected_payloads"]) == (0, 5)
    assert lied["final_metric"] == honest["final_metric"]  # it trained as the others did
    assert 0 < rows[-1]["evaluate_train_rmse"] != rows[4]["evaluate_train_rmse"]
