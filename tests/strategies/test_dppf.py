"""DPPF, local SGD and SCAFFOLD in whole federations."""

from pathlib import Path
from typing import Any

import federation_kit
import numpy as np
import pytest
from federation_kit import TamperedGrid, failed, grid_of, initial_arrays
from flwr.app import ConfigRecord, Context, Message

from flsparse import _flwr
from flsparse.clients import load_arrays
from flsparse.clients.core import compress
from flsparse.clients.core import state as node_state
from flsparse.clients.core.state import NodeState
from flsparse.codec import payload_info
from flsparse.runtime import InProcessGrid
from flsparse.sparsity import sparsity_of
from flsparse.strategies import DPPF, LocalSGD, RoundFailed, RoundLoop, RoundReport, Scaffold
from flsparse.strategies.dppf import push_schedule
from flsparse.tasks import Task
from flsparse.wire.messages import pack, packed_payload, to_numpy
from flsparse.wire.mirror import CONTROL_ROUND

TRAINING: dict[str, Any] = {"lr": 0.1, "lr-schedule": "cosine", "batch-size": 16, "local-steps": 2, "momentum": 0.9}
RAW: dict[str, Any] = {"values": "raw", "downlink_values": "raw", "hello": True}
CODED: dict[str, Any] = {"values": "int4", "downlink_values": "int8", "hello": True}


@pytest.fixture(autouse=True)
def _state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLSPARSE_STATE_DIR", str(tmp_path / "state"))


def digits(nodes: int = 3, norm: str = "group", partition: dict[str, Any] | None = None) -> Task:
    model = {"name": "cnn", "width": 4, "norm": norm}
    partition = partition or {"kind": "iid"}
    return federation_kit.digits(nodes, model=model, partition=partition, train_samples=150, validation_fraction=0.0)


def uneven() -> Task:
    """Return nodes of which one has far more examples than another, so that weights show."""
    task = digits(norm="batch", partition={"kind": "dirichlet", "alpha": 0.3})
    sizes = sorted(len(task.train_data(node)) for node in range(3))
    assert 1.5 * sizes[0] < sizes[-1]
    return task


def run(
    strategy: RoundLoop,
    task: Task | None = None,
    *,
    rounds: int = 3,
    grid: Any = None,
    arrays: Any = None,
    **changes: Any,
) -> list[RoundReport]:
    config = ConfigRecord({**TRAINING, **changes})
    return federation_kit.run(strategy, task or digits(), rounds=rounds, grid=grid, arrays=arrays, config=config)


def same(first: RoundReport, second: RoundReport) -> bool:
    a, b = to_numpy(first.arrays), to_numpy(second.arrays)
    return list(a) == list(b) and all(a[name].tobytes() == b[name].tobytes() for name in a)


class Nth:
    """Changes the training replies of one round, by their order of arrival."""

    def __init__(self, round_: int, place: int, change: Any) -> None:
        self.round, self.place, self.change, self.seen = round_, place, change, -1

    def __call__(self, reply: Message) -> list[Message]:
        if not reply.has_content() or packed_payload(reply.content) is None:
            return [reply]
        self.seen += 1
        hit = divmod(self.seen, 3) == (self.round - 1, self.place)
        return self.change(reply) if hit else [reply]


def broken(reply: Message) -> list[Message]:
    return [failed(reply)]


# -- the algorithm -----------------------------------------------------------------------------------------------------


def test_alpha_1_without_push_is_local_sgd_bit_for_bit() -> None:
    task = digits(norm="batch")
    *_, plain = run(LocalSGD(**RAW), task)
    *_, pulled = run(DPPF(alpha=1.0, lambda_=0.0, **RAW), task)
    assert same(plain, pulled)
    *_, pushed = run(DPPF(alpha=1.0, lambda_=0.1, **RAW), task)
    assert not same(plain, pushed)


def test_momentum_goes_on_where_it_was() -> None:
    """With one worker, two rounds of 2 steps are one round of 4; without kept momentum they are not."""
    task = digits(nodes=1)
    quiet = {"lr-schedule": "geometric", "batch-size": 150}
    one = {"min_train_nodes": 1, "min_available_nodes": 1, **RAW}
    *_, two = run(LocalSGD(**one), task, rounds=2, **quiet)
    *_, whole = run(LocalSGD(**one), task, rounds=1, **{**quiet, "local-steps": 4})
    for name, array in to_numpy(two.arrays).items():
        np.testing.assert_allclose(array, to_numpy(whole.arrays)[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("wire", [RAW, CODED])
def test_workers_come_to_their_width(wire: dict[str, Any]) -> None:
    *_, last = run(DPPF(alpha=0.9, lambda_=0.45, schedule="constant", **wire), rounds=30, lr=0.02)
    assert last.metrics["width_target"] == pytest.approx(0.5)
    assert last.metrics["width"] == pytest.approx(0.5, rel=0.02)


def test_without_push_the_width_collapses() -> None:
    *_, last = run(DPPF(alpha=0.9, lambda_=0.0, **RAW), rounds=30, lr=0.02)
    assert last.metrics["width"] < 0.02


def test_the_push_follows_its_schedule() -> None:
    reports = run(DPPF(alpha=0.5, lambda_=1.0, schedule="increasing", **RAW), rounds=4)
    targets = [r.metrics.get("width_target") for r in reports]
    assert targets[0] is None  # all workers start on the average
    assert targets[1:] == pytest.approx([2 * push_schedule("increasing", t, 4) for t in (2, 3, 4)])
    assert push_schedule("increasing", 4, 4) == push_schedule("decreasing", 0, 4) == 1


def test_quadratic_synchronization_sets_the_local_steps() -> None:
    reports = run(DPPF(qsr=0.2, qsr_max_steps=9, **RAW), rounds=4)
    rates = [0.1, 0.0853553, 0.05, 0.0146447]
    assert [r.metrics["local_steps"] for r in reports] == [min(9, max(2, int((0.2 / r) ** 2))) for r in rates]
    assert reports[-1].metrics["steps"] == 9


def test_partial_participation_leaves_the_others_where_they_were() -> None:
    loop = DPPF(fraction_train=0.5, **CODED)
    held: list[dict[int, Any]] = []
    loop.callbacks.append(lambda _: held.append(dict(loop.workers)))
    reports = run(loop, digits(nodes=4), rounds=4)
    for before, after, report in zip(held, held[1:], reports[1:], strict=False):
        moved = [p for p in after if after[p] is not before.get(p)]
        assert len(moved) == report.metrics["replies"] == 2
        assert report.metrics["rejoined"] == 0


# -- the wire ----------------------------------------------------------------------------------------------------------


def test_replies_are_coded_against_the_workers_mirror() -> None:
    named: list[str | None] = []

    def spy(reply: Message) -> list[Message]:
        if reply.has_content() and (payload := packed_payload(reply.content)):
            named.append(payload_info(payload).reference_id)
        return [reply]

    loop = DPPF(**CODED)
    reports = run(loop, rounds=3, grid=TamperedGrid(grid_of(digits()), spy))
    assert len(set(named[:3])) == 1  # the broadcast of the first round
    assert len(set(named[3:])) == 6
    assert reports[-1].metrics["uplink_ratio"] > 10
    assert [r.metrics["rejoined"] for r in reports] == [0, 0, 0]


def test_node_and_server_hold_the_same_mirror() -> None:
    task = digits()
    grid, loop = grid_of(task), DPPF(uplink_density=0.05, **CODED)
    run(loop, task, grid=grid)
    from flsparse import _flwr

    for partition, state in grid._states.items():
        held = _flwr.unpack_records(state).array_records["flsparse.mirror"]
        for name, array in held.items():
            assert array.numpy().tobytes() == loop.workers[partition][name].tobytes()


@pytest.mark.parametrize("wire", [RAW, CODED])
@pytest.mark.parametrize("change", [broken, lambda reply: [], None])
def test_a_worker_that_failed_was_late_or_lost_its_state_joins_anew(wire: dict[str, Any], change: Any) -> None:
    task = digits()
    inner = grid_of(task)
    loop = DPPF(round_timeout_s=4, **wire)
    grid = TamperedGrid(inner, Nth(2, 1, change)) if change else inner

    def forget(report: RoundReport) -> None:
        if change is None and report.server_round == 2:
            inner._states.pop(1)

    loop.callbacks.append(forget)
    reports = run(loop, task, rounds=4, grid=grid)
    assert [r.metrics["replies"] for r in reports] == [3, 2 if change else 3, 3, 3]
    assert [r.metrics["rejoined"] for r in reports] == [0, 0, 1, 0]
    assert reports[-1].metrics["rejected_payloads"] == 0


def test_the_others_are_undisturbed_by_one_that_joins_anew() -> None:
    """What the others hold depends on the averages alone: up to the round after the loss they are bit for bit equal."""
    task = digits()
    first, second = DPPF(lambda_=0.1, **RAW, valley_every=99), DPPF(lambda_=0.1, **RAW, valley_every=99)
    held: dict[str, list[dict[int, Any]]] = {"usual": [], "lost": []}
    first.callbacks.append(lambda _: held["usual"].append(dict(first.workers)))
    second.callbacks.append(lambda _: held["lost"].append(dict(second.workers)))
    run(first, task, rounds=2)
    run(second, task, rounds=2, grid=TamperedGrid(grid_of(task), Nth(2, 1, broken)))
    for partition in (0, 2):
        usual, lost = (held[key][1][partition] for key in ("usual", "lost"))
        assert all(usual[name].tobytes() == lost[name].tobytes() for name in usual)


def test_a_mirror_that_drifted_is_refused_and_the_worker_joins_anew() -> None:
    loop = DPPF(**CODED)

    def drift(report: RoundReport) -> None:
        if report.server_round == 1:
            worker = loop.workers[2]
            loop.workers[2] = {n: a + a.dtype.type(1) if a.dtype.kind == "f" else a for n, a in worker.items()}

    loop.callbacks.append(drift)
    reports = run(loop, rounds=3)
    assert [r.metrics["replies"] for r in reports] == [3, 2, 3]
    assert reports[-1].metrics["rejected_payloads"] == 1
    assert [r.metrics["rejoined"] for r in reports] == [0, 0, 1]


@pytest.mark.parametrize("make", [lambda: DPPF(**CODED, control_variates=True), lambda: LocalSGD(**RAW)])
def test_resume_equals_the_uninterrupted_run(make: Any) -> None:
    task = digits(norm="batch")
    *_, whole = run(make(), task, rounds=4)
    grid, first, second = grid_of(task), make(), make()
    stopped: list[RoundReport] = []

    def stop(report: RoundReport) -> None:
        stopped.append(report)
        if report.server_round == 2:
            raise KeyboardInterrupt

    first.callbacks.append(stop)
    with pytest.raises(KeyboardInterrupt):
        run(first, task, rounds=4, grid=grid)
    initial_arrays(second, task)
    second.load_state_dict(first.state_dict())
    *_, last = run(second, task, rounds=4, grid=grid, arrays=stopped[-1].arrays)
    assert last.metrics["rejoined"] == 0
    assert same(whole, last)


# -- what it composes with ---------------------------------------------------------------------------------------------


def test_batch_norm_is_estimated_at_the_average() -> None:
    task = uneven()
    *_, usual = run(LocalSGD(statistics_samples=0, **RAW), task, rounds=2)
    *_, never = run(LocalSGD(statistics_every=0, **RAW), task, rounds=2)
    a, b = to_numpy(usual.arrays), to_numpy(never.arrays)
    assert {n for n in a if not np.array_equal(a[n], b[n])} == {n for n in a if "running_" in n}
    model = task.model()
    load_arrays(model, a)
    from flsparse.nets.batch_norm import batch_norm_statistics, pooled

    nodes = [task.sample(task.train_data(node), 0) for node in range(3)]
    sizes = [sum(len(t) for _, t in batches) for batches in nodes]
    found = pooled([(s, batch_norm_statistics(model, [x for x, _ in b])) for s, b in zip(sizes, nodes, strict=True)])
    for name, array in found.items():
        np.testing.assert_allclose(a[name], array, rtol=1e-5)


def test_nodes_measure_the_valley_on_their_own_data() -> None:
    task = digits(norm="batch")
    loop = DPPF(valley_every=2, valley_samples=0, valley_steps=12, valley_step=0.2, **RAW)
    reports = run(loop, task, rounds=3, grid=grid_of(task))
    assert ["mean_valley" in r.metrics for r in reports] == [False, True, True]
    assert loop.valley is not None
    assert reports[-1].metrics["mean_valley"] == loop.valley.mean_valley > 0
    assert set(reports[-1].metrics["valley_losses"]) == {"0", "1", "2"}

    from flsparse.nets.valley import loss_on, mean_valley

    model = task.model()
    load_arrays(model, to_numpy(reports[-1].arrays))
    names = [name for name, _ in model.named_parameters()]
    everything = [batch for node in range(3) for batch in task.sample(task.train_data(node), 0)]
    average = {name: to_numpy(reports[-1].arrays)[name] for name in names}
    workers = [{name: arrays[name] for name in names} for arrays in loop.workers.values()]
    here = mean_valley(loss_on(model, everything), average, workers, step=0.2, max_steps=12)
    assert here.average_loss == pytest.approx(loop.valley.average_loss, rel=1e-5)
    assert here.mean_valley == pytest.approx(loop.valley.mean_valley, abs=0.05)


def test_the_losses_of_a_valley_are_over_the_examples_of_all_nodes() -> None:
    """A node counts by its examples, at the average and on the way from it."""
    task = uneven()
    loop = DPPF(valley_every=1, valley_samples=0, valley_steps=2, valley_step=0.2, statistics_samples=0, **RAW)
    (report,) = run(loop, task, rounds=1)
    assert loop.valley is not None

    from flsparse.nets.valley import loss_on, mean_valley

    model = task.model()
    arrays = to_numpy(report.arrays)
    load_arrays(model, arrays)
    names = [name for name, _ in model.named_parameters()]
    average = {name: arrays[name] for name in names}
    workers = [{name: worker[name] for name in names} for _, worker in sorted(loop.workers.items())]
    nodes = [task.sample(task.train_data(node), 0) for node in range(3)]
    sizes = np.array([sum(len(targets) for _, targets in batches) for batches in nodes])
    curves = []
    for batches in nodes:
        here = mean_valley(loss_on(model, batches), average, workers, kappa=1e6, step=0.2, max_steps=2)
        curves.append([[loss for _, loss in curve] for curve in here.curves])
    expected = np.average(curves, axis=0, weights=sizes)
    assert np.abs(expected - np.mean(curves, axis=0)).max() > 1e-3
    for p, losses in report.metrics["valley_losses"].items():
        np.testing.assert_allclose(losses, expected[int(p)][: len(losses)], rtol=1e-4)


def test_a_valley_along_a_subset_and_coded(caplog: pytest.LogCaptureFixture) -> None:
    loop = DPPF(valley_every=1, valley_steps=3, valley_names=["12.weight"], control_variates=True, **CODED)
    reports = run(loop, rounds=2)
    assert reports[-1].metrics["failures"] == 0
    assert len(reports[-1].metrics["valley_losses"]["0"]) == 4


def test_sparse_workers_and_a_sparse_average() -> None:
    loop = DPPF(sparsity=0.8, ramp=False, relative_width=0.2, **CODED)
    *_, last = run(loop, rounds=4)
    assert sparsity_of(to_numpy(last.arrays), loop.wire.prunable) == pytest.approx(0.8, abs=0.01)
    for arrays in loop.workers.values():
        assert sparsity_of(arrays, loop.wire.prunable) >= 0.79
    assert last.metrics["width"] > 0


def test_control_variates_are_the_mean_of_the_nodes() -> None:
    task = digits()
    grid, loop = grid_of(task), Scaffold(**RAW)
    *_, last = run(loop, task, rounds=2, grid=grid, momentum=0.0)
    assert set(loop.control.memory.arrays) == {name for name, _ in task.model().named_parameters()}
    assert_control_is_the_nodes_mean(loop, grid)
    assert not any(name.startswith("control/") for name in last.arrays)


def assert_control_is_the_nodes_mean(loop: Any, grid: InProcessGrid) -> None:
    own: list[Any] = []
    for partition in loop.control.memory.met:
        confirmed = loop.control.memory.confirmed.get(partition, 0)
        if not confirmed:
            own.append(None)
            continue
        node_id = next(i for i, known in grid._partitions.items() if known == partition)
        records = _flwr.unpack_records(grid._states[partition])
        state = NodeState(Context(grid.run.run_id, node_id, {}, records, {}))
        kept = (state.get(name) for name in ("control-pending", "control"))
        own.append(next(each for each in kept if each is not None and each[CONTROL_ROUND] == confirmed))
    for name, c in loop.control.memory.arrays.items():
        mean = np.mean([np.zeros_like(c) if o is None else o[name] for o in own], axis=0)
        np.testing.assert_allclose(c, mean, rtol=1e-4, atol=1e-6)


def refused(reply: Message) -> list[Message]:
    reply.content["arrays"] = pack(packed_payload(reply.content)[:-1])  # type: ignore[index]
    return [reply]


@pytest.mark.parametrize("change", [broken, refused])
@pytest.mark.parametrize("round_", [1, 2])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Scaffold(**RAW),
        lambda: DPPF(control_variates=True, **RAW),
        lambda: Scaffold(**CODED),
        lambda: DPPF(control_variates=True, **CODED),
    ],
)
def test_a_lost_reply_takes_its_control_variate_with_it(make: Any, round_: int, change: Any) -> None:
    task, loop = digits(), make()
    inner = grid_of(task)
    loop.callbacks.append(lambda _: assert_control_is_the_nodes_mean(loop, inner))
    reports = run(loop, task, rounds=4, grid=TamperedGrid(inner, Nth(round_, 1, change)), momentum=0.0)
    assert sum(r.metrics["replies"] for r in reports) == 11


@pytest.mark.parametrize("make", [lambda: Scaffold(**RAW), lambda: DPPF(control_variates=True, **CODED)])
def test_a_variate_in_a_file_of_a_fit_that_failed_is_not_taken_for_the_servers(
    make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Flower drops the context of a fit that raises; files stay."""
    monkeypatch.setattr(node_state, "SPILL_BYTES", 0)
    monkeypatch.setenv(node_state.STATE_DIR, str(tmp_path))
    task, loop = digits(), make()
    inner = grid_of(task)
    real, packed = compress._pack, []

    def pack_and_fail(*arguments: Any) -> Any:
        said = real(*arguments)
        packed.append(1)
        if len(packed) == 5:  # the second node of the second round
            raise OSError("no space left on device")
        return said

    monkeypatch.setattr(compress, "_pack", pack_and_fail)
    loop.callbacks.append(lambda _: assert_control_is_the_nodes_mean(loop, inner))
    reports = run(loop, task, rounds=4, grid=inner, momentum=0.0)
    assert [r.metrics["replies"] for r in reports] == [3, 2, 3, 3]


def test_after_a_round_without_a_quorum_control_variates_start_anew() -> None:
    task, loop = digits(), Scaffold(**RAW, min_replies=3)
    inner = grid_of(task)
    loop.callbacks.append(lambda _: assert_control_is_the_nodes_mean(loop, inner))
    grid = TamperedGrid(inner, Nth(2, 1, broken))
    with pytest.raises(RoundFailed):
        run(loop, task, rounds=3, grid=grid, momentum=0.0)
    assert [r.metrics["replies"] for r in run(loop, task, rounds=3, grid=grid, momentum=0.0)] == [3, 3]


def test_a_message_that_never_came_leaves_a_confirmed_control_variate() -> None:
    task, loop = digits(), Scaffold(**RAW)
    inner = grid_of(task)

    class Deaf(TamperedGrid):
        def push_messages(self, messages: Any) -> Any:
            messages = list(messages)
            trains = messages[0].metadata.message_type == "train"
            self.pushed = getattr(self, "pushed", 0) + trains
            return [""] if trains and self.pushed == 5 else super().push_messages(messages)

    loop.callbacks.append(lambda _: assert_control_is_the_nodes_mean(loop, inner))
    reports = run(loop, task, rounds=3, grid=Deaf(inner, lambda reply: [reply]), momentum=0.0)
    assert [r.metrics["replies"] for r in reports] == [3, 2, 3]


CONTROLLED = [
    lambda **more: Scaffold(**RAW, **more),
    lambda **more: DPPF(control_variates=True, **CODED, **more),
]


@pytest.mark.parametrize("make", CONTROLLED)
@pytest.mark.parametrize("lost", [[1], [0, 1, 2]])
@pytest.mark.parametrize("reply", ["arrives", "is lost once"])
def test_where_a_control_variate_is_lost_all_start_again(make: Any, lost: list[int], reply: str) -> None:
    task, loop = digits(), make()
    inner = grid_of(task)
    size: dict[int, float] = {}
    detected = 4 if reply == "is lost once" and lost == [1] else 3

    def lose(message: Message) -> list[Message]:
        hit = reply == "is lost once" and loop._next_round == 3 and inner._partitions[message.metadata.src_node_id] == 1
        return broken(message) if hit and packed_payload(message.content) else [message]

    def forget(report: RoundReport) -> None:
        size[report.server_round] = sum(float(np.abs(c).sum()) for c in loop.control.memory.arrays.values())
        if report.server_round < 3 or report.server_round >= detected:
            assert_control_is_the_nodes_mean(loop, inner)
        if report.server_round == 2:
            for partition in lost:
                inner._states.pop(partition)

    loop.callbacks.append(forget)
    reports = run(loop, task, rounds=5, grid=TamperedGrid(inner, lose), momentum=0.0)
    assert [r.server_round for r in reports if "control_lost" in r.metrics] == [detected]
    assert size[detected] == 0 < size[detected + 1]


@pytest.mark.parametrize("make", CONTROLLED)
@pytest.mark.parametrize("away", [lambda r: r < 3, lambda r: r >= 3, lambda r: r == 2], ids=["join", "leave", "return"])
def test_nodes_that_come_and_go_leave_the_control_variate_a_mean(make: Any, away: Any) -> None:
    task, loop = digits(nodes=4), make()
    inner = grid_of(task)

    class Partly(TamperedGrid):
        hidden = away(1)

        def get_node_ids(self) -> Any:
            return [n for n in inner.get_node_ids() if not (self.hidden and inner._partitions[n] in (1, 3))]

    grid = Partly(inner, lambda reply: [reply])

    def move(report: RoundReport) -> None:
        assert_control_is_the_nodes_mean(loop, inner)
        assert report.metrics["replies"] == (2 if grid.hidden else 4)
        assert "control_lost" not in report.metrics
        grid.hidden = away(report.server_round + 1)

    loop.callbacks.append(move)
    run(loop, task, rounds=5, grid=grid, momentum=0.0)
    assert loop.control.memory.met == {0, 1, 2, 3}


def test_control_variates_of_a_resumed_run_whose_nodes_went_on_start_again() -> None:
    task, first, second = digits(), Scaffold(**RAW), Scaffold(**RAW)
    grid = grid_of(task)
    saved: list[Any] = []
    first.callbacks.append(lambda report: saved.append((first.state_dict(), report.arrays)))
    run(first, task, rounds=4, grid=grid, momentum=0.0)
    initial_arrays(second, task)
    second.load_state_dict(saved[1][0])
    assert second.control.memory.met == {0, 1, 2}
    second.callbacks.append(lambda _: assert_control_is_the_nodes_mean(second, grid))
    reports = run(second, task, rounds=5, grid=grid, arrays=saved[1][1], momentum=0.0)
    assert ["control_lost" in r.metrics for r in reports] == [True, False, False]


@pytest.mark.parametrize("optimizer", [{"server_optimizer": "adam", "server_lr": 0.01}, {"server_lr": 0.5}])
def test_a_server_optimizer_steps_the_model_alone(optimizer: dict[str, Any]) -> None:
    usual, stepped = DPPF(control_variates=True, **RAW), DPPF(control_variates=True, **optimizer, **RAW)
    (a,), (b,) = run(usual, rounds=1), run(stepped, rounds=1)
    assert not same(a, b)
    assert usual.control
    assert stepped.control
    for name, c in usual.control.memory.arrays.items():
        np.testing.assert_array_equal(stepped.control.memory.arrays[name], c)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("alpha", 0.0),
        ("alpha", 1.1),
        ("lambda_", -1.0),
        ("relative_width", -0.1),
        ("schedule", "sometimes"),
        ("uplink_density", 0.0),
        ("sparsity", 1.0),
        ("qsr", -1.0),
        ("statistics_every", -1),
        ("valley_kappa", 1.0),
        ("lambda_", float("inf")),
        ("beta", 0.5),
        ("activation_threshold", "often"),
        ("valley_steps", 0),
        ("valley_steps", 201),
    ],
)
def test_impossible_arguments_are_refused(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{argument}={value!r} is n"):
        DPPF(**{argument: value})
