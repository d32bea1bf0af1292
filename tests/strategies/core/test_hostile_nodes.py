"""What a hostile or broken node may say, and what the run makes of it."""

import json
import zlib
from typing import Any, cast

import numpy as np
import pytest
from federation_kit import TRAINING, TamperedGrid, digits, initial_arrays, run
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from flsparse.clients import Limits, device_app, state_arrays
from flsparse.clients.parts.questions import STATISTICS
from flsparse.codec import Codec, PayloadError, specs_of
from flsparse.runtime import InProcessGrid
from flsparse.strategies import Compressed, FedAvg, LocalSGD, RoundFailed, RoundReport, SparsyFed
from flsparse.strategies.core.downlink import Downlink
from flsparse.strategies.core.part import RoundPart
from flsparse.tasks import build_task
from flsparse.wire.messages import RECORD, Blueprint, arrayrecord_key, pack, to_numpy

FLOWER: dict[str, Any] = {
    "fraction_train": 1.0,
    "fraction_evaluate": 0.0,
    "min_train_nodes": 3,
    "min_available_nodes": 3,
}


def first_of_each_round(change, num_nodes=3, kind="train"):
    """Return a grid whose first reply of the wanted kind is changed."""
    task = digits(num_nodes)
    seen = []

    def tamper(reply):
        if reply.metadata.message_type == kind and reply.has_content():
            seen.append(reply)
            if len(seen) % num_nodes == 1:
                change(reply)
        return [reply]

    return task, TamperedGrid(InProcessGrid(device_app(lambda _: task), num_nodes), tamper)


def metrics(**values):
    def change(reply):
        record = reply.content["metrics"]
        for key, value in values.items():
            record[key.replace("_", "-")] = value

    return change


def only(**values):
    def change(reply):
        reply.content["metrics"] = MetricRecord({k.replace("_", "-"): v for k, v in values.items()})

    return change


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (metrics(extra=1.0), 0),
        (only(train_loss=1.0), 2),
        (metrics(num_examples=[1, 2]), 2),
        (metrics(train_loss=[1.0, 2.0]), 0),
        (metrics(num_examples=float("nan")), 2),
        (metrics(num_examples=float("inf")), 2),
        (metrics(num_examples=-3), 2),
    ],
)
@pytest.mark.parametrize("inner", [FlowerFedAvg, FedAdam])
def test_one_nodes_metrics_cannot_end_a_compressed_run(inner, change, refused):
    task, grid = first_of_each_round(change)
    strategy = Compressed(inner(**FLOWER))
    result = strategy.start(grid, initial_arrays(strategy, task), num_rounds=2, train_config=TRAINING)
    assert strategy.wire.counts["rejected_payloads"] == refused
    assert all(np.isfinite(a).all() for a in to_numpy(result.arrays).values())


def test_a_resumed_inner_strategy_keeps_its_moments():
    task = digits(3)
    first = Compressed(FedAdam(**FLOWER))
    grid = InProcessGrid(device_app(lambda _: task), 3)
    first.start(grid, initial_arrays(first, task), num_rounds=1, train_config=TRAINING)
    second = Compressed(FedAdam(**FLOWER))
    second.load_state_dict(first.state_dict())
    saved, loaded = cast(FedAdam, first.strategy).m_t, cast(FedAdam, second.strategy).m_t
    assert saved is not None
    assert loaded is not None
    for name, moment in saved.items():
        np.testing.assert_array_equal(loaded[name], moment)


def test_nodes_cannot_write_the_servers_columns():
    task, grid = first_of_each_round(
        metrics(server_round=0.0, schema_version=7.0, mask_iou=9.0, accuracy=1e15, **{f"x{i}": 1.0 for i in range(500)})
    )
    *_, report = run(FedAvg(), task, rounds=1, grid=grid)
    assert not {"server_round", "schema_version", "mask_iou", "accuracy"} & set(report.metrics)
    assert len(report.metrics) < 100


def test_no_node_weighs_more_than_it_said_in_the_hello():
    task, grid = first_of_each_round(metrics(num_examples=1e15))
    (moved,) = run(FedAvg(values="fp32", hello=True), task, rounds=1, grid=grid)
    (usual,) = run(FedAvg(values="fp32", hello=True), task, rounds=1)
    for x, y in zip(to_numpy(moved.arrays).values(), to_numpy(usual.arrays).values(), strict=True):
        np.testing.assert_array_equal(x, y)


def test_absurd_weights_are_refused_and_count_as_no_model():
    task = digits(3)
    arrays = {name: np.full_like(a, 3e38) for name, a in state_arrays(task.model()).items()}

    def change(reply):
        reply.content[arrayrecord_key(reply.content)] = pack(Codec("raw").encode(arrays))

    task, grid = first_of_each_round(change)
    (report,) = run(FedAvg(values="raw", downlink_values="raw"), task, rounds=1, grid=grid)
    assert report.metrics["replies"] == 2
    assert report.metrics["rejected_payloads"] == 1
    assert report.metrics["uplink_ratio"] == pytest.approx(2 / 3, rel=0.01)


def test_a_model_that_cannot_be_sent_fails_the_round_and_is_not_kept():
    class Diverging(RoundPart):
        name = "diverging"

        def close(self, arrays, round):
            return {name: a * np.float32(np.inf) if a.dtype.kind == "f" else a for name, a in arrays.items()}

    reports: list[RoundReport] = []
    loop = FedAvg(parts=[Diverging()])
    loop.callbacks.append(reports.append)
    with pytest.raises(RoundFailed, match="not finite"), np.errstate(invalid="ignore"):
        run(loop, digits(2), rounds=2)
    assert not reports


def test_half_precision_says_what_it_cannot_hold():
    arrays = {"w": np.array([[1e5]], np.float32)}
    assert "65504" in (Downlink(Codec("fp16")).cannot_send(arrays) or "")
    assert Downlink(Codec("int8")).cannot_send(arrays) is None


@pytest.mark.parametrize(
    "said", [{"partition-id": True}, {"partition-id": 2**62}, {"codec-version": 99}, {"partition-id": "0"}]
)
def test_a_hello_that_makes_no_sense_keeps_the_node_out(said):
    def change(reply):
        for key, value in said.items():
            reply.content[RECORD][key] = value

    task, grid = first_of_each_round(change, kind="query")
    loop = FedAvg(hello=True)
    (report,) = run(loop, task, rounds=1, grid=grid)
    assert len(loop.nodes) == 2
    assert report.metrics["replies"] == 2


@pytest.mark.parametrize(("methods", "welcome"), [(["topk"], 2), ([1, 2], 2), (["fedavg", "topk"], 3), (None, 3)])
def test_a_node_that_does_not_know_the_method_is_not_sampled(methods, welcome):
    def change(reply):
        del reply.content[RECORD]["methods"]
        if methods is not None:
            reply.content[RECORD]["methods"] = methods

    task, grid = first_of_each_round(change, kind="query")
    loop, problems = FedAvg(hello=True), []
    loop.callbacks.append(lambda _: problems.extend(loop.wire.problems))
    *_, report = run(loop, task, rounds=2, grid=grid)
    assert len(loop.nodes) == report.metrics["replies"] == welcome
    assert report.metrics["failures"] == 3 - welcome
    assert not problems or "does not know the method 'fedavg'" in problems[0]


@pytest.mark.parametrize("value", [2**70, "\ud800"], ids=["huge", "surrogate"])
def test_a_reply_that_cannot_be_serialized_is_that_nodes_failure(value):
    task = digits(2)
    app = device_app(lambda _: task)
    plain, calls = app._registered_funcs["train.default"], []

    def train(message, context):
        reply = plain(message, context)
        calls.append(1)
        if len(calls) == 1:
            reply.content["odd"] = ConfigRecord({"x": value})
        return reply

    app._registered_funcs["train.default"] = train
    (report,) = run(FedAvg(), task, rounds=1, grid=InProcessGrid(app, 2))
    assert report.metrics["replies"] == 1


def test_a_message_that_is_no_reply_does_not_stall_the_round():
    app = ClientApp()

    @app.train()
    def train(message, context):
        return Message(RecordDict(), 1, "train")

    with pytest.raises(RoundFailed, match="no reply"):
        run(FedAvg(), digits(2), rounds=1, grid=InProcessGrid(app, 2))


def test_after_a_deadline_nothing_waits_in_the_grid():
    class Late(InProcessGrid):
        def pull_messages(self, message_ids):
            return super().pull_messages(message_ids) if len(self._pending) > 1 else []

    task = digits(3)
    grid = Late(device_app(lambda _: task), 3)
    (report,) = run(SparsyFed(round_timeout_s=6), task, rounds=1, grid=grid)
    assert report.metrics["replies"] == 2
    assert not grid._pending


@pytest.mark.parametrize(
    "asked",
    [
        {"local-epochs": 3},
        {"local-epochs": 0, "local-steps": 500},
        {"local-epochs": -5},
        {"local-epochs": 3, "local-steps": 0.5},
        {"local-epochs": 3, "local-steps": -1},
    ],
)
def test_steps_and_epochs_are_held_to_the_owners_limit(asked):
    task, loop = digits(2), FedAvg()
    grid = InProcessGrid(device_app(lambda _: task, Limits(max_local_epochs=2)), 2)
    with pytest.raises(RoundFailed, match="max_local_epochs=2"):
        loop.start(grid, initial_arrays(loop, task), num_rounds=1, train_config=ConfigRecord({**TRAINING, **asked}))


def test_plain_arrays_are_held_to_the_owners_limits():
    task = digits(2)
    grid = InProcessGrid(device_app(lambda _: task, Limits(max_memory_bytes=1000)), 2)
    arrays = initial_arrays(FedAvg(), task)
    config = ConfigRecord({**TRAINING, "server-round": 1})
    content = RecordDict({"arrays": ArrayRecord(dict(arrays)), "config": config, RECORD: ConfigRecord({"seed": 0})})
    (reply,) = grid.send_and_receive([Message(content, next(iter(grid.get_node_ids())), "train")])
    assert "max_memory_bytes=1000" in (reply.error.reason or "")


@pytest.mark.parametrize("change", [lambda b: b + b"x" * 100, lambda b: b[:-3], lambda _: "text", lambda _: b"{"])
def test_a_bad_blueprint_is_a_payload_error(change):
    good = Blueprint(specs_of({"w": np.zeros((2, 3), np.float32)}), ["w"]).to_bytes()
    assert Blueprint.from_bytes(good).prunable == ["w"]
    with pytest.raises(PayloadError, match="blueprint"):
        Blueprint.from_bytes(change(good))


@pytest.mark.parametrize(
    ("shape", "dtype"), [([2], "<f4,("), ([2], "O"), ([2], "<M8[s]"), ([1] * 300, "<f4"), ([-1], "<f4")]
)
def test_a_blueprint_of_arrays_that_do_not_exist_is_a_payload_error(shape, dtype):
    data = zlib.compress(json.dumps([["w", shape, dtype, True]]).encode())
    with pytest.raises(PayloadError, match="blueprint"):
        Blueprint.from_bytes(data)


def test_what_nobody_holds_is_forgotten():
    *_, report = run(loop := SparsyFed(sparsity=0.9), digits(3), rounds=4)
    assert len(loop.wire.downlink.state_dict()) <= 4
    assert report.metrics["replies"] == 3


def unreadable(_):
    return Array(dtype="float32", shape=(4,), stype="somebody.else", data=b"1234")


@pytest.mark.parametrize(
    "change",
    [
        lambda array: Array(array.numpy().astype(np.float64)),
        lambda array: Array(array.numpy().astype(str)),
        lambda array: Array(array.numpy()[:-1]),
        unreadable,
        lambda array: Array(dtype="float32", shape=array.shape, stype=array.stype, data=b""),
        lambda array: Array(dtype="float32", shape=array.shape, stype=array.stype, data=b"PK\x03\x04" + bytes(40)),
    ],
    ids=["float64", "strings", "short", "stype", "empty", "zip"],
)
def test_one_nodes_statistics_cannot_end_a_run(change):
    task = build_task(
        {
            "dataset": {"name": "digits", "train_samples": 150},
            "model": {"name": "cnn", "width": 4, "norm": "batch"},
            "partition": {"kind": "iid"},
            "num_clients": 3,
            "seed": 0,
        }
    )
    seen = []

    def tamper(reply):
        if reply.has_content() and (record := reply.content.array_records.get(STATISTICS)):
            seen.append(reply)
            if len(seen) % 3 == 1:
                reply.content[STATISTICS] = ArrayRecord({name: change(array) for name, array in record.items()})
        return [reply]

    grid = TamperedGrid(InProcessGrid(device_app(lambda _: task), 3), tamper)
    *_, report = run(LocalSGD(hello=True), task, rounds=2, grid=grid)
    assert report.metrics["rejected_payloads"] == 2
    assert all(array.dtype != np.float64 for array in to_numpy(report.arrays).values())
