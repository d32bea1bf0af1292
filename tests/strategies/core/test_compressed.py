"""Any Flower strategy over the packed wire."""

from operator import attrgetter
from typing import Any, cast

import numpy as np
import pytest
from federation_kit import TRAINING, digits, initial_arrays
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    Krum,
)

from flsparse.clients import CompressMod, device_app
from flsparse.clients.parts.clip import Clip
from flsparse.runs.checkpoint import load_checkpoint, save_checkpoint
from flsparse.runtime import InProcessGrid
from flsparse.strategies import Compressed, RoundFailed, TopK
from flsparse.strategies import FedAvg as OurFedAvg
from flsparse.strategies.parts.norm_bound import NormBound
from flsparse.wire.messages import to_numpy, to_record

EVERYBODY: dict[str, Any] = {
    "fraction_train": 1.0,
    "fraction_evaluate": 0.0,
    "min_train_nodes": 4,
    "min_available_nodes": 4,
}
CONFIG = ConfigRecord({**TRAINING, "num-rounds": 2})


def start(strategy, task):
    grid = InProcessGrid(device_app(lambda _: task), 4)
    return strategy.start(grid, initial_arrays(Compressed(FedAvg()), task), num_rounds=2, train_config=CONFIG)


def answering(answer, examples=(100, 150, 210, 90)):
    """Return a grid of four nodes with only our mod, which send back a function of what they received."""
    app = ClientApp(mods=[CompressMod()])

    @app.train()
    def train(message, context):
        metrics = MetricRecord({"num-examples": examples[int(context.node_config["partition-id"])]})
        arrays = to_record(answer(to_numpy(message.content["arrays"])))
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return InProcessGrid(app, 4)


def gaussian():
    return {"w": np.random.default_rng(0).standard_normal((200, 200)).astype(np.float32)}


@pytest.mark.parametrize(
    "strategy",
    [
        lambda: Compressed(FedAdam(**EVERYBODY)),
        lambda: Compressed(FedAvgM(**EVERYBODY, server_momentum=0.9)),
        lambda: Compressed(FedAvg(**EVERYBODY), downlink_values="int4"),
        lambda: OurFedAvg(),
        lambda: OurFedAvg(server_optimizer="momentum"),
    ],
    ids=["FedAdam", "FedAvgM", "FedAvg", "ours", "our momentum"],
)
def test_rounding_the_broadcast_is_no_training(strategy):
    result = strategy().start(answering(lambda arrays: arrays), to_record(gaussian()), num_rounds=4)
    np.testing.assert_allclose(to_numpy(result.arrays)["w"], gaussian()["w"], atol=1e-4)


@pytest.mark.parametrize(
    "strategy",
    [lambda: Compressed(FedAvg(**EVERYBODY)), OurFedAvg, lambda: TopK(sparsity=0.5)],
    ids=["Compressed", "ours", "TopK"],
)
def test_a_variance_that_shrinks_stays_a_variance(strategy):
    """A dying channel's running variance loses most of itself in every local training."""
    spread = {"0.weight": gaussian()["w"], "1.running_mean": np.ones(64, np.float32)}
    spread["1.running_var"] = np.linspace(0.1, 3.0, 64, dtype=np.float32)
    fade = np.where(np.arange(64) % 2, 1.0, 0.01).astype(np.float32)
    grid = answering(lambda arrays: {n: a * fade if n == "1.running_var" else a for n, a in arrays.items()})
    found = to_numpy(strategy().start(grid, to_record(spread), num_rounds=5).arrays)["1.running_var"]
    np.testing.assert_allclose(found[1::2], spread["1.running_var"][1::2], rtol=0.1)
    assert 0 < found[::2].min() <= found[::2].max() < 1e-8


def test_what_an_app_prunes_stays_pruned():
    kept = gaussian()["w"] > 0
    grid = answering(lambda arrays: {name: a * kept for name, a in arrays.items()})
    result = Compressed(FedAvg(**EVERYBODY)).start(grid, to_record(gaussian()), num_rounds=4)
    found = to_numpy(result.arrays)["w"]
    np.testing.assert_allclose(found, gaussian()["w"] * kept, atol=1e-5)
    np.testing.assert_array_equal(found[~kept], 0)


@pytest.mark.parametrize("strategy", [OurFedAvg, lambda: Compressed(FedAvg(**EVERYBODY))], ids=["ours", "Compressed"])
def test_a_resumed_run_without_a_hello_knows_what_nodes_hold(strategy, tmp_path):
    def trained(arrays):
        return {name: a * np.float32(1.01) for name, a in arrays.items()}

    (whole := strategy()).start(answering(trained), to_record(gaussian()), num_rounds=4)
    grid, first, second = answering(trained), strategy(), strategy()
    half = first.start(grid, to_record(gaussian()), num_rounds=2)
    save_checkpoint(tmp_path / "state", first.state_dict())
    second.load_state_dict(load_checkpoint(tmp_path / "state"))
    second.start(grid, half.arrays, num_rounds=4)
    for server_round in range(1, 5):
        expected, found = (each.ledger.of_round("downlink", server_round) for each in (whole, second))
        assert found.payload_bytes == pytest.approx(expected.payload_bytes, rel=0.01)  # Flower sums in random order


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_integers_that_nobody_changed_do_not_change(dtype):
    arrays = gaussian() | {"position_ids": np.arange(200).astype(dtype)}
    grid = answering(lambda received: received)
    result = Compressed(FedAvg(**EVERYBODY)).start(grid, to_record(arrays), num_rounds=3)
    found = to_numpy(result.arrays)["position_ids"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, arrays["position_ids"])


@pytest.mark.parametrize(
    "inner",
    [
        lambda: FedAvg(**EVERYBODY),
        lambda: FedAdam(**EVERYBODY, eta=0.01),
        lambda: FedMedian(**EVERYBODY),
        lambda: Krum(**EVERYBODY, num_malicious_nodes=1),
        lambda: DifferentialPrivacyServerSideFixedClipping(
            FedAvg(**EVERYBODY), noise_multiplier=0.0, clipping_norm=10.0, num_sampled_clients=4
        ),
    ],
    ids=["FedAvg", "FedAdam", "FedMedian", "Krum", "DP"],
)
def test_flowers_own_strategies_learn_over_a_compressed_wire(inner):
    task = digits()
    strategy = Compressed(inner(), values="int8")
    result = start(strategy, task)
    first, last = (result.train_metrics_clientapp[r]["train-loss"] for r in (1, 2))
    assert last < first
    assert strategy.ledger.total("uplink").ratio > 3


def test_lossless_compression_equals_the_plain_strategy():
    task = digits()
    compressed = start(Compressed(FedAvg(**EVERYBODY), values="fp32", downlink_values="fp32"), task)
    raw = start(Compressed(FedAvg(**EVERYBODY), values="raw", downlink_values="raw"), task)
    # Flower samples with the global generator and sums in the order of its messages
    for x, y in zip(to_numpy(compressed.arrays).values(), to_numpy(raw.arrays).values(), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_an_app_without_the_mod_is_told_so():
    app = ClientApp()

    @app.train()
    def train(message, context):
        return Message(RecordDict({"arrays": to_record(to_numpy(message.content["arrays"]))}), reply_to=message)

    strategy = Compressed(FedAvg(**EVERYBODY))
    with pytest.raises(
        RoundFailed, match=r"lacks the mod that unpacks the model: ClientApp\(mods=\[CompressMod\(\)\]\)$"
    ):
        strategy.start(InProcessGrid(app, 4), initial_arrays(strategy, digits()), num_rounds=1)


def test_evaluation_messages_are_packed_and_counted():
    task = digits()
    inner = FedAvg(**{**EVERYBODY, "fraction_evaluate": 1.0, "min_evaluate_nodes": 4})
    strategy = Compressed(inner, values="int8")
    result = start(strategy, task)
    assert 0 <= result.evaluate_metrics_clientapp[2]["train-accuracy"] <= 1
    assert strategy.ledger.of_round("downlink", 1).messages == 8
    assert {node.held for node in strategy.nodes.values()} == {
        sent.reference.id for sent in strategy.wire.downlink._coded.values()
    }


@pytest.mark.parametrize(
    ("inner", "names"),
    [
        (lambda: FedAvgM(**EVERYBODY, server_momentum=0.9), ["momentum_vector"]),
        (
            lambda: DifferentialPrivacyServerSideAdaptiveClipping(
                FedAdam(**EVERYBODY), noise_multiplier=0.1, num_sampled_clients=4, initial_clipping_norm=5.0
            ),
            ["clipping_norm", "strategy.m_t"],
        ),
    ],
    ids=["FedAvgM", "DP around FedAdam"],
)
def test_a_resumed_run_goes_on_with_the_inner_strategies_moments(inner, names, tmp_path):
    strategy, again = Compressed(inner(), values="int8"), Compressed(inner(), values="int8")
    start(strategy, digits())
    save_checkpoint(tmp_path / "state", strategy.state_dict())
    again.load_state_dict(load_checkpoint(tmp_path / "state"))
    for name in names:
        saved, loaded = (attrgetter(name)(each.strategy) for each in (strategy, again))
        assert saved
        np.testing.assert_equal(loaded, saved)


def test_a_loaded_state_leaves_the_callers_arguments_alone():
    saved, again = Compressed(FedAdam(eta=0.1, **EVERYBODY)), Compressed(FedAdam(eta=0.01, fraction_train=0.5))
    again.load_state_dict(saved.state_dict())
    inner = cast(FedAdam, again.strategy)
    assert (inner.eta, inner.fraction_train) == (0.01, 0.5)


def test_a_part_with_a_side_on_the_server_is_refused() -> None:
    Compressed(FedAvg(), parts=[Clip(max_norm=1.0)])
    with pytest.raises(ValueError, match="parts: 'norm_bound' acts on the server's mean"):
        Compressed(FedAvg(), parts=[NormBound()])
