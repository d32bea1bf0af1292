"""Frozen arrays are known by their hash: made by the node, or sent to it once, and then never again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from safetensors.torch import load_file

from flsparse.clients import Limits, device_app
from flsparse.clients.core.frozen import frozen_digest, take_frozen
from flsparse.clients.core.state import NodeState
from flsparse.codec import Codec, PayloadError
from flsparse.nets.frozen import digest
from flsparse.runs.folder import read_rows
from flsparse.runtime import InProcessGrid, launch, run_federation
from flsparse.tasks import Task, build_task
from flsparse.wire.messages import FROZEN, OPAQUE, RECORD, pack

Config = Callable[..., dict[str, Any]]
DENSE = {"values": "raw", "rounding": "nearest", "downlink_values": "raw"}
FROZEN_LAYERS = {"name": "cnn", "width": 8, "freeze": ["0.*", "1.*", "3.*", "4.*", "6.*", "7.*"]}


@pytest.fixture
def based(config: Config, tmp_path: Path) -> dict[str, Any]:
    """Return a run whose frozen layers come from a file that another run left."""
    launch(config(output_dir=str(tmp_path / "first"), strategy={"name": "fedavg"}, codec=DENSE))
    model = FROZEN_LAYERS | {"weights": str(tmp_path / "first" / "model.safetensors")}
    return config(model=model, strategy={"name": "fedavg"}, codec=DENSE, fraction_train=1.0)


def without_file(cfg: dict[str, Any]) -> Task:
    """Return the task of a node on which the file of weights is missing."""
    return build_task(cfg | {"model": cfg["model"] | {"weights": "/nowhere/model.safetensors"}})


def grid_of(tasks: list[Task], limits: Limits | None = None) -> InProcessGrid:
    return InProcessGrid(device_app(lambda context: tasks[int(context.node_config["partition-id"])], limits), 6)


def test_nodes_without_the_file_are_sent_the_base_once(based: dict[str, Any], tmp_path: Path) -> None:
    """Rows are those of a run in which all nodes have the file, but for the bytes of round 1."""
    task, lacking = build_task(based), without_file(based)
    base = sum(array.nbytes for array in task.frozen_arrays.values())
    rows = []
    for name, tasks in (("all", [task] * 6), ("four", [task] * 4 + [lacking] * 2)):
        run_federation(grid_of(tasks), based | {"output_dir": str(tmp_path / name)})
        rows.append(read_rows(tmp_path / name / "metrics.jsonl"))
    for whole, sent in zip(*rows, strict=True):
        assert [whole[key] for key in ("accuracy", "loss", "failures")] == [sent["accuracy"], sent["loss"], 0]
    more = [sent["downlink_bytes"] - whole["downlink_bytes"] for whole, sent in zip(*rows, strict=True)]
    assert 1.6 * base < more[0] < 2.05 * base  # bit for bit, coded
    assert more[1:] == [0, 0, 0]
    assert [sent["downlink_ratio"] for sent in rows[1]][1:] == [whole["downlink_ratio"] for whole in rows[0]][1:]
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("all", "four"))
    assert all(np.array_equal(value, second[name]) for name, value in first.items())


def test_a_node_that_makes_the_base_is_sent_none_of_it(config: Config, tmp_path: Path) -> None:
    cfg = config(model=FROZEN_LAYERS, strategy={"name": "fedavg"}, codec=DENSE, fraction_train=1.0)
    summary, shared = launch(cfg), build_task(cfg).model().state_dict()
    assert summary["dense_bytes_per_model"] == sum(value.nbytes for value in shared.values())
    assert summary["downlink_bytes"] < 4 * 6 * (summary["dense_bytes_per_model"] + 100)


def test_gossip_trains_over_a_base_that_was_sent(based: dict[str, Any], tmp_path: Path) -> None:
    cfg = based | {"strategy": {"name": "d_psgd", "topology": {"name": "ring"}, "num_nodes": 6}, "codec": {}}
    task, lacking, scores = build_task(cfg), without_file(cfg), []
    for tasks in ([task] * 6, [task] * 5 + [lacking]):
        initial = task.model().state_dict()
        lacking._initial_model[0].load_state_dict(initial)  # what trains is the server's to send, not the base's
        scores.append(run_federation(grid_of(tasks), cfg | {"output_dir": None})["final_loss"])
    assert scores[0] == scores[1]


def test_a_node_that_may_not_take_the_base_is_left_out_and_asked_no_more(based: dict[str, Any]) -> None:
    cfg, task, lacking = based | {"output_dir": None, "fraction_train": 0.5}, build_task(based), without_file(based)
    small = Limits(max_payload_bytes=1000)
    open_app = device_app(lambda _: task)
    strict = device_app(lambda _: lacking, small)

    def app(message: Message, context: Context) -> Message:
        return (strict if context.node_config["partition-id"] == 5 else open_app)(message, context)

    summary = run_federation(InProcessGrid(app, 6), cfg)  # type: ignore[arg-type]
    assert summary["failures"] == 1
    assert summary["uplink_messages"] == 4 * 3


def test_a_base_that_is_not_the_one_named_is_refused(based: dict[str, Any]) -> None:
    state = NodeState(Context(run_id=1, node_id=5, node_config={}, state=RecordDict(), run_config={}))
    own, sent = without_file(based).frozen_arrays, build_task(based).frozen_arrays

    def content(arrays: dict[str, np.ndarray], said: str) -> RecordDict:
        payload = Codec("fp32").encode(arrays, exact=list(arrays))
        return RecordDict({FROZEN: pack(payload, OPAQUE), RECORD: ConfigRecord({FROZEN: said})})

    with pytest.raises(PayloadError, match=rf"have the hash {digest(sent)}, not 0123456789abcdef as they should"):
        take_frozen(content(sent, "0123456789abcdef"), own, state)
    fewer = {name: array for name, array in sent.items() if name != "0.weight"}
    with pytest.raises(PayloadError):
        take_frozen(content(fewer, digest(fewer)), own, state)
    assert frozen_digest(digest(own), state) == digest(own)
    take_frozen(content(sent, digest(sent)), own, state)
    assert frozen_digest(digest(own), state) == digest(sent)


def test_a_node_that_has_lost_the_base_does_not_train(based: dict[str, Any]) -> None:
    cfg, lacking = based | {"output_dir": None}, without_file(based)
    app, reasons = device_app(lambda _: lacking), []

    def forgetful(message: Message, context: Context) -> Message:
        context.state.pop("flsparse.frozen", None)
        try:
            return app(message, context)
        except ValueError as error:
            reasons.append(str(error))
            raise

    with pytest.raises(RuntimeError, match=r"the frozen arrays of this node are others than the server's \("):
        run_federation(InProcessGrid(forgetful, 6), cfg)  # type: ignore[arg-type]
    assert "give both the same model.weights file" in reasons[0]


def test_the_server_has_to_have_the_file(based: dict[str, Any]) -> None:
    gone = based | {"model": based["model"] | {"weights": "/nowhere/model.safetensors"}}
    with pytest.raises(FileNotFoundError, match="there is no file of weights /nowhere/model"):
        launch(gone)
