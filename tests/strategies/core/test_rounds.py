"""The round loop with real nodes in process: what it computes, what it counts, and what it survives."""

from typing import Any

import federation_kit
import numpy as np
import pytest
from federation_kit import TamperedGrid, copy, digits, failed, initial_arrays, payload_of, run
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from flsparse.clients import device_app
from flsparse.runtime import InProcessGrid
from flsparse.sparsity import sparsity_of
from flsparse.strategies import DPPF, Compressed, FedAvg, RoundFailed, RoundReport, Scaffold, SparsyFed, TopK
from flsparse.wire.messages import arrayrecord_key, pack, to_numpy

RAW: dict[str, Any] = {"values": "raw", "downlink_values": "raw"}


def tampered(tamper, num_nodes=4):
    task = digits(num_nodes)
    return task, federation_kit.tampered(task, tamper)


def only_training(tamper):
    """Leave the hello alone."""
    return lambda reply: tamper(reply) if reply.metadata.message_type == "train" else [reply]


def damage_payload(reply, change):
    payload = bytearray(payload_of(reply))
    change(payload)
    reply.content[arrayrecord_key(reply.content)] = pack(bytes(payload))
    return [reply]


def test_dense_fedavg_is_the_weighted_mean_of_local_training():
    task = digits(3)
    sent = []

    def spy(reply):
        sent.append((to_numpy_raw(reply), next(iter(reply.content.metric_records.values()))["num-examples"]))
        return [reply]

    def to_numpy_raw(reply):
        from flsparse.codec import decode, specs_of

        return decode(payload_of(reply), like=specs_of(to_numpy(initial_arrays(FedAvg(**RAW), task))))

    grid = TamperedGrid(InProcessGrid(device_app(lambda _: task), 3), only_training(spy))
    (report,) = run(FedAvg(**RAW, hello=True), task, rounds=1, grid=grid)
    total = sum(n for _, n in sent)
    for name, array in to_numpy(report.arrays).items():
        mean = sum(arrays[name].astype(np.float64) * (n / total) for arrays, n in sent)
        np.testing.assert_allclose(array, mean, rtol=1e-5, atol=1e-7)


def test_dense_bytes_are_four_a_parameter():
    task = digits()
    (report,) = run(FedAvg(**RAW), task, rounds=1)
    dense = 4 * sum(p.numel() for p in task.model().parameters())
    assert dense <= report.metrics["uplink_bytes"] / 4 < dense * 1.02
    assert dense <= report.metrics["downlink_bytes"] / 4 < dense * 1.02
    assert report.metrics["uplink_wire_bytes"] > report.metrics["uplink_bytes"]


@pytest.mark.parametrize("strategy", [TopK, SparsyFed])
def test_pruned_strategies_broadcast_the_target_sparsity(strategy):
    loop = strategy(sparsity=0.9, ramp=False, hello=True)
    *_, last = run(loop, digits(), rounds=2)
    assert sparsity_of(to_numpy(last.arrays), loop.wire.prunable) == pytest.approx(0.9, abs=1e-3)
    assert last.metrics["uplink_sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert 0 < last.metrics["mask_iou"] <= 1
    assert last.metrics["uplink_ratio"] > 10


def test_without_repruning_the_broadcast_is_the_union_of_supports():
    *_, last = run(SparsyFed(sparsity=0.9, ramp=False, reprune=False), digits(), rounds=2)
    assert last.metrics["broadcast_sparsity"] == last.metrics["union_sparsity"] <= 0.9


def test_sparsyfed_regrows_nothing_and_topk_does():
    *_, sparsyfed = run(SparsyFed(sparsity=0.9, ramp=False), digits(), rounds=2)
    *_, topk = run(TopK(sparsity=0.9, ramp=False), digits(), rounds=2)
    assert sparsyfed.metrics["regrowth"] == 0
    assert topk.metrics["regrowth"] > 0.1


def test_one_seed_gives_one_result():
    first, second = (run(SparsyFed(sparsity=0.9, hello=True), digits(seed=3), rounds=3) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.metrics["uplink_bytes"] == b.metrics["uplink_bytes"]
        assert a.metrics["downlink_bytes"] == b.metrics["downlink_bytes"]
        for x, y in zip(to_numpy(a.arrays).values(), to_numpy(b.arrays).values(), strict=True):
            np.testing.assert_array_equal(x, y)


def test_later_broadcasts_are_deltas():
    reports = run(SparsyFed(sparsity=0.95, ramp=False), digits(), rounds=4)
    down = [r.metrics["downlink_bytes"] for r in reports]
    assert down[3] < down[0] / 10


def test_the_initial_model_is_not_sent_to_nodes_that_build_it_from_the_seed():
    reports = run(SparsyFed(sparsity=0.9, ramp=False, hello=True), digits(), rounds=2)
    first, later = (report.metrics["downlink_bytes"] for report in reports)
    assert first < 4 * 100
    assert first < later / 10
    assert "resent_models" not in reports[-1].metrics


def test_a_node_that_builds_another_initial_model_is_sent_the_whole_one_once():
    task, other = digits(), digits(seed=1)
    app = device_app(lambda context: other if context.node_config["partition-id"] == 0 else task)
    loop = SparsyFed(sparsity=0.9, ramp=False, hello=True)
    reports = run(loop, task, rounds=3, grid=InProcessGrid(app, 4))
    assert [report.metrics["replies"] for report in reports] == [4, 4, 4]
    assert reports[-1].metrics["resent_models"] == 1
    assert [loop.ledger.of_round("downlink", r).messages for r in (2, 3)] == [4, 4]


@pytest.mark.parametrize("method", [Scaffold, DPPF, FedAvg], ids=lambda method: method.name)
def test_every_methods_seed_model_is_the_nodes_own(method):
    reports = run(method(hello=True), digits(), rounds=1)
    assert reports[-1].metrics["downlink_bytes"] < 4 * 400
    assert "resent_models" not in reports[-1].metrics


def test_a_node_that_lost_its_reference_gets_the_full_model_in_the_same_round(monkeypatch, tmp_path):
    monkeypatch.setenv("FLSPARSE_STATE_DIR", str(tmp_path))
    task, loop = digits(), SparsyFed(sparsity=0.9, ramp=False)

    def forget(report):
        if report.server_round == 1:
            from flsparse.clients.core import state

            state._memory.clear()
            for file in tmp_path.rglob("*.safetensors"):
                file.unlink()

    loop.callbacks.append(forget)
    reports = run(loop, task, rounds=3)
    assert [r.metrics["replies"] for r in reports] == [4, 4, 4]
    assert reports[-1].metrics["resent_models"] == 4
    lost, usual = (loop.ledger.of_round("downlink", r) for r in (2, 3))
    assert (lost.messages, usual.messages) == (8, 4)
    assert lost.dense_bytes == usual.dense_bytes  # a delta that nobody could decode is no model


def test_order_of_arrival_changes_nothing():
    held: list[Message] = []

    def reverse(reply):
        held.insert(0, reply)
        if len(held) < 4:
            return []
        out = held[:]
        held.clear()
        return out

    task, grid = tampered(only_training(reverse))
    *_, late = run(SparsyFed(sparsity=0.9, hello=True), task, rounds=2, grid=grid)
    *_, usual = run(SparsyFed(sparsity=0.9, hello=True), task, rounds=2)
    for x, y in zip(to_numpy(late.arrays).values(), to_numpy(usual.arrays).values(), strict=True):
        np.testing.assert_array_equal(x, y)


def flip(payload):
    payload[len(payload) // 2] ^= 0x40


def truncate(payload):
    del payload[len(payload) // 2 :]


@pytest.mark.parametrize("change", [flip, truncate])
def test_a_damaged_payload_is_dropped_and_counted(change):
    first = []

    def tamper(reply):
        first.append(reply)
        return damage_payload(reply, change) if len(first) == 1 else [reply]

    task, grid = tampered(only_training(tamper))
    reports = run(SparsyFed(sparsity=0.9), task, rounds=2, grid=grid)
    assert [r.metrics["replies"] for r in reports] == [3, 4]
    assert reports[-1].metrics["rejected_payloads"] == 1


def test_a_doubled_reply_counts_once():
    task, grid = tampered(only_training(lambda reply: [reply, copy(reply)]))
    (report,) = run(SparsyFed(sparsity=0.9), task, rounds=1, grid=grid)
    assert report.metrics["replies"] == 4
    assert report.metrics["rejected_payloads"] == 4


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_that_is_no_positive_number_is_refused(weight):
    def tamper(reply):
        reply.content["metrics"] = MetricRecord({"num-examples": weight})
        return [reply]

    task, grid = tampered(only_training(tamper))
    with pytest.raises(RoundFailed, match="num-examples"):
        run(SparsyFed(sparsity=0.9), task, rounds=1, grid=grid)


@pytest.mark.parametrize(
    "strategy", [lambda: FedAvg(values="raw"), lambda: Compressed(FlowerFedAvg(fraction_evaluate=0.0), values="raw")]
)
def test_a_refused_weight_is_no_model(strategy):
    first = []

    def tamper(reply):
        first.append(reply)
        if len(first) == 1:
            reply.content["metrics"]["num-examples"] = -1
        return [reply]

    task, grid = tampered(only_training(tamper))
    (report,) = run(strategy(), task, rounds=1, grid=grid)
    assert report.metrics["replies"] == 3
    assert report.metrics["rejected_payloads"] == 1
    assert report.metrics["uplink_ratio"] == pytest.approx(3 / 4, rel=0.01)


def test_a_round_without_valid_replies_fails_clearly():
    task, grid = tampered(only_training(lambda reply: [failed(reply)]))
    with pytest.raises(RoundFailed, match="battery"):
        run(SparsyFed(sparsity=0.9, round_timeout_s=1), task, rounds=1, grid=grid)


def test_a_node_that_never_replies_is_left_behind_at_the_deadline():
    lost: list[Message] = []

    def lose_one(reply):
        if not lost:
            lost.append(reply)
            return []
        return [reply]

    task, grid = tampered(only_training(lose_one))
    (report,) = run(SparsyFed(sparsity=0.9, round_timeout_s=6), task, rounds=1, grid=grid)
    assert report.metrics["replies"] == 3
    assert report.metrics["failures"] == 1


def test_records_may_have_other_names():
    named: dict[str, Any] = {"arrayrecord_key": "model", "configrecord_key": "settings"}
    plain, (renamed,) = (run(FedAvg(**RAW, **names), digits(), rounds=1) for names in ({}, named))
    for name, array in to_numpy(renamed.arrays).items():
        np.testing.assert_array_equal(array, to_numpy(plain[0].arrays)[name])


def test_quorum():
    task, grid = tampered(only_training(lambda reply: damage_payload(reply, flip)))
    with pytest.raises(RoundFailed, match="min_replies=4"):
        run(SparsyFed(sparsity=0.9, min_replies=4), task, rounds=1, grid=grid)


def _without_reading(message):
    return ArrayRecord({"w": Array(np.zeros(3, np.float32))})


def _as_the_quickstart_does(message):
    return ArrayRecord(message.content["arrays"].to_torch_state_dict())


@pytest.mark.parametrize("train_on", [_without_reading, _as_the_quickstart_does])
def test_an_app_without_our_mod_is_told_which_one_it_lacks(train_on):
    app = ClientApp()

    @app.train()
    def train(message, context):
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": train_on(message), "metrics": metrics}), reply_to=message)

    with pytest.raises(RoundFailed, match="CompressMod"):
        run(FedAvg(round_timeout_s=5), digits(), rounds=1, grid=InProcessGrid(app, 2))


def test_a_strategy_that_has_run_its_rounds_says_so_and_goes_on_where_more_are_asked_for():
    task, strategy = digits(), FedAvg(**RAW)
    grid = InProcessGrid(device_app(lambda _: task), 4)
    run(strategy, task, rounds=1, grid=grid)
    with pytest.raises(ValueError, match="has run 1 rounds already: make a new one"):
        run(strategy, task, rounds=1, grid=grid)
    assert [report.server_round for report in run(strategy, task, rounds=2, grid=grid)][-1] == 2


def test_resume_equals_the_uninterrupted_run():
    task = digits()
    grid = InProcessGrid(device_app(lambda _: task), 4)
    *_, whole = run(
        SparsyFed(sparsity=0.9, ramp=False, hello=True, server_optimizer="adam", server_lr=0.1), task, rounds=4
    )

    first = SparsyFed(sparsity=0.9, ramp=False, hello=True, server_optimizer="adam", server_lr=0.1)
    *_, middle = run(first, task, rounds=2, grid=grid)
    second = SparsyFed(sparsity=0.9, ramp=False, hello=True, server_optimizer="adam", server_lr=0.1)
    first.wire.counts["failures"] = 2
    for _ in range(2):  # it replaces what is there, counts too
        second.load_state_dict(first.state_dict())
    assert second.state_dict()["counts"] == first.state_dict()["counts"]
    reports: list[RoundReport] = []
    second.callbacks.append(reports.append)
    from federation_kit import TRAINING

    second.start(grid, middle.arrays, num_rounds=4, train_config=TRAINING)
    assert [r.server_round for r in reports] == [3, 4]
    for x, y in zip(to_numpy(whole.arrays).values(), to_numpy(reports[-1].arrays).values(), strict=True):
        np.testing.assert_array_equal(x, y)


def test_tiers_give_weak_devices_a_sparser_model():
    loop = SparsyFed(sparsity=0.5, ramp=False, tiers={"2-3": 0.95}, hello=True)
    asked: list[bytes] = []

    def note(reply):
        asked.append(payload_of(reply))
        return [reply]

    task, grid = tampered(only_training(note))
    run(loop, task, rounds=2, grid=grid)
    assert len(asked[6]) < len(asked[4]) / 2
