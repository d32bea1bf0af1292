"""Arrays that stay on their node: in no payload, trained by it alone, kept by it, and measured there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from flsparse._flwr import unpack_records
from flsparse.clients import device_app
from flsparse.nets.arrays import load_arrays
from flsparse.nets.hidden import load_hidden
from flsparse.runs.folder import read_checkpoint, read_rows
from flsparse.runtime import InProcessGrid, launch, run_federation
from flsparse.tasks import build_task

Config = Callable[..., dict[str, Any]]
DENSE = {"values": "raw", "rounding": "nearest", "downlink_values": "raw"}
HEAD = ["10.*", "12.*"]
NORMS = ["1.*", "4.*", "7.*"]


def personal(config: Config, local: list[str], **changes: Any) -> dict[str, Any]:
    model = {"name": "cnn", "width": 8, "norm": "batch", "local": local}
    return config(**({"model": model, "strategy": {"name": "fedavg"}, "codec": DENSE, "fraction_train": 1.0} | changes))


def kept_by(folder: Path, partition: int) -> dict[str, np.ndarray]:
    state = unpack_records(bytes(read_checkpoint(folder)["nodes"]["nodes"][str(partition)]))
    return {name: array.numpy() for name, array in state.array_records["flsparse.personal"].items()}


@pytest.mark.parametrize("strategy", [{"name": "fedavg"}, {"name": "sparsyfed", "sparsity": 0.5, "ramp": False}])
def test_personal_arrays_travel_nowhere_and_are_each_nodes_own(
    config: Config, tmp_path: Path, strategy: dict[str, Any]
) -> None:
    cfg = personal(config, HEAD, strategy=strategy)
    summary, task = launch(cfg), build_task(cfg)
    shared = {name: value.nbytes for name, value in task.model().state_dict().items()}
    assert not any(name.startswith(("10.", "12.")) for name in shared)
    assert summary["dense_bytes_per_model"] == sum(shared.values())
    assert load_file(tmp_path / "run" / "model.safetensors").keys() == shared.keys()
    if strategy["name"] == "fedavg":
        size = summary["uplink_bytes"] / (4 * 6)
        assert 0 < size - sum(shared.values()) < 100  # the header of a payload
        assert summary["downlink_bytes"] == 2 * summary["uplink_bytes"]  # to train, and to evaluate
    first, second = kept_by(tmp_path / "run", 0), kept_by(tmp_path / "run", 1)
    assert list(first) == task.local
    assert not np.array_equal(first["12.weight"], second["12.weight"])


def test_nodes_evaluate_the_shared_model_with_their_own_arrays(config: Config, tmp_path: Path) -> None:
    """What the run reports is what each node's own model scores on its share; together they are the whole test set."""
    cfg = personal(config, NORMS)
    summary, task = launch(cfg), build_task(cfg)
    shares = [task.local_test_data(node) for node in range(6)]
    assert sorted(int(i) for share in shares if share is not None for i in share.index) == list(range(359))
    scores, right = [], 0.0
    for node, share in enumerate(shares):
        assert share is not None
        model = task.model()
        load_arrays(model, load_file(tmp_path / "run" / "model.safetensors"))
        load_hidden(model, kept_by(tmp_path / "run", node))
        scores.append(task.evaluate(model, share)["accuracy"])
        right += scores[-1] * len(share)
    row = read_rows(tmp_path / "run" / "metrics.jsonl")[-1]
    assert summary["final_accuracy"] == row["accuracy"] == pytest.approx(right / 359)
    assert summary["worst_node_accuracy"] == row["worst_node_accuracy"] == pytest.approx(min(scores))
    assert summary["mean_node_accuracy"] == pytest.approx(np.mean(scores))
    assert summary["final_accuracy"] > 0.4


def test_a_share_of_the_test_set_has_the_mix_of_its_nodes_classes(config: Config) -> None:
    task = build_task(personal(config, HEAD, partition={"kind": "dirichlet_equal", "alpha": 0.1}))
    for node in range(6):
        share, train = task.local_test_data(node), task.train_data(node)
        assert share is not None
        mixes = [np.bincount(data.targets, minlength=10) / len(data) for data in (share, train)]
        assert np.abs(mixes[0] - mixes[1]).max() < 0.1


def test_a_resumed_run_goes_on_with_the_nodes_own_arrays(config: Config, tmp_path: Path) -> None:
    constant = {"lr": 0.1, "batch_size": 32, "local_epochs": 1}
    launch(personal(config, HEAD, client=constant, num_rounds=2))
    launch(personal(config, HEAD, client=constant, resume=str(tmp_path / "run")))
    launch(personal(config, HEAD, client=constant, output_dir=str(tmp_path / "whole")))
    rows = [read_rows(tmp_path / run / "metrics.jsonl")[-1] for run in ("run", "whole")]
    assert rows[0]["loss"] == rows[1]["loss"]
    with pytest.raises(ValueError, match=r"cannot resume .*: its model\.local was"):
        launch(personal(config, NORMS, resume=str(tmp_path / "run")))


def test_a_node_without_state_starts_from_the_seeds_values(config: Config) -> None:
    """A node whose state is lost after every message trains from there each round, and no run fails."""
    cfg = personal(config, HEAD, output_dir=None)
    task = build_task(cfg)
    app, seen = device_app(lambda _: task), []

    def forgetful(message: Any, context: Any) -> Any:
        reply = app(message, context)
        seen.append(context.state.pop("flsparse.personal", None) is not None)
        return reply

    assert run_federation(InProcessGrid(forgetful, 6), cfg)["failures"] == 0  # type: ignore[arg-type]
    assert sum(seen) == 4 * 6  # each training stores them anew


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"strategy": {"name": "split_ms", "cut": "2", "steps_per_round": 1}},
            "does not go with strategy=split_ms: its server does not",
        ),
        (
            {"strategy": {"name": "d_psgd", "topology": {"name": "ring"}, "num_nodes": 6}},
            "strategy=d_psgd: its server",
        ),
        ({"strategy": {"name": "local_only"}}, "strategy=local_only: its server"),
        ({"strategy": {"name": "pooled"}}, "strategy=pooled: its server"),
        ({"strategy": {"name": "fedavg", "fraction_evaluate": 0.0}}, "fraction_evaluate=0 does not go with local="),
        ({"client": {"lr": "auto", "batch_size": 32, "local_epochs": 1}}, r"client\.lr=auto does not go with local="),
    ],
)
def test_what_cannot_keep_arrays_on_nodes_says_so(config: Config, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        launch(personal(config, HEAD, **change))


def test_nodes_start_from_a_file_of_weights_but_for_their_own_arrays(config: Config, tmp_path: Path) -> None:
    whole = {"name": "cnn", "width": 8, "norm": "batch"}
    launch(config(model=whole, strategy={"name": "fedavg"}, codec=DENSE, output_dir=str(tmp_path / "first")))
    file = str(tmp_path / "first" / "model.safetensors")
    still = {"lr": 1e-9, "batch_size": 32, "local_epochs": 1}
    launch(personal(config, HEAD, model=whole | {"local": HEAD, "weights": file}, client=still, num_rounds=1))
    begun, ended = load_file(file), load_file(tmp_path / "run" / "model.safetensors")
    assert all(np.allclose(value, begun[name], atol=1e-6) for name, value in ended.items() if name.endswith("0.weight"))
    fresh = build_task(config(model=whole)).model().state_dict()
    assert np.allclose(kept_by(tmp_path / "run", 0)["12.weight"], fresh["12.weight"], atol=1e-6)
