"""Decentralized training through real messages: its order, its accounts, and what it survives."""

import importlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import federation_kit
import numpy as np
import pytest
import torch
from federation_kit import TRAINING, TamperedGrid, copy, failed, grid_of, initial_arrays
from flwr.app import ConfigRecord, MetricRecord

from flsparse import rng
from flsparse.clients import FedAvgLocal, Fit, device_app, load_arrays, state_arrays
from flsparse.clients.core.state import NodeState
from flsparse.codec.residuals.dither import Dither, dequantize
from flsparse.codec.residuals.residual import ResidualCodec, Stamp
from flsparse.runtime import InProcessGrid
from flsparse.sparsity import soft_threshold
from flsparse.strategies import DPSGD, ChocoSGD, MalcomPSGD, RoundFailed, RoundReport
from flsparse.tasks import build_task
from flsparse.topology import make_topology
from flsparse.wire.mail import LOST, Answer
from flsparse.wire.messages import OPAQUE, RECORD, opaque_payload, pack, to_numpy

CONFIG = {**TRAINING, "local-steps": 1, "lr": 0.1}
digits = partial(federation_kit.digits, model={"name": "mlp", "hidden": 16})


def run(strategy, task, *, steps=1, momentum=0.0, **options):
    config = ConfigRecord({**CONFIG, "local-steps": steps, "momentum": momentum})
    return federation_kit.run(strategy, task, config=config, **options)


def graph(name="ring", nodes=4):
    return make_topology({"name": name}, nodes, 0)


def local_steps(task, node, x, server_round, rounds, steps=1, rate=1.0):
    """Return a node's weights after plain local training, by the library's own loop."""
    model = task.model()
    names = list(state_arrays(model))
    load_arrays(model, dict(zip(names, x, strict=True)))
    config = {**CONFIG, "local-steps": steps, "server-round": server_round, "num-rounds": rounds}
    optimizer = task.optimizer(model, config)
    for group in optimizer.param_groups:
        group["lr"] *= rate
    fit = Fit(
        model, optimizer, {}, server_round, rounds, node, 0, config, cast(NodeState, None)
    )  # plain training keeps nothing
    return list(task.fit(fit, FedAvgLocal(), task.train_data(node)).values())


def reference(task, weights, rounds, *, dither=None, mu=0.0, gamma=1.0, old_copies=False, decay=0):
    """Run the algorithms as they stand on paper, array by array."""
    start = list(state_arrays(task.model()).values())
    n = len(weights)
    x = [[a.copy() for a in start] for _ in range(n)]
    copies = [[a.copy() for a in start] for _ in range(n)]

    def pulled(x, copies, gamma):
        mixed = []
        for i in range(n):
            pull = [sum(weights[i, j] * (copies[j][k] - copies[i][k]) for j in range(n)) for k in range(len(start))]
            mixed.append([(a + gamma * p).astype(np.float32) for a, p in zip(x[i], pull, strict=True)])
        return mixed

    for t in range(1, rounds + 1):
        rate = (1 + (t - 1) / decay) ** -0.5 if decay else 1.0
        x = [local_steps(task, i, x[i], t, rounds, rate=rate) for i in range(n)]
        if old_copies:
            x = pulled(x, copies, gamma * rate)
        for i in range(n):
            stream = rng.stream(0, t, i, "dither")
            for k, a in enumerate(x[i]):
                if dither is None:
                    copies[i][k] = a.copy()
                else:
                    q, step = dither.quantize((a - copies[i][k]).ravel(), stream)
                    copies[i][k] = copies[i][k] + dequantize(q, step).reshape(a.shape)
        if not old_copies:
            x = pulled(x, copies, gamma * rate)
        x = [[soft_threshold(a, 0.1 * rate * mu) if a.ndim > 1 else a for a in model] for model in x]
    return x


def assert_models(strategy, expected, atol=2e-6):
    assert sorted(strategy.node_models) == list(range(len(expected)))
    for partition, model in enumerate(expected):
        for got, wanted in zip(strategy.node_models[partition].values(), model, strict=True):
            np.testing.assert_allclose(got, wanted, atol=atol, rtol=1e-5)


# -- order tests -------------------------------------------------------------------------------------------------------


def test_one_node_without_a_quantizer_is_ista():
    task = digits(1)
    strategy = MalcomPSGD(topology=graph(nodes=1), levels=0, mu=0.01, min_available_nodes=1)
    run(strategy, task, rounds=4)
    expected = reference(task, np.ones((1, 1)), 4, mu=0.01)
    assert_models(strategy, expected, atol=0)
    assert (strategy.node_models[0]["1.weight"] == 0).any()


def test_without_mu_it_is_compressed_gossip():
    task, topology = digits(), graph()
    strategy = MalcomPSGD(topology=topology, norm="max", levels=2, mu=0.0, gamma=0.7)
    run(strategy, task, rounds=5)
    assert_models(strategy, reference(task, topology.weights, 5, dither=Dither(2), gamma=0.7))


def test_many_levels_are_decentralized_proximal_sgd():
    task, topology = digits(), graph()
    strategy = MalcomPSGD(topology=topology, norm="max", levels=1024, mu=0.01, gamma=1.0)
    run(strategy, task, rounds=4)
    assert_models(strategy, reference(task, topology.weights, 4, mu=0.01), atol=2e-4)


@pytest.mark.parametrize("norm", ["max", "rms"])
def test_the_whole_algorithm_in_its_order(norm):
    task, topology = digits(), graph("complete")
    strategy = MalcomPSGD(topology=topology, norm=norm, levels=3, mu=0.02, gamma=0.5)
    run(strategy, task, rounds=4)
    expected = reference(task, topology.weights, 4, dither=Dither(3, norm), mu=0.02, gamma=0.5)
    for partition, model in enumerate(expected):
        for got, wanted in zip(strategy.node_models[partition].values(), model, strict=True):
            assert np.abs(got - wanted).max() < 1e-5 + 0.1 * 0.02  # a sum's last bit may fall on either side of 0


@pytest.mark.parametrize("old_copies", [False, True])
def test_both_rates_fall(old_copies):
    task, topology = digits(), graph()
    make = ChocoSGD if old_copies else MalcomPSGD
    more: dict[str, Any] = {} if old_copies else {"norm": "max", "mu": 0.0}
    run(strategy := make(topology=topology, levels=4, gamma=0.6, decay_rounds=1, **more), task, rounds=5)
    expected = reference(task, topology.weights, 5, dither=Dither(4), gamma=0.6, old_copies=old_copies, decay=1)
    assert_models(strategy, expected)


def test_momentum_goes_on_where_it_was():
    """One node that mixes with nobody: four rounds of a step are one round of four, from the same batches."""
    task = build_task(
        {
            "dataset": {"name": "digits", "train_samples": 32, "validation_fraction": 0.0},
            "model": {"name": "mlp", "hidden": 16},
            "partition": {"kind": "iid"},
            "num_clients": 1,
            "seed": 0,
        }
    )
    models = {}
    for rounds, steps, momentum in ((4, 1, 0.9), (1, 4, 0.9), (4, 1, 0.0)):
        loop = DPSGD(topology=graph(nodes=1), min_available_nodes=1)
        run(loop, task, rounds=rounds, steps=steps, momentum=momentum)
        models[rounds, momentum] = loop.node_models[0]
    for name, array in models[4, 0.9].items():
        np.testing.assert_allclose(array, models[1, 0.9][name], rtol=1e-4, atol=1e-6)
    assert any(np.abs(array - models[4, 0.0][name]).max() > 1e-3 for name, array in models[4, 0.9].items())


def test_choco_mixes_with_the_old_copies():
    task, topology = digits(), graph()
    strategy = ChocoSGD(topology=topology, levels=4, gamma=0.6)
    run(strategy, task, rounds=5)
    assert_models(strategy, reference(task, topology.weights, 5, dither=Dither(4), gamma=0.6, old_copies=True))


def test_d_psgd_averages_with_the_neighbors():
    task, topology = digits(), graph("star")
    strategy = DPSGD(topology=topology)
    reports = run(strategy, task, rounds=3)
    assert_models(strategy, reference(task, topology.weights, 3))
    parameters = sum(p.numel() for p in task.model().parameters())
    assert reports[-1].metrics["bits_per_parameter"] == pytest.approx(32, abs=8 * 20 / parameters)


# -- what is reported --------------------------------------------------------------------------------------------------


def test_metrics_and_the_consensus_model():
    task, topology = digits(), graph()
    seen = []

    def evaluate(server_round, arrays):
        seen.append(server_round)
        model = task.model()
        load_arrays(model, to_numpy(arrays))
        return MetricRecord({"accuracy": task.evaluate(model, task.test_data())["accuracy"]})

    strategy = MalcomPSGD(topology=topology, mu=0.01, evaluate_every=2)
    reports = run(strategy, task, rounds=3, evaluate_fn=evaluate)
    assert [("consensus_error" in r.metrics) for r in reports] == [False, True, True]
    metrics = reports[-1].metrics
    mean = to_numpy(reports[-1].arrays)
    models = strategy.node_models
    for name, array in mean.items():
        np.testing.assert_allclose(array, np.mean([m[name] for m in models.values()], axis=0), atol=1e-7)
    error = np.mean([sum(((m[k] - mean[k]) ** 2).sum() for k in mean) for m in models.values()])
    assert metrics["consensus_error"] == pytest.approx(error, rel=1e-4)
    assert metrics["worst_node_accuracy"] <= metrics["mean_node_accuracy"] <= 1
    assert 0 < metrics["node_sparsity"] < 1
    assert 0 < metrics["entropy_bits_per_parameter"] < metrics["bits_per_parameter"] < 32


def test_what_does_not_gossip_is_no_lack_of_consensus():
    """On the complete graph D-PSGD's nodes agree after each exchange, but each has batch-norm statistics of its own."""
    task = build_task(
        {
            "dataset": {"name": "digits", "train_samples": 100},
            "model": {"name": "cnn", "width": 4, "norm": "batch"},
            "partition": {"kind": "dirichlet_equal", "alpha": 1.0},
            "num_clients": 3,
            "seed": 0,
        }
    )
    loop = DPSGD(topology=graph("complete", 3))
    (report,) = run(loop, task, rounds=1)
    assert report.metrics["consensus_error"] < 1e-9
    statistics = [np.concatenate([a for n, a in m.items() if "running_" in n]) for m in loop.node_models.values()]
    assert np.std(statistics, axis=0).max() > 1e-3
    assert report.metrics["bits_per_parameter"] == pytest.approx(
        32, abs=8 * 40 / sum(p.numel() for p in task.model().parameters())
    )


def test_bytes_by_link_and_as_the_relay_carried_them():
    task, topology = digits(), graph("star")
    strategy = MalcomPSGD(topology=topology, evaluate_every=4)
    reports = run(strategy, task, rounds=4)
    links = strategy.relay.memory.link_bytes
    assert set(links) == {(0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (3, 0)}
    assert links[0, 1] == links[0, 2] == links[0, 3]  # the same payload to every neighbor
    assert sum(r.metrics["graph_bytes"] for r in reports) == sum(links.values())
    up, down = strategy.ledger.total("uplink"), strategy.ledger.total("downlink")
    assert up.payload_bytes == links[0, 1] + links[1, 0] + links[2, 0] + links[3, 0]
    assert down.payload_bytes == sum(
        links.values()
    )  # each payload once over each link, the last ones in the evaluation
    assert up.wire_bytes > up.payload_bytes
    evaluation = strategy.ledger.total("evaluation")
    assert evaluation.messages == 4
    assert reports[-1].metrics["evaluation_bytes"] == evaluation.payload_bytes
    dense = 4 * sum(p.numel() for p in task.model().parameters())
    assert up.dense_bytes == 16 * dense
    assert down.dense_bytes == 4 * 6 * dense


def test_local_steps_and_rates():
    task, topology = digits(), graph()
    more, plain, slower = (MalcomPSGD(topology=topology, decay_rounds=d) for d in (0, 0, 1))
    (first, *_) = run(more, task, rounds=2, steps=4)
    run(plain, task, rounds=2)
    run(slower, task, rounds=2)
    assert first.metrics["steps"] == 4
    start = state_arrays(task.model())

    def moved(strategy):
        return sum(float(np.abs(strategy.node_models[0][name] - start[name]).sum()) for name in start)

    assert moved(more) > moved(plain) > moved(slower)


def test_one_seed_gives_one_result():
    runs = []
    for _ in range(2):
        strategy = MalcomPSGD(topology={"name": "erdos_renyi", "probability": 0.6}, num_nodes=4, seed=3)
        reports = run(strategy, digits(seed=3), rounds=3)
        runs.append((reports[-1].metrics["uplink_bytes"], strategy.node_models))
    assert runs[0][0] == runs[1][0]
    for node in range(4):
        for name, array in runs[0][1][node].items():
            np.testing.assert_array_equal(array, runs[1][1][node][name])


# -- what it survives --------------------------------------------------------------------------------------------------


def copies_agree(grid, task):
    """Return the rounds the nodes stand at, after checking that holders of one copy hold the same."""
    from flwr.app import Context, RecordDict

    from flsparse import _flwr
    from flsparse.clients.core.gossip import Home

    seen: dict[tuple[int, int], bytes] = {}
    rounds = []
    for node_id, partition in grid._partitions.items():
        state = grid._states.get(partition)
        context = Context(grid.run.run_id, node_id, {}, _flwr.unpack_records(state) if state else RecordDict(), {})
        home = Home.load(NodeState(context))
        if home is None:
            continue
        rounds.append(home.hood.round)
        for owner, held in home.hood.copies.items():
            key = (owner, home.hood.round)
            assert seen.setdefault(key, held.tobytes()) == held.tobytes(), key
    return rounds


def training_reply(reply):
    return reply.metadata.message_type == "train" and reply.has_content()


def flaky(task, pattern):
    """Return a grid whose n-th training reply meets the n-th fate of a pattern that repeats."""
    count = [0]

    def tamper(reply):
        if not training_reply(reply):
            return [reply]
        fate = pattern[count[0] % len(pattern)]
        count[0] += 1
        if fate == "doubled":
            return [reply, copy(reply)]
        if fate == "damaged":
            payload = bytearray(opaque_payload(reply.content) or b"")
            payload[len(payload) // 2] ^= 1
            reply.content["mail"] = pack(bytes(payload), OPAQUE)
        if fate == "lost":  # the node has done its work, the server hears only that it failed: no deadline to wait for
            return [failed(reply)]
        return [reply]

    inner = grid_of(task)
    return inner, TamperedGrid(inner, tamper)


@pytest.mark.parametrize("strategy", [MalcomPSGD, ChocoSGD, DPSGD])
def test_lost_and_doubled_replies_never_let_copies_disagree(strategy):
    task = digits()
    inner, grid = flaky(task, ["ok", "lost", "ok", "doubled", "ok", "ok", "lost"])
    loop = strategy(topology=graph())
    reports = run(loop, task, rounds=5, grid=grid)
    assert [r.metrics["replies"] for r in reports] == [3, 3, 3, 2, 4]
    assert copies_agree(inner, task) == [5] * 4


def test_a_damaged_residual_does_not_count():
    task = digits()
    inner, grid = flaky(task, ["damaged"] + ["ok"] * 100)
    loop = MalcomPSGD(topology=graph())
    reports = run(loop, task, rounds=3, grid=grid)
    assert [r.metrics["replies"] for r in reports] == [3, 4, 4]
    assert loop.wire.counts["rejected_payloads"] == 1
    assert loop.wire.counts["resynchronized"] == 0
    assert copies_agree(inner, task) == [3] * 4


def lying(task, lie):
    """Return a grid whose node 1 says what ``lie(answer, server_round)`` returns when it is asked to train."""
    inner = grid_of(task)
    asked = []

    def tamper(reply):
        if training_reply(reply) and inner._partitions[reply.metadata.src_node_id] == 1:
            asked.append(reply)
            said = lie(Answer.of(reply.content), len(asked)).to_content()
            for name in ("mail", RECORD):
                reply.content.pop(name, None)
            for name, record in said.items():
                reply.content[name] = record
        return [reply]

    return inner, TamperedGrid(inner, tamper)


def garbage(answer, server_round):
    """Return a residual that counts, and that no neighbor can take in: it is for a copy that nobody holds."""
    x = np.ones(9, np.float32)
    codec = ResidualCodec((9,), Dither(2))
    payload, _ = codec.encode(x, 0 * x, Stamp(1, server_round, 7), np.random.default_rng(0))
    return replace(answer, payload=payload)


@pytest.mark.parametrize("topology", ["ring", "complete", "star"])
def test_a_residual_that_fits_nobody_is_struck_out_and_its_sender_resynchronized(topology):
    task = digits()
    inner, grid = lying(task, lambda answer, n: garbage(answer, n) if n == 1 else answer)
    loop = MalcomPSGD(topology=graph(topology))
    reports = run(loop, task, rounds=5, grid=grid)
    assert [r.metrics["replies"] for r in reports] == [4] * 5  # found out by the evaluation
    assert loop.relay.memory.epoch == 0
    assert copies_agree(inner, task) == [5] * 4


@pytest.mark.parametrize("every", [1, 3])
def test_garbage_and_then_a_claim_to_be_lost_restart_nobody(every):
    task = digits()
    _, grid = lying(task, lambda answer, n: garbage(answer, n) if n % 2 else Answer(LOST))
    loop = MalcomPSGD(topology=graph("complete"), evaluate_every=every)
    reports = run(loop, task, rounds=6, grid=grid)
    assert loop.relay.memory.epoch == 0
    assert all(r.metrics["replies"] >= 3 for r in reports)


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (lambda copies: copies | {0: bytes(10), 2: bytes(10), 3: bytes(10)}, 1),
        (lambda copies: dict.fromkeys(copies, bytes(10_000_000)), 1),
        (lambda copies: {j: data[:-4] for j, data in copies.items()}, 0),
        (lambda copies: {j: data[:-4] + b"\xff" * 4 for j, data in copies.items()}, 0),
    ],
    ids=["not asked for", "too large", "too small", "NaN"],
)
def test_bad_copies_do_not_keep_a_lost_node_away(change, refused):
    task = digits()
    lie = lambda answer, n: replace(answer, copies=change(answer.copies)) if answer.copies else answer  # noqa: E731
    inner, grid = lying(task, lie)
    loop = MalcomPSGD(topology=graph())

    def forget(report):
        if report.server_round == 2:
            inner._states.pop(2)

    loop.callbacks.append(forget)
    reports = run(loop, task, rounds=8, grid=grid)
    assert loop.wire.counts["rejected_payloads"] == refused
    assert reports[-1].metrics["replies"] == 4
    assert copies_agree(inner, task) == [8] * 4


def test_metrics_of_nodes_are_bounded():
    task = digits()

    def tamper(reply):
        if training_reply(reply):
            many = {f"m{i}": 1.0 for i in range(500)}
            reply.content["more"] = MetricRecord({"a" * 100: 1.0, "huge": 1e300, "none": float("nan"), **many})
        return [reply]

    grid = TamperedGrid(InProcessGrid(device_app(lambda _: task), 4), tamper)
    (report,) = run(MalcomPSGD(topology=graph()), task, rounds=1, grid=grid)
    assert len(report.metrics) < 120
    assert not {"a" * 100, "huge", "none"} & set(report.metrics)


class Absent(TamperedGrid):
    """A grid from which one node is away for some rounds."""

    def __init__(self, inner, away):
        super().__init__(inner, lambda reply: [reply])
        self.away, self.is_away = away, False

    def get_node_ids(self):
        return [i for i in self.inner.get_node_ids() if not (self.is_away and i == self.away)]


@pytest.mark.parametrize("backlog", [16, 1])
def test_a_node_leaves_and_comes_back(backlog):
    task = digits()
    inner = InProcessGrid(device_app(lambda _: task), 4)
    grid = Absent(inner, inner.get_node_ids()[1])
    loop = MalcomPSGD(topology=graph("complete"), hello=True, max_backlog=backlog)

    def come_and_go(report):
        grid.is_away = 2 <= report.server_round < 5

    loop.callbacks.append(come_and_go)
    reports = run(loop, task, rounds=8, grid=grid)
    replies = [r.metrics["replies"] for r in reports]
    assert replies[:5] == [4, 4, 3, 3, 3]
    assert replies[-1] == 4
    assert copies_agree(inner, task) == [8] * 4


def test_a_node_that_lost_its_state_gets_copies_from_its_neighbors():
    task = digits()
    inner = InProcessGrid(device_app(lambda _: task), 4)
    loop = MalcomPSGD(topology=graph())

    def forget(report):
        if report.server_round == 2:
            inner._states.pop(2)

    loop.callbacks.append(forget)
    reports = run(loop, task, rounds=6, grid=inner)
    assert [r.metrics["replies"] for r in reports] == [4, 4, 3, 4, 4, 4]
    dense = 4 * sum(p.numel() for p in task.model().parameters())
    resent = [r.metrics["resync_bytes"] for r in reports]
    assert sum(resent) == 3 * dense  # its own and its neighbors'
    assert sum(resent[:3]) == 0
    assert loop.wire.counts["resynchronized"] >= 1
    assert loop.relay.memory.epoch == 0
    assert copies_agree(inner, task) == [6] * 4


def test_when_all_forget_they_start_again_from_the_last_known_model():
    task = digits()
    inner = InProcessGrid(device_app(lambda _: task), 4)
    loop = MalcomPSGD(topology=graph())
    known = {}

    def forget(report):
        if report.server_round == 2:
            known.update(to_numpy(report.arrays))
            inner._states.clear()

    loop.callbacks.append(forget)
    reports = run(loop, task, rounds=3, grid=inner)
    assert [r.metrics["replies"] for r in reports] == [4, 4, 4]
    assert loop.relay.memory.epoch == 2
    assert copies_agree(inner, task) == [3] * 4
    after = to_numpy(reports[-1].arrays)
    start = state_arrays(task.model())
    assert sum(np.abs(after[k] - known[k]).sum() for k in known) < sum(np.abs(after[k] - start[k]).sum() for k in known)


def test_a_common_model_that_nodes_do_not_have_is_sent():
    task = digits()
    other = digits(seed=9)
    strategy = MalcomPSGD(topology=graph(), mu=0.0)
    grid = InProcessGrid(device_app(lambda _: task), 4)
    strategy.start(
        grid, initial_arrays(strategy, other), num_rounds=1, train_config=ConfigRecord({**CONFIG, "lr": 1e-9})
    )
    start = state_arrays(other.model())
    for name, array in strategy.node_models[3].items():
        np.testing.assert_allclose(array, start[name], atol=1e-6)


def test_a_part_of_the_nodes_takes_part():
    task = digits()
    inner = InProcessGrid(device_app(lambda _: task), 4)
    loop = MalcomPSGD(topology=graph(), fraction_train=0.5, min_train_nodes=2)
    reports = run(loop, task, rounds=5, grid=inner)
    assert [r.metrics["replies"] for r in reports] == [2] * 5
    copies_agree(inner, task)


def test_few_of_many_nodes_a_round_go_on_without_a_fault():
    """With 2 of 20 nodes a round, many are away for longer than 16 rounds: once no one was in step any more."""
    task = digits(20)
    inner = InProcessGrid(device_app(lambda _: task), 20)
    loop = MalcomPSGD(topology=graph(nodes=20), fraction_train=0.1, evaluate_every=50)
    reports = run(loop, task, rounds=60, grid=inner)
    assert [r.metrics["replies"] for r in reports] == [2] * 60
    assert loop.wire.counts["resynchronized"] == loop.relay.memory.epoch == 0
    copies_agree(inner, task)


@pytest.mark.parametrize(("fraction", "nodes", "name"), [(0.5, 8, "ring"), (0.25, 16, "ring"), (0.5, 9, "torus")])
def test_a_part_of_the_nodes_goes_on_where_all_have_forgotten(fraction, nodes, name):
    task = digits(nodes)
    inner = InProcessGrid(device_app(lambda _: task), nodes)
    loop = MalcomPSGD(topology=graph(name, nodes), fraction_train=fraction)
    drawn = int(fraction * nodes)

    def forget(report):
        if report.server_round == 3:
            inner._states.clear()

    loop.callbacks.append(forget)
    reports = run(loop, task, rounds=6, grid=inner)
    assert [r.metrics["replies"] for r in reports] == [drawn] * 6
    assert loop.relay.memory.epoch == 3
    copies_agree(inner, task)


def test_copies_are_fetched_from_nodes_that_were_not_drawn():
    task = digits(8)
    inner = InProcessGrid(device_app(lambda _: task), 8)
    loop = MalcomPSGD(topology=graph(nodes=8), fraction_train=0.125, seed=1)

    def forget(report):
        if report.server_round == 20:
            for node in (1, 2):
                inner._states.pop(node)

    loop.callbacks.append(forget)
    reports = run(loop, task, rounds=40, grid=inner)
    assert all(r.metrics["replies"] >= 1 for r in reports)
    assert loop.relay.memory.epoch == 0
    assert not loop.relay.memory.lost
    copies_agree(inner, task)


def test_when_nobody_who_is_there_has_the_copies_the_round_says_so():
    task = digits()
    inner = InProcessGrid(device_app(lambda _: task), 4)
    grid = Absent(inner, inner.get_node_ids()[1])
    loop = MalcomPSGD(topology=graph("complete"))

    def forget(report):
        grid.is_away = report.server_round == 2
        if report.server_round == 2:
            for node_id, partition in inner._partitions.items():
                if node_id != grid.away:
                    inner._states.pop(partition)

    loop.callbacks.append(forget)
    with pytest.raises(RoundFailed, match="wait for copies"):
        run(loop, task, rounds=4, grid=grid)


def test_a_round_without_replies_fails():
    task = digits()
    _, grid = flaky(task, ["lost"])
    with pytest.raises(RoundFailed, match="min_replies=1"):
        run(MalcomPSGD(topology=graph()), task, rounds=1, grid=grid)


def test_resume_equals_uninterrupted():
    task = digits()
    whole = MalcomPSGD(topology=graph(), mu=0.001)
    run(whole, task, rounds=5)
    first = MalcomPSGD(topology=graph(), mu=0.001)
    grid = InProcessGrid(device_app(lambda _: task), 4)
    saved: dict[str, Any] = {}

    def save(report):
        if report.server_round == 3:
            saved.update(strategy=first.state_dict(), nodes=grid.state_dict())

    first.callbacks.append(save)
    run(first, task, rounds=5, grid=grid)
    second = MalcomPSGD(topology=graph(), mu=0.001)
    second.load_state_dict(saved["strategy"])
    other = InProcessGrid(device_app(lambda _: task), 4)
    other.load_state_dict(saved["nodes"])
    run(second, task, rounds=5, grid=other)
    for node in range(4):
        for name, array in whole.node_models[node].items():
            np.testing.assert_array_equal(array, second.node_models[node][name])
    assert second.ledger.total("uplink").payload_bytes == whole.ledger.total("uplink").payload_bytes


@pytest.mark.parametrize("name", ["ring", "complete"])
def test_a_run_goes_on_with_new_nodes_though_one_is_away(name):
    """As over a SuperLink: the nodes of the run before are gone, and all that they kept."""
    task, first = digits(), DPSGD(topology=graph(name))
    *_, last = run(first, task, rounds=3)
    second = DPSGD(topology=graph(name))
    second.load_state_dict(first.state_dict())
    second.nodes_are_new()
    inner = InProcessGrid(device_app(lambda _: task), 4)
    grid = Absent(inner, inner.get_node_ids()[1])
    grid.is_away = True
    reports: list[RoundReport] = []
    second.callbacks.append(reports.append)
    second.start(grid, last.arrays, num_rounds=6, train_config=TRAINING)
    assert [report.metrics["replies"] for report in reports] == [3, 3, 3]
    grid.is_away = False
    second.start(grid, reports[-1].arrays, num_rounds=9, train_config=TRAINING)
    assert reports[-1].metrics["replies"] == 4


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"topology": {"name": "ring"}}, "num_nodes must be set"),
        ({"topology": {"name": "ring"}, "num_nodes": 4, "gamma": 0}, "gamma=0 is not in"),
        ({"topology": {"name": "ring"}, "num_nodes": 4, "mu": -1.0}, "mu=-1.0 is not in"),
        ({"topology": {"name": "ring"}, "num_nodes": 4, "levels": 5000}, "levels=5000"),
        ({"topology": {"name": "ring"}, "num_nodes": 4, "unit": "row"}, "unit='row'"),
        ({"topology": {"name": "ring"}, "num_nodes": 4, "coder": "zip"}, "coder='zip'"),
        ({"topology": {"name": "ring"}, "num_nodes": 4, "max_backlog": 0}, "max_backlog=0"),
        ({"topology": {"name": "ring"}, "num_nodes": 4, "fraction_train": 0}, "fraction_train=0"),
        ({"topology": {"name": "ring"}, "num_nodes": 4, "decay_rounds": -1}, "decay_rounds=-1"),
    ],
)
def test_impossible_arguments_are_refused(arguments, what):
    with pytest.raises(ValueError, match=what):
        MalcomPSGD(**arguments)


# -- the simulation of the benchmarks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["malcom_psgd", "choco_sgd", "d_psgd"])
def test_the_benchmarks_simulation_is_what_the_rounds_do(method, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "benchmarks")
    simulation = importlib.import_module("gossip_simulation")
    torch.set_num_threads(1)
    task, topology = digits(), graph()
    dither = {"malcom_psgd": Dither(2, "rms"), "choco_sgd": Dither(2), "d_psgd": None}[method]
    setting = simulation.Setting(
        method, dither, mu=1e-3, gamma=0.8, local_steps=2, rounds=4, evaluate_every=4, coders=()
    )
    trace = simulation.simulate(task, topology, setting, seed=0)
    strategy = {
        "malcom_psgd": lambda: MalcomPSGD(topology=topology, gamma=0.8, mu=1e-3),
        "choco_sgd": lambda: ChocoSGD(topology=topology, gamma=0.8, levels=2),
        "d_psgd": lambda: DPSGD(topology=topology, gamma=0.8),
    }[method]()
    reports = run(strategy, task, rounds=4, steps=2)
    assert reports[-1].metrics["consensus_error"] == pytest.approx(trace.consensus_error[-1], rel=0.02)
    model = task.model()
    load_arrays(model, to_numpy(reports[-1].arrays))
    assert task.evaluate(model, task.test_data())["accuracy"] == pytest.approx(trace.accuracy[-1], abs=0.01)
