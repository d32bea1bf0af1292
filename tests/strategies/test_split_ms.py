"""Split learning in process: equal to joint training of the uncut model, counted line by line, robust to lost nodes."""

from copy import copy as shallow_copy
from dataclasses import replace
from typing import Any

import federation_kit
import numpy as np
import pytest
import torch
from federation_kit import TamperedGrid, digits, failed, tampered
from flwr.app import ConfigRecord
from torch import nn
from torch.nn.functional import cross_entropy

from flsparse.clients import Limits, device_app, state_arrays
from flsparse.clients.core.split_session import batch_positions
from flsparse.codec import PayloadError, decode_activations, make_activation_codec
from flsparse.metering.ledger import Ledger
from flsparse.runtime import InProcessGrid
from flsparse.schedules import batches_of_a_pass, learning_rate
from flsparse.strategies import RoundFailed, RoundReport, SplitMS
from flsparse.strategies.core.memory import restore, saved
from flsparse.strategies.core.split_top import Received, SplitMemory, Top
from flsparse.wire import bundle as split
from flsparse.wire.messages import to_numpy

TRAINING = ConfigRecord({"lr": 0.1, "batch-size": 16, "momentum": 0.9, "weight-decay": 1e-3, "lr-final": 0.0})
EXACT: dict[str, Any] = {
    "compressor": "none",
    "gradient": "fp32",
    "values": "raw",
    "downlink_values": "raw",
    "hello": True,
}


def run(strategy, task, rounds=2, grid=None, app=None, **training):
    grid = grid or InProcessGrid(app or device_app(lambda _: task), task.num_nodes, on_error="raise")
    return federation_kit.run(strategy, task, rounds=rounds, grid=grid, config=ConfigRecord({**TRAINING, **training}))


def uneven(*sizes):
    """Return the digits task with nodes of these sizes."""
    whole = digits(len(sizes))
    task = shallow_copy(whole)  # what digits returns is shared by all tests

    def train_data(node):
        data = whole.train_data(node)
        assert len(data) >= sizes[node]
        return replace(data, index=data.index[: sizes[node]])

    vars(task)["train_data"] = train_data
    return task


def joint(task, steps, batches=1, seed=0, rates=None, momentum=0.9):
    """Train the uncut model on what all nodes train on in each step together."""
    model = task.model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum, weight_decay=1e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rates[step] if rates else 0.1
        loss, count = torch.zeros(()), 0
        for node in range(task.num_nodes):
            data = task.train_data(node)
            for index in range(step * batches, (step + 1) * batches):
                chosen = data.index[torch.from_numpy(batch_positions(len(data), 16, index, seed, node))]
                logits = model(data.prepare(data.all_inputs[chosen]))
                loss = loss + cross_entropy(logits, data.all_targets[chosen].long(), reduction="sum")
                count += len(chosen)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    return state_arrays(model)


def assert_equal_models(arrays, expected, tolerance=2e-5):
    assert list(arrays) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(arrays[name], array, rtol=1e-4, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("cut", ["2", "5", "8"])
def test_one_node_without_compression_is_joint_training(cut):
    task = digits(1)
    *_, last = run(SplitMS(cut=cut, steps_per_round=3, min_train_nodes=1, min_available_nodes=1, **EXACT), task)
    assert_equal_models(to_numpy(last.arrays), joint(task, 6))


def test_bottoms_averaged_every_step_are_joint_training():
    task = digits(3)
    *_, last = run(SplitMS(cut="5", steps_per_round=1, **EXACT, min_train_nodes=3), task, rounds=4)
    assert_equal_models(to_numpy(last.arrays), joint(task, 4))


def test_batches_per_message_make_one_step_together():
    task = digits(2)
    *_, last = run(SplitMS(cut="2", steps_per_round=1, batches_per_message=3, **EXACT), task, rounds=2)
    assert_equal_models(to_numpy(last.arrays), joint(task, 2, batches=3))


@pytest.mark.parametrize("labels", ["sent", "kept"])
@pytest.mark.parametrize(("sizes", "batches"), [((80, 12), 1), ((80, 12), 4), ((80, 5, 33), 1)])
def test_uneven_nodes_weigh_alike_on_both_sides(sizes, batches, labels):
    task = uneven(*sizes)
    strategy = SplitMS(cut="2", labels=labels, steps_per_round=1, batches_per_message=batches, **EXACT)
    strategy.min_train_nodes = len(sizes)
    *_, last = run(strategy, task, rounds=4, momentum=0.0)
    assert_equal_models(to_numpy(last.arrays), joint(task, 4, batches, momentum=0.0))


@pytest.mark.parametrize(("claimed", "replies"), [(1e12, 2), (float("nan"), 1), (-3.0, 1)])
def test_no_node_weighs_more_than_the_samples_it_sent(claimed, replies):
    def claim(reply):
        numbers = reply.content.metric_records.get("metrics") if reply.has_content() else None
        node_id = reply.metadata.src_node_id
        if numbers and seen.setdefault("liar", node_id) == node_id:
            numbers["num-examples"] = claimed
        return [reply]

    task, results = uneven(48, 48), []
    for tamper in (claim, lambda reply: [reply]):
        seen = {}
        grid = tampered(task, tamper)
        results.append(run(SplitMS(cut="2", steps_per_round=2), task, rounds=1, grid=grid)[-1])
    assert [report.metrics["replies"] for report in results] == [replies, 2]
    if replies == 2:
        assert_equal_models(to_numpy(results[0].arrays), to_numpy(results[1].arrays), 0)


@pytest.mark.parametrize("schedule", [{"lr-schedule": "cosine"}, {"lr-final": 0.001}])
@pytest.mark.parametrize("labels", ["sent", "kept"])
def test_all_parts_train_at_the_rate_of_the_round(schedule, labels):
    task = digits(2)
    *_, last = run(SplitMS(cut="2", labels=labels, steps_per_round=1, **EXACT), task, rounds=3, **schedule)
    rates = [
        learning_rate(t, 3, 0.1, schedule.get("lr-final", 0.0), schedule.get("lr-schedule", "geometric"))
        for t in (1, 2, 3)
    ]
    assert_equal_models(to_numpy(last.arrays), joint(task, 3, rates=rates))


def test_gradient_clipping_is_refused():
    with pytest.raises(ValueError, match=r"client.clip_grad=5 must be 0"):
        run(SplitMS(cut="2", steps_per_round=1), digits(2), **{"clip-grad": 5.0})


def test_labels_kept_on_the_device_are_joint_training_too():
    task = digits(2)
    strategy = SplitMS(cut="2", labels="kept", steps_per_round=1, **EXACT)
    *_, last = run(strategy, task, rounds=3)
    assert strategy.asked.head == "11"
    assert_equal_models(to_numpy(last.arrays), joint(task, 3))
    assert last.metrics["uplink_labels_bytes"] == 0
    assert last.metrics["uplink_gradients_bytes"] > 0
    assert last.metrics["train_loss"] > 0


def test_a_model_with_batch_norm_and_blocks_trains_as_uncut_with_one_node(monkeypatch):
    task = digits(1)
    from flsparse.tasks.models.resnet import resnet20

    def model():
        torch.manual_seed(3)
        return resnet20((1, 8, 8), 10, width=8)

    monkeypatch.setattr(task, "model", model)
    *_, last = run(SplitMS(cut="5", steps_per_round=3, min_train_nodes=1, min_available_nodes=1, **EXACT), task, 1)
    assert_equal_models(to_numpy(last.arrays), joint(task, 3), 1e-4)


@pytest.mark.parametrize(("cut", "settings"), [("1", {}), ("4", {}), ("1", {"labels": "kept", "head": "4"})])
def test_parts_may_begin_with_a_layer_that_works_in_place(monkeypatch, cut, settings):
    task = digits(1)

    def model():
        torch.manual_seed(3)
        blocks = [(nn.Conv2d(c, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)) for c in (1, 8)]
        return nn.Sequential(*blocks[0], *blocks[1], nn.Flatten(), nn.Linear(512, 10))

    monkeypatch.setattr(task, "model", model)
    strategy = SplitMS(cut=cut, **settings, steps_per_round=3, min_train_nodes=1, min_available_nodes=1, **EXACT)
    (report,) = run(strategy, task, rounds=1)
    assert report.metrics["rejected_payloads"] == 0
    assert_equal_models(to_numpy(report.arrays), joint(task, 3), 1e-4)


def test_lines_of_the_ledger_add_up():
    task = digits(2)
    strategy = SplitMS(cut="2", steps_per_round=4, values="int8")
    first, second = run(strategy, task)
    for report in (first, second):
        for way in ("uplink", "downlink"):
            lines = strategy.ledger.lines_of_round(way, report.server_round)
            assert sum(lines.values()) == report.metrics[f"{way}_bytes"]
    up, m = strategy.ledger.lines_of_round("uplink", 1), first.metrics
    elements = 2 * 4 * 16 * 16 * 8 * 8
    assert up["labels"] == 2 * 4 * 17
    assert m["uplink_bits_per_element"] == pytest.approx(8 * (up["masks"] + up["values"]) / elements)
    assert 0.5 < m["uplink_bits_per_element"] < 2.33
    assert 0.2 < m["downlink_bits_per_element"] < 4
    assert m["uplink_ratio"] > 5
    assert 0 < second.metrics["downlink_models_bytes"] < 2 * 4 * 176
    restored = Ledger()
    restore(restored, saved(strategy.ledger))
    assert restored == strategy.ledger


@pytest.mark.parametrize("compressor", ["ms", "topk", "randtopk", "uniform", "none"])
@pytest.mark.parametrize("gradient", ["fp16", "int4"])
def test_every_compressor_trains(compressor, gradient):
    task = digits(2)
    bits = {"uniform": 3}.get(compressor, 2)
    strategy = SplitMS(cut="2", compressor=compressor, gradient=gradient, bits=bits, steps_per_round=6)
    first, *_, last = run(strategy, task, rounds=3)
    assert last.metrics["failures"] == last.metrics["rejected_payloads"] == 0
    if compressor not in ("topk", "randtopk"):
        assert last.metrics["train_loss"] < first.metrics["train_loss"]


def test_one_seed_gives_one_result_and_another_another():
    results = []
    for seed in (0, 0, 1):
        task = digits(2, seed=seed)
        reports = run(SplitMS(cut="2", compressor="randtopk", steps_per_round=2, seed=seed), task)
        results.append((reports[-1].metrics["uplink_bytes"], to_numpy(reports[-1].arrays)))
    assert results[0][0] == results[1][0]
    for name, array in results[0][1].items():
        np.testing.assert_array_equal(array, results[1][1][name])
    assert any((array != results[2][1][name]).any() for name, array in results[0][1].items())


def steps_only(tamper):
    """Tamper with the replies that carry smashed data, numbered from 1."""
    seen = [0]

    def through(reply):
        if not reply.has_content() or split.packed_bundle(reply.content) is None:
            return [reply]
        seen[0] += 1
        return tamper(reply, seen[0])

    return through


def test_a_device_that_fails_in_mid_round_does_not_stop_the_others_and_rejoins():
    task = digits(3)

    def fail_one(reply, number):
        return [failed(reply)] if number == 5 else [reply]

    strategy = SplitMS(cut="2", steps_per_round=3, min_train_nodes=3, hello=True)
    first, second = run(strategy, task, grid=tampered(task, steps_only(fail_one)))
    assert (first.metrics["replies"], second.metrics["replies"]) == (2, 3)
    assert first.metrics["failures"] == 1
    assert second.metrics["failures"] == 1


def test_a_silent_device_is_left_behind_at_the_deadline():
    task = digits(2)
    strategy = SplitMS(cut="2", steps_per_round=2, min_train_nodes=2, round_timeout_s=3, min_replies=1)

    def drop(reply, number):
        return [] if number == 3 else [reply]

    grid = tampered(task, steps_only(drop))
    (report,) = run(strategy, task, rounds=1, grid=grid)
    assert report.metrics["replies"] == 1
    assert "did not reply" in strategy.wire.problems[0]


def test_a_device_that_loses_its_state_is_dropped_for_the_round(monkeypatch, tmp_path):
    monkeypatch.setenv("FLSPARSE_STATE_DIR", str(tmp_path))
    task = digits(2)
    grid = InProcessGrid(device_app(lambda _: task), 2)
    lost = []

    def forget(reply, number):
        if number == 4:
            lost.append(grid._states.pop(1, None))
        return [reply]

    strategy = SplitMS(cut="2", steps_per_round=3, hello=True)
    first, second = run(strategy, task, grid=TamperedGrid(grid, steps_only(forget)))
    assert lost
    assert (first.metrics["replies"], second.metrics["replies"]) == (1, 2)
    assert first.metrics["failures"] == 1


def damaged(change):
    def tamper(reply, number):
        if number == 2:
            data = bytearray(split.packed_bundle(reply.content) or b"")
            key = next(iter(reply.content.array_records))
            reply.content[key] = split.pack(bytes(change(data)))
        return [reply]

    return steps_only(tamper)


def flip(data):
    data[len(data) // 2] ^= 8
    return data


def other_shape(data):
    parts = split.unbundle(bytes(data))
    flat = split.Part(parts[0].kind, (parts[0].shape[0], int(np.prod(parts[0].shape[1:]))), parts[0].data)
    return split.bundle([flat, *parts[1:]])


def wrong_labels(data):
    parts = split.unbundle(bytes(data))
    labels = split.encode_labels(np.full(parts[1].shape, 77))
    return split.bundle([parts[0], split.Part(split.LABELS, parts[1].shape, labels)])


def no_labels(data):
    return split.bundle(split.unbundle(bytes(data))[:1])


def coded(array, data):
    labels = split.encode_labels(np.zeros(array.shape[:1], np.int64))
    smashed = make_activation_codec("none").encode(array)
    return split.bundle(
        [split.Part(split.ACTIVATIONS, array.shape, smashed), split.Part(split.LABELS, array.shape[:1], labels)]
    )


def no_dimensions(data):
    return coded(np.float32(1), data)


def a_hundred_batches(data):
    return coded(np.ones((1600, *split.unbundle(bytes(data))[0].shape[1:]), np.float32), data)


def enormous_claim(data):
    parts = split.unbundle(bytes(data))
    return split.bundle([split.Part(split.ACTIVATIONS, (1 << 24, 1 << 20), parts[0].data), *parts[1:]])


def larger_images(data):
    return coded(np.ones((16, 16, 80, 80), np.float32), data)


def times(factor):
    def change(data):
        part = split.unbundle(bytes(data))[0]
        return coded(decode_activations(part.data, part.shape)[0] * np.float32(factor), data)

    return change


HOSTILE = [no_dimensions, a_hundred_batches, enormous_claim, larger_images, times(1e20), times(1e5)]


@pytest.mark.parametrize("change", HOSTILE)
def test_one_nodes_activations_cannot_end_a_run_or_count_for_more(change):
    task = digits(3)
    settings: dict[str, Any] = {"steps_per_round": 2, "min_train_nodes": 3, "hello": True}
    strategy, usual = SplitMS(cut="2", **settings), SplitMS(cut="2", **settings)
    (first, _) = run(strategy, task, grid=tampered(task, damaged(change)))
    assert first.metrics["replies"] == 2
    assert first.metrics["rejected_payloads"] == 1
    (lost, _) = run(usual, task, grid=tampered(task, steps_only(lambda r, n: [failed(r)] if n == 2 else [r])))
    assert strategy.ledger.of_round("uplink", 1).dense_bytes == usual.ledger.of_round("uplink", 1).dense_bytes
    assert first.metrics["train_loss"] == lost.metrics["train_loss"]
    assert_equal_models(to_numpy(first.arrays), to_numpy(lost.arrays), 0)


def test_refused_activations_leave_no_trace_in_batch_norm(monkeypatch):
    task = digits(2)
    from flsparse.tasks.models.resnet import resnet20

    monkeypatch.setattr(task, "model", lambda: resnet20((1, 8, 8), 10, width=8))

    def large_and_labels_that_are_no_classes(data):
        return wrong_labels(times(1e4)(data))

    strategy = SplitMS(cut="1", steps_per_round=1, hello=True)
    (report,) = run(strategy, task, rounds=1, grid=tampered(task, damaged(large_and_labels_that_are_no_classes)))
    assert report.metrics["rejected_payloads"] == 1
    assert all(np.abs(array).max() < 1e3 for array in to_numpy(report.arrays).values())


def test_a_node_that_is_refused_takes_no_other_with_it_to_the_heads():
    """Batch norm's statistics are put back while the graphs of earlier nodes wait for their heads."""
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    top = Top(net, SplitMemory())
    top.begin_round(state_arrays(net), lr=0.1, momentum=0.0, weight_decay=0.0)
    top.begin_step()

    def received(samples):
        array = np.random.default_rng(samples).standard_normal((samples, 4)).astype(np.float32)
        smashed = make_activation_codec("none").encode(array)
        return [Received(split.Part(split.ACTIVATIONS, array.shape, smashed))]

    honest = received(5)
    top.to_the_head(honest)
    with pytest.raises(ValueError, match="more than 1 value"):
        top.to_the_head(received(1))
    (gradient,) = top.from_the_head(honest, [torch.ones(5, 2)])
    assert gradient.shape == (5, 4)


def test_frozen_layers_stay_as_they_are(monkeypatch):
    task = shallow_copy(digits(2))
    plain = task.model

    def partly_frozen():
        net = plain()
        for name in ("0.weight", "3.weight"):
            net.get_parameter(name).requires_grad_(False)
        return net

    monkeypatch.setattr(task, "model", partly_frozen)
    before = state_arrays(partly_frozen())
    (report,) = run(SplitMS(cut="2", steps_per_round=2, hello=True), task, rounds=1)
    after = to_numpy(report.arrays)
    assert report.metrics["rejected_payloads"] == 0
    for name in ("0.weight", "3.weight"):
        np.testing.assert_array_equal(after[name], before[name])
    assert not np.array_equal(after["6.weight"], before["6.weight"])


@pytest.mark.parametrize("shape", [(), (1600, 10), (16, 1 << 20)])
def test_gradients_of_a_head_must_be_of_what_it_was_sent(shape):
    task = digits(2)
    seen: list[tuple[int, ...]] = []

    def change(reply):
        if not reply.has_content() or (data := split.packed_bundle(reply.content)) is None:
            return [reply]
        parts = split.unbundle(data)
        if parts[0].kind == split.GRADIENT and not seen:
            seen.append(shape)
            reply.content[split.DATA] = split.pack(split.bundle([split.Part(split.GRADIENT, shape, parts[0].data)]))
        return [reply]

    strategy = SplitMS(cut="2", labels="kept", steps_per_round=1, hello=True)
    (report,) = run(strategy, task, rounds=1, grid=tampered(task, change))
    assert seen
    assert report.metrics["replies"] == report.metrics["rejected_payloads"] == 1


@pytest.mark.parametrize("change", [flip, other_shape, wrong_labels, no_labels, lambda data: data[:20]])
def test_damaged_and_hostile_bundles_drop_their_node_alone(change):
    task = digits(2)
    strategy = SplitMS(cut="2", steps_per_round=2, hello=True)
    (report,) = run(strategy, task, rounds=1, grid=tampered(task, damaged(change)))
    assert report.metrics["replies"] == 1
    assert report.metrics["rejected_payloads"] == 1


def test_passes_over_the_data_are_held_to_the_owners_limit():
    task = digits(2)
    app = device_app(lambda _: task, Limits(max_local_epochs=1))
    one_pass = SplitMS(cut="2", hello=True)
    (report,) = run(one_pass, task, rounds=1, grid=InProcessGrid(app, 2))
    assert len(task.train_data(0)) % 16 > 1  # the last batch of a pass is smaller
    assert report.metrics["failures"] == 0
    for steps, batches in ((13, 1), (1, 13)):
        strategy = SplitMS(cut="2", steps_per_round=steps, batches_per_message=batches)
        with pytest.raises(RoundFailed, match="max_local_epochs=1"):
            run(strategy, task, rounds=1, grid=InProcessGrid(app, 2))


@pytest.mark.parametrize(("size", "steps"), [(65, 4), (64, 4), (66, 5), (17, 1), (1, 1)])
def test_the_default_is_one_pass_as_the_device_counts_it(size, steps):
    task = uneven(size, size)
    app = device_app(lambda _: task, Limits(max_local_epochs=1))
    (report,) = run(SplitMS(cut="2", hello=True), task, rounds=1, grid=InProcessGrid(app, 2))
    assert report.metrics["failures"] == 0
    assert report.metrics["steps"] == steps
    assert report.metrics["uplink_labels_bytes"] == 2 * (size + steps)  # each sample's once, and a width a message


@pytest.mark.parametrize("size", [1, 2, 5, 8, 9, 10])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 16])
def test_a_pass_holds_each_sample_once(size, batch_size):
    count = batches_of_a_pass(size, batch_size)
    batches = [batch_positions(size, batch_size, index, 0, 0) for index in range(2 * count)]
    for of_a_pass in (batches[:count], batches[count:]):
        assert sorted(np.concatenate(of_a_pass)) == list(range(size))
    assert all(min(size, 2, batch_size) <= len(batch) <= batch_size + 1 for batch in batches)


def test_a_round_without_replies_fails():
    task = digits(2)
    grid = tampered(task, steps_only(lambda reply, _: [failed(reply)]))
    with pytest.raises(RoundFailed, match="battery"):
        run(SplitMS(cut="2", steps_per_round=2), task, grid=grid)


def test_resuming_is_as_good_as_never_having_stopped():
    task = digits(2)
    settings: dict[str, Any] = {"cut": "5", "steps_per_round": 2, "values": "int8", "hello": True}
    *_, whole = run(SplitMS(**settings), task, rounds=4)

    before = SplitMS(**settings)
    grid = InProcessGrid(device_app(lambda _: task), 2)
    *_, middle = run(before, task, rounds=2, grid=grid)
    after = SplitMS(**settings)
    after.load_state_dict(before.state_dict())
    after.prepare(task.model())
    reports: list[RoundReport] = []
    after.callbacks.append(reports.append)
    after.start(grid, middle.arrays, num_rounds=4, train_config=TRAINING)
    for name, array in to_numpy(whole.arrays).items():
        np.testing.assert_array_equal(array, to_numpy(reports[-1].arrays)[name])


def test_evaluation_sees_coded_activations():
    task = digits(1)
    strategy = SplitMS(cut="2", sparsity=0.99, bits=1)
    plain, coded = task.model(), strategy.prepare(task.model())
    data = task.test_data()
    x = data.prepare(data.all_inputs[data.index[:8]])
    with torch.no_grad():
        assert not torch.equal(plain.eval()(x), coded.eval()(x))
        torch.testing.assert_close(plain.train()(x), coded.train()(x))
    assert list(coded.state_dict()) == list(plain.state_dict())


def test_randtopk_is_top_k_when_evaluated():
    task = digits(1)
    data = task.test_data()
    x = data.prepare(data.all_inputs[data.index[:8]])
    names = ("randtopk", "topk", "none")
    models = [SplitMS(cut="2", compressor=name, sparsity=0.9).prepare(task.model()).eval() for name in names]
    with torch.no_grad():
        random, best, plain = (model(x) for model in models)
    assert torch.equal(random, best)
    assert not torch.equal(random, plain)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": "lost"}, "labels='lost'"),
        ({"gradient": "int3"}, "gradient='int3'"),
        ({"compressor": "zip"}, "compressor='zip'"),
        ({"sparsity": 1.5}, "sparsity=1.5"),
        ({"batches_per_message": 0}, "batches_per_message=0"),
        ({"fraction_evaluate": 0.5}, "fraction_evaluate=0.5 cannot be chosen"),
        ({"prunable": ["a.weight"]}, "prunable=.* cannot be chosen"),
    ],
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SplitMS(cut="2", **arguments)


def test_a_cut_that_does_not_exist_names_those_that_do():
    with pytest.raises(ValueError, match=r"no layer 'layer2'.*cut at one of 0, 1, 2"):
        SplitMS(cut="layer2").prepare(digits(1).model())
    with pytest.raises(ValueError, match="prepare"):
        SplitMS(cut="2").top  # noqa: B018


def test_a_bundle_comes_back_and_garbage_does_not():
    parts = [split.Part(split.LABELS, (3,), split.encode_labels(np.array([1, 2, 300])))]
    assert split.unbundle(split.bundle(parts)) == parts
    assert split.decode_labels(parts[0].data, 3).tolist() == [1, 2, 300]
    for data in (b"", b"FSB\x01", bytes(30), split.bundle(parts)[:-1]):
        with pytest.raises(PayloadError):
            split.unbundle(data)
    with pytest.raises(PayloadError):
        split.decode_labels(parts[0].data, 4)
