"""Apps and strategies of anybody over the packed wire: their records, their arrays, their metrics, their own ways."""

from typing import Any

import numpy as np
import pytest
from federation_kit import unfolded
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.server.strategy import FedAvg as OldFedAvg
from flwr.serverapp.strategy import FedAvg, Result

from flsparse.clients import CompressMod
from flsparse.codec import Codec, Reference, decode, specs_of
from flsparse.runtime import InProcessGrid
from flsparse.strategies import Compressed, RoundFailed
from flsparse.strategies import FedAvg as OurFedAvg
from flsparse.strategies.core.downlink import Downlink
from flsparse.wire.grids import WrappedGrid
from flsparse.wire.messages import Blueprint, to_numpy, to_record

NODES = 3
LOSSLESS: dict[str, Any] = {"values": "fp32", "downlink_values": "fp32"}


def weights(**more):
    generator = np.random.default_rng(0)
    return {"w": generator.normal(size=(30, 20)).astype(np.float32), "b": np.zeros(20, np.float32), **more}


def moved(arrays, node):
    return {name: a + np.float32(0.1 * (1 + node)) if name in ("w", "b") else a for name, a in arrays.items()}


def app(train, evaluate=lambda content, node: {"loss": 1.0}, mods=None):
    """Return an app of functions of a message's content and a node's partition, with our mod in front."""
    made = ClientApp(mods=[CompressMod()] if mods is None else mods)

    @made.train()
    def _train(message, context):
        return Message(train(message.content, int(context.node_config["partition-id"]), context), reply_to=message)

    @made.evaluate()
    def _evaluate(message, context):
        node = int(context.node_config["partition-id"])
        metrics = MetricRecord({"num-examples": 1} | evaluate(message.content, node))
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return made


def answer(arrays, metrics=None, **more):
    said = MetricRecord({"num-examples": 1, **(metrics or {})})
    return RecordDict({"arrays": to_record(arrays), "metrics": said, **more})


def returning(change, metrics=lambda node: {}):
    """Return an app that sends back a function of the arrays received and the node's partition."""
    return app(lambda content, node, _: answer(change(to_numpy(content["arrays"]), node), metrics(node)))


def run(made, inner=None, arrays=None, rounds=2):
    strategy = Compressed(inner or FedAvg(), **LOSSLESS)
    return strategy.start(InProcessGrid(made, NODES), to_record(arrays or weights()), num_rounds=rounds)


# -- records ----------------------------------------------------------------------------------------------------------


def test_the_app_and_its_mods_see_the_strategys_message_and_their_own_state_alone():
    seen = []

    def mod(message, context, call_next):
        seen.append((sorted(message.content), sorted(context.state)))
        return call_next(message, context)

    def train(content, node, context):
        context.state.clear()
        context.state["mine"] = ConfigRecord({"n": 1})
        return answer(moved(to_numpy(content["arrays"]), node))

    strategy = Compressed(FedAvg(fraction_evaluate=0.0), **LOSSLESS)
    grid = InProcessGrid(app(train, mods=[CompressMod(), mod]), NODES)
    strategy.start(grid, to_record(weights()), num_rounds=3)
    assert [names for names, _ in seen] == [["arrays", "config"]] * 3 * NODES
    assert [state for _, state in seen] == [[]] * NODES + [["mine"]] * 2 * NODES
    second, third = (strategy.ledger.of_round("downlink", n).wire_bytes for n in (2, 3))
    assert strategy.wire.counts["resent_models"] == 0
    assert second < strategy.ledger.of_round("downlink", 1).wire_bytes  # a delta: the node kept its reference
    assert third <= second * 1.1


def test_our_state_outlives_an_app_that_replaces_its_own_and_fails():
    calls = []

    def train(content, node, context):
        calls.append(node)
        context.state = RecordDict()
        if len(calls) == 2:
            raise RuntimeError("a bad day")
        return answer(moved(to_numpy(content["arrays"]), node))

    strategy = Compressed(FedAvg(fraction_evaluate=0.0), **LOSSLESS)
    strategy.start(InProcessGrid(app(train), NODES), to_record(weights()), num_rounds=3)
    assert strategy.wire.counts["failures"] == 1
    assert strategy.wire.counts["resent_models"] == 0


def test_several_records_travel_both_ways_and_what_is_no_tensor_as_it_is():
    opaque = ArrayRecord({"t": Array(dtype="bytes", shape=(3,), stype="my.trees", data=b"abc")})

    class Richer(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            for message in super().configure_train(server_round, arrays, config, grid):
                message.content["control"] = to_record({"w": np.full(3, 0.5, np.float32)})
                message.content["trees"] = opaque
                yield message

        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            for reply in replies:
                assert sorted(reply.content) == ["arrays", "metrics", "prototypes", "trees"]
                assert reply.content.pop("trees")["t"].data == b"abc!"
                found.append(reply.content.pop("prototypes")["p"].numpy())
            return super().aggregate_train(server_round, replies)

    def train(content, node, _):
        assert content["trees"]["t"].data == b"abc"
        np.testing.assert_array_equal(content["control"]["w"].numpy(), np.full(3, 0.5))
        trees = ArrayRecord({"t": Array(dtype="bytes", shape=(4,), stype="my.trees", data=b"abc!")})
        prototypes = to_record({"p": np.full((2, 2), node + 0.25, np.float32)})
        return answer(moved(to_numpy(content["arrays"]), node), prototypes=prototypes, trees=trees)

    found: list[Any] = []
    result = run(app(train), Richer(fraction_evaluate=0.0))
    assert sorted(p[0, 0] for p in found) == [0.25, 0.25, 1.25, 1.25, 2.25, 2.25]
    np.testing.assert_allclose(to_numpy(result.arrays)["w"], weights()["w"] + 0.4, atol=1e-5)


def test_records_whose_joined_names_would_meet_are_refused():
    class Doubtful(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            for message in super().configure_train(server_round, arrays, config, grid):
                message.content["control"] = to_record({"w": np.ones(3, np.float32)})
                yield message

    with pytest.raises(ValueError, match=r"'control:w' begins as the name of the record control does"):
        run(returning(moved), Doubtful(), weights(**{"control:w": np.full(3, 0.5, np.float32)}))


def test_a_mod_at_train_alone_costs_the_evaluation_and_says_why():
    made = ClientApp()

    @made.train(mods=[CompressMod()])
    def _train(message, _):
        return Message(answer(moved(to_numpy(message.content["arrays"]), 0)), reply_to=message)

    @made.evaluate()
    def _evaluate(message, _):
        to_numpy(message.content["arrays"])
        raise AssertionError

    strategy, said = Compressed(FedAvg(), **LOSSLESS), []
    strategy.callbacks.append(lambda _: said.extend(strategy.wire.problems))
    result = strategy.start(InProcessGrid(made, NODES), to_record(weights()), num_rounds=2)
    assert len(result.train_metrics_clientapp) == 2
    assert not result.evaluate_metrics_clientapp
    assert len(said) == 2 * NODES
    assert all("lacks the mod that unpacks the model: ClientApp(mods=[CompressMod()])" in line for line in said)


# -- arrays -----------------------------------------------------------------------------------------------------------


def test_a_part_of_the_model_comes_back():
    inner = FedAvg(fraction_evaluate=0.0)
    result = run(returning(lambda arrays, node: {"b": arrays["b"] + np.float32(node)}), inner, rounds=1)
    assert list(result.arrays) == ["b"]  # as over plain Flower: the strategy averages what there is
    np.testing.assert_allclose(to_numpy(result.arrays)["b"], np.ones(20), atol=1e-6)


def test_a_model_that_grows_is_carried():
    def longer(arrays, node):
        return {"w": np.concatenate([arrays["w"], np.full((1, 20), 0.5, np.float32)]), "b": arrays["b"]}

    result = run(returning(longer), FedAvg(fraction_evaluate=1.0), rounds=3)
    assert to_numpy(result.arrays)["w"].shape == (33, 20)


def test_a_reply_of_another_shape_than_the_others_is_refused_by_name_and_shapes():
    strategy = Compressed(FedAvg(fraction_evaluate=0.0), **LOSSLESS)
    reports = []
    strategy.callbacks.append(lambda report: reports.append((report.metrics["replies"], list(strategy.wire.problems))))

    def odd(arrays, node):
        return {"w": arrays["w"], "b": arrays["b"][:5] if node == 1 else arrays["b"]}

    strategy.start(InProcessGrid(returning(odd), NODES), to_record(weights()), num_rounds=2)
    assert [replies for replies, _ in reports] == [2, 2]
    assert "array 'b' is (5,), but (20,) in most replies" in reports[0][1][0]
    assert strategy.wire.counts["rejected_payloads"] == 2


def test_ours_refuse_a_part_of_the_model_by_the_array_that_is_missing():
    strategy, grid = OurFedAvg(), InProcessGrid(returning(lambda arrays, node: {"b": arrays["b"]}), NODES)
    with pytest.raises(RoundFailed, match=r"array 'w', float32 \(30, 20\), is missing .* whole state_dict"):
        strategy.start(grid, to_record(weights()), num_rounds=1)
    assert strategy.wire.counts["rejected_payloads"] == NODES


def test_a_node_that_claims_enormous_arrays_is_refused():
    class Claims(CompressMod):
        def __call__(self, message, context, call_next):
            reply = unfolded(super().__call__(message, context, call_next))
            if reply.content.array_records and context.node_config["partition-id"] == 0:
                huge = specs_of({"w": np.broadcast_to(np.float32(0), (1 << 20, 1 << 12))})
                reply.content["flsparse"] = ConfigRecord({"blueprint": Blueprint(huge, []).to_bytes()})
            return reply

    strategy = Compressed(FedAvg(fraction_evaluate=0.0))
    made = app(lambda content, node, _: answer(moved(to_numpy(content["arrays"]), node)), mods=[Claims()])
    strategy.start(InProcessGrid(made, NODES), to_record(weights()), num_rounds=1)
    assert strategy.wire.counts["rejected_payloads"] == 1
    assert "17179869184 bytes that it was not sent" in strategy.wire.problems[0]


@pytest.mark.parametrize("codec", [LOSSLESS, {}], ids=["lossless", "default"])
def test_what_is_no_weight_travels_bit_for_bit(codec):
    fixed: dict[str, Any] = {
        "mask": np.triu(np.full((4, 4), -np.inf, np.float32), 1),
        "positions": np.arange(7, dtype=np.float32),
        "flags": np.array([1, -1, 1], np.float64),
        "huge": np.array([1e12, 0.3], np.float32),
        "layer.parametrizations.weight.original": np.linspace(0.001, 0.777, 6, dtype=np.float32).reshape(2, 3),
        "scaler.mean": np.linspace(0.123, 0.789, 5, dtype=np.float32),
    }
    seen = []

    def train(content, node, _):
        arrays = to_numpy(content["arrays"])
        seen.append({name: arrays[name] for name in fixed})
        return answer(moved(arrays, node))

    strategy = Compressed(FedAvg(fraction_evaluate=0.0), exact=["scaler.*"], **codec)
    result = strategy.start(InProcessGrid(app(train), NODES), to_record(weights(**fixed)), num_rounds=3)
    for arrays in [*seen, to_numpy(result.arrays)]:
        for name, array in fixed.items():
            np.testing.assert_allclose(arrays[name], array, rtol=3e-7)  # Flower's own mean of equal numbers
    for arrays in seen[:NODES]:
        for name, array in fixed.items():
            np.testing.assert_array_equal(arrays[name], array)


@pytest.mark.parametrize("make", [lambda: Compressed(FedAvg()), OurFedAvg], ids=["Compressed", "ours"])
def test_a_weight_that_is_no_number_is_refused_before_anything_is_sent(make):
    strategy, arrays = make(), to_record({"w": np.full((3, 3), np.nan, np.float32)})
    with pytest.raises(ValueError, match="the model to start from has values in 'w' that are not finite"):
        strategy.start(InProcessGrid(returning(moved), NODES), arrays, num_rounds=1)
    assert strategy.ledger.of_round("downlink", 1).wire_bytes == 0


def test_a_node_whose_weights_diverged_says_which():
    with pytest.raises(RoundFailed, match="array 'w' holds NaN or infinity"):
        run(returning(lambda arrays, node: {**arrays, "w": arrays["w"] * np.float32(np.nan)}))


def test_complex_weights_move_as_over_plain_flower():
    wave = (np.random.default_rng(1).normal(size=(6, 4)) + 1j).astype(np.complex64)

    def turned(arrays, node):
        return {**arrays, "wave": arrays["wave"] * np.complex64(1j)}

    found = to_numpy(run(returning(turned), FedAvg(fraction_evaluate=0.0), weights(wave=wave)).arrays)["wave"]
    assert found.dtype == np.complex64
    np.testing.assert_allclose(found, -wave, atol=1e-5)


def test_a_reference_keeps_its_exact_arrays_in_a_checkpoint():
    arrays = weights(mask=np.array([0, -np.inf], np.float32))
    specs = specs_of(arrays, ["mask"])
    downlink = Downlink(Codec("int8"))
    downlink.set_model(arrays, specs)
    held = downlink.to("").reference
    again = Downlink(Codec("int8"))
    again.load_state_dict(downlink.state_dict())
    again.set_model(arrays, specs)
    broadcast = again.to(held.id)
    assert broadcast.coded_against == held.id
    decoded = decode(broadcast.payload, like=specs, reference=Reference(held.arrays, ["mask"]))
    np.testing.assert_array_equal(decoded["mask"], arrays["mask"])


def test_a_resumed_run_knows_what_was_exact():
    def observing(arrays, node):
        return {**moved(arrays, node), "low": np.minimum(arrays["low"], np.array([0.123, 0.456], np.float32))}

    arrays = weights(low=np.full(2, np.inf, np.float32))
    first, second = Compressed(FedAvg(fraction_evaluate=0.0)), Compressed(FedAvg(fraction_evaluate=0.0))
    grid = InProcessGrid(returning(observing), NODES)
    result = first.start(grid, to_record(arrays), num_rounds=1)
    second.load_state_dict(first.state_dict())
    second.start(grid, result.arrays, num_rounds=2)
    assert second.wire.specs["low"].exact
    assert second.wire.counts["resent_models"] == 0


# -- metrics ----------------------------------------------------------------------------------------------------------


def metrics_of(node):
    return {
        "loss": float("nan") if node == 0 else 2.0,
        "shared": float(node),
        f"acc-{node}": 0.5,
        "per-class": [0.5] * (2 + node),
    }


def test_a_strange_metric_costs_the_metric_and_not_the_training():
    result = run(returning(moved, metrics_of), FedAvg(fraction_evaluate=0.0), rounds=1)
    np.testing.assert_allclose(to_numpy(result.arrays)["w"], weights()["w"] + 0.2, atol=1e-5)  # of all three
    found = dict(result.train_metrics_clientapp[1])
    assert found.pop("encode-ms") > 0  # ours
    assert found == pytest.approx({"loss": 2.0, "shared": 1.0, "acc-0": 0.5, "acc-1": 0.5, "acc-2": 0.5})


def test_a_strategy_that_aggregates_by_itself_sees_every_metric():
    seen = []

    class Spy(FedAvg):
        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            seen.append([len(reply.content["metrics"]) for reply in replies])
            return super().aggregate_train(server_round, replies)

    run(returning(moved, metrics_of), Spy(fraction_evaluate=0.0), rounds=1)
    assert seen == [[6, 6, 6], [3, 3, 3]]  # and what is common, where Flower's own code below it wants that


def test_evaluation_loses_a_metric_and_no_node():
    made = app(
        lambda content, node, _: answer(moved(to_numpy(content["arrays"]), node)),
        lambda content, node: {"loss": float("inf") if node else 3.0, f"only-{node}": 1.0},
    )
    found = run(made, rounds=1).evaluate_metrics_clientapp[1]
    assert dict(found) == {"loss": 3.0, "only-0": 1.0, "only-1": 1.0, "only-2": 1.0}


@pytest.mark.parametrize("weight", [-1, float("nan"), 1e20, None])
def test_a_bad_weight_costs_that_node_its_training(weight):
    def metrics(node):
        return {"num-examples": weight} if node == 2 and weight is not None else {}

    def train(content, node, _):
        reply = answer(moved(to_numpy(content["arrays"]), node), metrics(node))
        if node == 2 and weight is None:
            reply["metrics"] = MetricRecord({"loss": 1.0})
        return reply

    result = run(app(train), FedAvg(fraction_evaluate=0.0), rounds=1)
    np.testing.assert_allclose(to_numpy(result.arrays)["w"], weights()["w"] + 0.15, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: Compressed(FedAvg(), **LOSSLESS), lambda: OurFedAvg(**LOSSLESS)])
def test_a_node_without_examples_weighs_nothing(make):
    grid = InProcessGrid(returning(moved, lambda node: {"num-examples": 0 if node == 2 else 1}), NODES)
    strategy = make()
    found = to_numpy(strategy.start(grid, to_record(weights()), num_rounds=1).arrays)["w"]
    np.testing.assert_allclose(found, weights()["w"] + 0.15, atol=1e-5)
    assert strategy.wire.counts["rejected_payloads"] == 0


@pytest.mark.parametrize("make", [lambda: Compressed(FedAvg()), OurFedAvg], ids=["Compressed", "ours"])
def test_a_round_without_any_example_says_so(make):
    grid = InProcessGrid(returning(moved, lambda node: {"num-examples": 0}), NODES)
    with pytest.raises(RoundFailed, match="num-examples=0"):
        make().start(grid, to_record(weights()), num_rounds=1)


# -- strategies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: Compressed(FedAvg(fraction_train=0.0, min_train_nodes=0)),
        lambda: OurFedAvg(fraction_train=0.0, min_train_nodes=0, fraction_evaluate=1.0),
    ],
    ids=["Compressed", "ours"],
)
def test_a_run_that_evaluates_only_keeps_the_model(make):
    result = make().start(InProcessGrid(returning(moved), NODES), to_record(weights()), num_rounds=2)
    assert [dict(found) for found in result.evaluate_metrics_clientapp.values()] == [{"loss": 1.0}] * 2
    np.testing.assert_array_equal(to_numpy(result.arrays)["w"], weights()["w"])


def test_a_strategy_that_skips_a_round_keeps_the_model():
    class Patient(FedAvg):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            return (arrays if server_round == 2 else None), metrics

    result = run(returning(moved), Patient(fraction_evaluate=0.0), rounds=2)
    np.testing.assert_allclose(to_numpy(result.arrays)["w"], weights()["w"] + 0.2, atol=1e-5)


class OwnStart(FedAvg):
    """Two rounds by ``send_and_receive``, one by hand."""

    def start(self, grid, initial_arrays, num_rounds=3, *_, **__):
        result, arrays = Result(), initial_arrays
        for number in range(1, num_rounds + 1):
            messages = list(self.configure_train(number, arrays, ConfigRecord(), grid))
            if number < num_rounds:
                replies = list(grid.send_and_receive(messages))
            else:
                waiting, replies = set(grid.push_messages(messages)), []
                while waiting:
                    came = list(grid.pull_messages(waiting))
                    waiting -= {reply.metadata.reply_to_message_id for reply in came}
                    replies += came
            self.errors = [reply.error.reason for reply in replies if reply.has_error()]
            arrays = self.aggregate_train(number, replies)[0]
        result.arrays = arrays
        return result


def test_a_start_of_ones_own_runs_over_the_packed_wire():
    strategy = Compressed(OwnStart(), **LOSSLESS)
    result = strategy.start(InProcessGrid(returning(moved), NODES), to_record(weights()), num_rounds=3)
    np.testing.assert_allclose(to_numpy(result.arrays)["w"], weights()["w"] + 0.6, atol=1e-5)
    assert strategy.ledger.of_round("uplink", 3).payload_bytes > 0
    first, third = (strategy.ledger.of_round("downlink", n).payload_bytes for n in (1, 3))
    assert third < first  # deltas


def test_a_start_of_ones_own_gets_what_failed_as_an_error_reply():
    def fails(arrays, node):
        if node == 0:
            raise RuntimeError("a bad day")
        return moved(arrays, node)

    inner = OwnStart(min_train_nodes=2)
    Compressed(inner).start(InProcessGrid(returning(fails), NODES), to_record(weights()), num_rounds=1)
    assert len(inner.errors) == 1
    assert "a bad day" in inner.errors[0]


def test_nodes_that_never_answer_are_given_up_by_a_start_of_ones_own():
    class Mute(WrappedGrid):
        def pull_messages(self, message_ids):
            return []

    class Asks(FedAvg):
        def start(self, grid, initial_arrays, num_rounds=3, *_, **__):
            for number in range(1, num_rounds + 1):
                grid.push_messages(list(self.configure_train(number, initial_arrays, ConfigRecord(), grid)))
                waiting.append(len(grid._asked))
            return Result()

    waiting: list[int] = []
    grid = Mute(InProcessGrid(returning(moved), NODES))
    Compressed(Asks(), round_timeout_s=1e-6, **LOSSLESS).start(grid, to_record(weights()), num_rounds=3)
    assert waiting == [NODES] * 3


def test_what_is_no_strategy_of_the_message_api_is_refused_by_name():
    with pytest.raises(TypeError, match=r"FedAvg is no strategy of Flower's Message API.*flwr\.serverapp\.strategy"):
        Compressed(OldFedAvg())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="packs its messages by itself"):
        Compressed(OurFedAvg())
