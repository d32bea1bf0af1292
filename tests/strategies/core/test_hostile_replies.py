"""What one node may write into its reply's records and arrays, and that it costs that reply alone."""

import json
import zlib
from typing import Any

import numpy as np
import pytest
from federation_kit import unfolded
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg

from flsparse.clients import CompressMod
from flsparse.codec import Codec, specs_of
from flsparse.runtime import InProcessGrid
from flsparse.strategies import Compressed
from flsparse.strategies import FedAvg as OurFedAvg
from flsparse.wire.messages import RECORD, Blueprint, pack, to_numpy, to_record

NODES = 3
LOSSLESS: dict[str, Any] = {"values": "fp32", "downlink_values": "fp32"}


class Spy(FedAvg):
    """A strategy with an aggregation of its own above Flower's."""

    def aggregate_train(self, server_round, replies):
        return super().aggregate_train(server_round, list(replies))


def compressed(inner=FedAvg, **wire):
    return Compressed(inner(fraction_evaluate=0.0, min_train_nodes=2), **{**LOSSLESS, **wire})


def ours(**wire):
    return OurFedAvg(min_train_nodes=2, **{**LOSSLESS, **wire})


MAKERS = {"ours": ours, "FedAvg": compressed, "Spy": lambda **wire: compressed(Spy, **wire)}
any_strategy = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
any_compressed = pytest.mark.parametrize("make", list(MAKERS.values())[1:], ids=list(MAKERS)[1:])


def weights():
    generator = np.random.default_rng(0)
    return {
        "w": generator.normal(size=(30, 20)).astype(np.float32),
        "b": np.zeros(20, np.float32),
        "mask": np.triu(np.full((4, 4), -np.inf, np.float32), 1),
    }


def moved(arrays, node):
    return {name: a + a.dtype.type(0.1 * node) if name in ("w", "b") else a for name, a in arrays.items()}


class Hostile(CompressMod):
    """A mod whose replies of the node of partition 0 are changed."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def __call__(self, message, context, call_next):
        reply = unfolded(super().__call__(message, context, call_next))
        reply.content.setdefault(RECORD, ConfigRecord())
        if context.node_config["partition-id"] == 0:
            self.change(reply.content)
        return reply


def grid_of(change, answer=moved, nodes=NODES):
    app = ClientApp(mods=[Hostile(change)])

    @app.train()
    def _train(message, context):
        arrays = answer(to_numpy(message.content["arrays"]), int(context.node_config["partition-id"]))
        content = RecordDict({"arrays": to_record(arrays), "metrics": MetricRecord({"num-examples": 1, "loss": 1.0})})
        return Message(content, reply_to=message)

    @app.evaluate()
    def _evaluate(message, _):
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    return InProcessGrid(app, nodes)


def survives(strategy, change, *, answer=moved, nodes=NODES, arrays=None):
    """Run a round; the hostile node's reply is refused in a line, and the model stays as finite as it was."""
    said = []
    strategy.callbacks.append(lambda _: said.extend(strategy.wire.problems))
    result = strategy.start(grid_of(change, answer, nodes), to_record(arrays or weights()), num_rounds=1)
    assert strategy.wire.counts["rejected_payloads"] + strategy.wire.counts["failures"] == 1
    assert len(said) == 1
    assert all("\n" not in line for line in said)
    found = to_numpy(result.arrays)
    for name, array in (arrays or weights()).items():
        np.testing.assert_array_equal(np.isfinite(found[name]), np.isfinite(array), err_msg=name)
    return found, said


def packed(content, arrays, exact=(), values="raw"):
    """Put arrays into a reply as a mod would that says anything of them."""
    content["arrays"] = pack(Codec(values).encode(arrays, exact=exact))
    content[RECORD]["blueprint"] = Blueprint(specs_of(arrays, exact), []).to_bytes()


def rows(*rows):
    return zlib.compress(json.dumps(rows).encode())


# -- arrays -----------------------------------------------------------------------------------------------------------


@any_strategy
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_weights_are_not_made_exact_by_the_node_that_returns_them(make, value):
    def change(content):
        packed(content, {**weights(), "w": np.full((30, 20), value, np.float32)}, exact=("w", "b", "mask"))

    _, said = survives(make(values="raw"), change)
    assert "'w'" in said[0]


@any_strategy
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_an_exact_array_keeps_its_infinities_where_they_are(make, value):
    def change(content):
        packed(content, {**weights(), "mask": np.full((4, 4), value, np.float32)}, exact=("mask",))

    found, said = survives(make(values="raw"), change)
    assert "'mask'" in said[0]
    np.testing.assert_array_equal(found["mask"], weights()["mask"])


@any_strategy
def test_an_exact_array_that_is_said_to_be_a_weight_is_refused(make):
    survives(make(), lambda content: packed(content, {**weights(), "mask": np.zeros((4, 4), np.float32)}))


def test_an_optimizer_leaves_infinities_as_they_are():
    strategy = compressed(FedAdam)
    found = strategy.start(grid_of(lambda content: None), to_record(weights()), num_rounds=3).arrays
    np.testing.assert_array_equal(to_numpy(found)["mask"], weights()["mask"])


@any_strategy
def test_another_dtype_than_was_sent_may_not_overflow(make):
    def change(content):
        packed(content, {**weights(), "huge": np.zeros((2, 2), np.float16)}, ("mask",), "fp32")

    survives(make(), change, arrays={**weights(), "huge": np.full((2, 2), 1e12, np.float32)})


@any_compressed
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_arrays_that_no_node_was_sent_are_to_be_as_those_of_most(make, value):
    def grown(arrays, node):
        return {**moved(arrays, node), "p": np.full(3, node + 0.5, np.float32)}

    def change(content):
        arrays = {**weights(), "p": np.full(3, value, np.float32)}
        packed(content, arrays, ("mask", "p"))

    found, said = survives(make(values="raw"), change, answer=grown)
    assert "'p'" in said[0]
    assert np.isfinite(found["p"]).all()


@any_strategy
def test_half_precision_weights_stay_where_their_mean_can_be_sent(make):
    def change(content):
        content["arrays"] = pack(Codec("raw").encode({"w": np.full((3, 2), 65504, np.float16)}))
        content["metrics"]["num-examples"] = 10**15

    strategy = make(values="raw", downlink_values="int8")
    survives(strategy, change, arrays={"w": np.linspace(9000, 9100, 6, dtype=np.float16).reshape(3, 2)})


@any_strategy
def test_weights_are_refused_that_the_next_broadcast_could_not_hold(make):
    def change(content):
        packed(content, {**weights(), "w": np.full((30, 20), 1e8, np.float32)}, exact=("mask",))
        del content[RECORD]["blueprint"]

    survives(make(values="raw", downlink_values="fp16"), change)


@any_strategy
def test_whole_numbers_stay_in_their_range(make):
    def change(content):
        arrays = {**weights(), "n": np.full(3, np.iinfo(np.int64).max)}
        content["arrays"] = pack(Codec("raw").encode(arrays, exact=("mask",)))
        content["metrics"]["num-examples"] = 10**15

    strategy = make(values="raw")
    found = strategy.start(grid_of(change), to_record({**weights(), "n": np.arange(3)}), num_rounds=1).arrays
    assert (to_numpy(found)["n"] >= 0).all()


# -- blueprints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "blueprint",
    [
        rows(["w", [0, 2**70], "<f4", True]),
        rows(["w", [0, 2**62, 2**62], "<f4", True]),
        rows(["w", [2**62, 2**62], "<f4", "exact"]),
        rows(["w", [-1], "<f4", True]),
        rows(["w", [1.5], "<f4", True]),
        rows(["w", [True], "<f4", True]),
        rows(["w", None, "<f4", True]),
        rows(["w", [3], ["<f4"], True]),
        rows(["w", [3], "<f4", {"a": 1}], ["w", [4], "<f4", "exact"]),
        rows([["w"], [3], "<f4", True]),
        rows(["\ud800", [3], "<f4", True]),
        rows(),
        rows(1, 2),
        b"",
        7,
        [1, 2],
    ],
    ids=range(16),
)
def test_a_blueprint_of_any_kind_costs_that_reply_alone(blueprint):
    def change(content):
        content[RECORD]["blueprint"] = blueprint

    survives(compressed(), change)


@any_strategy
def test_a_blueprint_and_a_payload_of_arrays_without_elements(make):
    def change(content):
        empty = {"w": np.zeros((0, 5), np.float32), "b": np.zeros(0, np.float32), "mask": np.zeros(0, np.float32)}
        packed(content, empty)

    survives(make(), change)


# -- records ----------------------------------------------------------------------------------------------------------


def says(**values):
    def change(content):
        for key, value in values.items():
            content[RECORD][key] = value

    return change


def beside(name, record):
    def change(content):
        content[name] = record

    return change


def renamed(content):
    content["elsewhere"] = content.pop("arrays")


def under_our_name(content):
    del content[RECORD]
    content[RECORD] = content.pop("arrays")


def stripped(content):
    del content["arrays"]


def metrics_elsewhere(content):
    content["numbers"] = content.pop("metrics")


@pytest.mark.parametrize(
    "change",
    [
        says(records="arrays"),
        says(records=3),
        says(records=[1, 2]),
        says(records=["arrays", "arrays"]),
        says(records=["metrics"]),
        says(records=["arrays", "metrics"]),
        says(records=[RECORD]),
        says(records=["config", "a", "b"]),
        says(records=[f"r{i}" for i in range(100_000)]),
        says(records=["elsewhere"]),
        beside("second", pack(b"123")),
        beside("second", ArrayRecord()),
        beside("second", to_record({"x": np.ones(3, np.float32)})),
        beside("trees", ArrayRecord({"t": Array(dtype="bytes", shape=(10**7,), stype="my.trees", data=bytes(10**7))})),
        renamed,
        under_our_name,
        stripped,
    ],
    ids=[
        *("text", "number", "numbers", "twice", "metrics", "and-metrics", "ours", "others", "many", "elsewhere"),
        *("second-packed", "second-empty", "second-plain", "foreign", "renamed", "under-our-name", "stripped"),
    ],
)
@pytest.mark.parametrize(("make", "nodes"), [(MAKERS["FedAvg"], 2), (MAKERS["Spy"], 3)], ids=["FedAvg", "Spy"])
def test_records_of_any_kind_cost_that_reply_alone(make, change, nodes):
    survives(make(), change, nodes=nodes)


@any_strategy
@pytest.mark.parametrize(
    "change",
    [metrics_elsewhere, beside("more", MetricRecord({"loss": 3.0})), beside("more", MetricRecord()), says(status="x")],
    ids=["elsewhere", "second", "empty", "status"],
)
def test_metric_records_of_any_name_cost_nothing(make, change):
    strategy = make()
    strategy.start(grid_of(change), to_record(weights()), num_rounds=2)
    assert strategy.wire.counts["rejected_payloads"] + strategy.wire.counts["failures"] == 0


@any_strategy
def test_a_reply_without_our_record_is_read_against_its_broadcast(make):
    strategy = make()
    strategy.start(grid_of(lambda content: content.pop(RECORD)), to_record(weights()), num_rounds=2)
    assert strategy.wire.counts["rejected_payloads"] + strategy.wire.counts["failures"] == 0


@pytest.mark.parametrize("held", [1, 2.5, [1], "x" * 65, "../..", b"\0", "0" * 32, ["a"]], ids=repr)
def test_what_a_node_says_it_holds_is_an_id_or_nothing(held):
    strategy = compressed()
    result = strategy.start(grid_of(says(held=held)), to_record(weights()), num_rounds=2)
    assert strategy.wire.counts["rejected_payloads"] + strategy.wire.counts["failures"] == 0
    assert np.isfinite(to_numpy(result.arrays)["w"]).all()


@any_strategy
def test_a_reply_with_many_metrics_keeps_its_weight(make):
    def change(content):
        content["metrics"] = MetricRecord({**{f"m{i}": 1.0 for i in range(100)}, "num-examples": 1})

    strategy = make()
    strategy.start(grid_of(change), to_record(weights()), num_rounds=1)
    assert strategy.wire.counts["rejected_payloads"] == 0


@any_compressed
def test_a_refused_reply_leaves_no_dense_bytes_in_the_ledger(make):
    def change(content):
        content["second"] = to_record({"x": np.ones(1000, np.float32)})

    strategy, plain = make(), make()
    survives(strategy, change)
    plain.start(grid_of(lambda content: None, nodes=2), to_record(weights()), num_rounds=1)
    dense, wanted = (s.ledger.of_round("uplink", 1).dense_bytes for s in (strategy, plain))
    assert dense == wanted


def test_an_evaluation_reply_may_hold_anything_beside_its_metrics():
    def change(content):
        content["arrays"] = pack(b"123")
        content["plain"] = to_record({"x": np.full(3, np.nan, np.float32)})
        content["odd"] = ConfigRecord({"x": [1, 2]})

    strategy = Compressed(FedAvg(min_train_nodes=2), **LOSSLESS)
    grid = grid_of(lambda content: change(content) if "arrays" not in content else None)
    result = strategy.start(grid, to_record(weights()), num_rounds=2)
    assert len(result.evaluate_metrics_clientapp) == 2
