"""Parts in whole federations: what the server makes of them, with our device application and with the mod alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation_kit import digits, initial_arrays, run, tampered
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from flsparse.clients import CompressMod
from flsparse.clients.core import state as node_state
from flsparse.clients.parts.clip import Clip
from flsparse.clients.parts.control import ControlVariates
from flsparse.clients.parts.mirror import Mirror
from flsparse.clients.parts.noise import Noise
from flsparse.clients.parts.prune import Prune
from flsparse.clients.parts.topk_update import TopKUpdate
from flsparse.codec import Codec
from flsparse.runtime import InProcessGrid
from flsparse.strategies import (
    DPPF,
    Compressed,
    FedAvg,
    LocalSGD,
    MalcomPSGD,
    RoundFailed,
    RoundReport,
    Scaffold,
    SplitMS,
    TopK,
)
from flsparse.strategies.parts.control import ServerControl
from flsparse.strategies.parts.masks import Masks
from flsparse.strategies.parts.norm_bound import NormBound
from flsparse.wire.messages import arrayrecord_key, pack, to_numpy, to_record

RAW: dict[str, Any] = {"values": "raw", "downlink_values": "raw"}
INNER: dict[str, Any] = {"fraction_evaluate": 0.0, "min_train_nodes": 4, "min_available_nodes": 4}


@pytest.fixture(autouse=True)
def _state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLSPARSE_STATE_DIR", str(tmp_path / "state"))


def same(first: RoundReport, second: RoundReport) -> bool:
    a, b = to_numpy(first.arrays), to_numpy(second.arrays)
    return list(a) == list(b) and all(a[name].tobytes() == b[name].tobytes() for name in a)


def mod_app(mod: CompressMod, nodes: int = 4) -> InProcessGrid:
    """Return nodes with the mod alone, which move every floating array at random."""
    app = ClientApp(mods=[mod])

    @app.train()
    def train(message: Message, context: Any) -> Message:
        rng = np.random.default_rng(int(context.node_config["partition-id"]))
        arrays = {
            n: (a + 0.1 * rng.standard_normal(a.shape)).astype(a.dtype) if a.dtype.kind == "f" else a
            for n, a in to_numpy(message.content.array_records["arrays"]).items()
        }
        content = RecordDict({"arrays": to_record(arrays), "metrics": MetricRecord({"num-examples": 10})})
        return Message(content, reply_to=message)

    return InProcessGrid(app, nodes)


def distance(a: RoundReport, arrays: Any) -> float:
    pairs = zip(to_numpy(a.arrays).values(), to_numpy(arrays).values(), strict=True)
    return float(np.sqrt(sum(np.square(x.astype(np.float64) - y).sum() for x, y in pairs)))


def test_control_variates_with_fedavg_are_scaffold_bit_for_bit() -> None:
    task = digits()
    for wire in (RAW, {"values": "int8"}):
        scaffold = run(Scaffold(**wire), task)
        fedavg = run(FedAvg(**wire, hello=True, parts=[ServerControl()]), task)
        assert all(same(a, b) for a, b in zip(scaffold, fedavg, strict=True))
        *_, plain = run(FedAvg(**wire, hello=True), task)
        assert not same(plain, fedavg[-1])


def test_masks_with_fedavg_report_how_far_supports_agree() -> None:
    *_, report = run(FedAvg(parts=[Masks()]), digits(), rounds=1)
    assert 0 < report.metrics["mask_iou"] <= 1
    assert report.metrics["uplink_sparsity"] < 0.1


def test_a_clipped_federation_moves_no_further_than_its_norm() -> None:
    task = digits()
    start = initial_arrays(FedAvg(), task)
    (free,) = run(FedAvg(**RAW), task, rounds=1, arrays=start)
    (report,) = run(FedAvg(**RAW, parts=[Clip(max_norm=0.05)]), task, rounds=1, arrays=start)
    assert distance(report, start) <= 0.05 * (1 + 1e-5) < distance(free, start)
    assert report.metrics["update_norm"] > 0.05


def test_parts_of_the_device_also_work_under_a_strategy_of_flowers_and_with_the_mod_alone() -> None:
    start = to_record({"w": np.ones((20, 30), np.float32)})
    for loop in (
        Compressed(FlowerFedAvg(**INNER), **RAW, parts=[Clip(max_norm=0.05)]),
        FedAvg(**RAW, parts=[Clip(max_norm=0.05)]),
    ):
        reports: list[RoundReport] = []
        loop.callbacks.append(reports.append)
        loop.start(mod_app(CompressMod()), start, num_rounds=1)
        assert 0 < distance(reports[0], start) <= 0.05 * (1 + 1e-5)


def test_sparse_updates_with_everything_sent_are_the_mods_error_feedback() -> None:
    start = to_record({"w": np.ones((20, 30), np.float32)})
    ends = []
    for mod, parts in (
        (CompressMod(error_feedback=True), []),
        (CompressMod(), [TopKUpdate(density=1.0, decay=1.0)]),
        (CompressMod(), []),
    ):
        reports: list[RoundReport] = []
        loop = FedAvg(values="int4", parts=parts)
        loop.callbacks.append(reports.append)
        loop.start(mod_app(mod), start, num_rounds=3)
        ends.append(reports[-1])
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


def test_sparse_updates_are_small_and_learn() -> None:
    task = digits()
    *_, dense = run(FedAvg(values="int4"), task, rounds=2)
    *_, report = run(FedAvg(values="int4", parts=[TopKUpdate(density=0.05)]), task, rounds=2)
    assert report.metrics["uplink_bytes"] < dense.metrics["uplink_bytes"] / 3


def test_a_scaled_update_is_refused_and_counted_and_the_run_goes_on() -> None:
    task = digits()
    arrays = {n: 100 * a for n, a in to_numpy(initial_arrays(FedAvg(), task)).items()}
    first: list[Message] = []

    def scale(reply: Message) -> list[Message]:
        first.append(reply)
        if len(first) == 1:
            reply.content[arrayrecord_key(reply.content)] = pack(Codec("raw").encode(arrays))
        return [reply]

    loop = FedAvg(**RAW, parts=[NormBound(max_norm=20.0)])
    reports = run(loop, task, rounds=2, grid=tampered(task, scale))
    assert [report.metrics["replies"] for report in reports] == [3, 4]
    assert reports[-1].metrics["rejected_payloads"] == 1


def test_coded_updates_are_bounded_too() -> None:
    with pytest.raises(RoundFailed, match=r"its update has norm .*, above max_norm=1e-06"):
        run(FedAvg(values="int8", parts=[NormBound(max_norm=1e-6)]), digits(), rounds=1)


def test_a_worker_that_lost_the_broadcast_alone_goes_on_where_it_was(tmp_path: Path) -> None:
    """Its model is sent a second time within the round, and still says which state of the worker to go on from."""
    loop = LocalSGD(values="int8")

    def forget(report: RoundReport) -> None:
        node_state._memory.clear()
        for file in tmp_path.rglob("references/*.safetensors"):
            file.unlink()

    loop.callbacks.append(forget)
    reports = run(loop, digits(), rounds=3)
    assert reports[-1].metrics["resent_models"] > 0
    assert [report.metrics["rejoined"] for report in reports] == [0, 0, 0]


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedAvg(parts=[Clip(), Clip()]), "'clip' is there twice"),
        (lambda: TopK(parts=[Masks()]), "'masks' is there twice: the method may have it by itself"),
        (lambda: Scaffold(parts=[Noise()]), "'noise' cannot stand beside 'control_variates'"),
        (lambda: DPPF(hello=True, parts=[TopKUpdate()]), "'topk_update' cannot stand beside 'mirror'"),
        (lambda: FedAvg(parts=[ServerControl()]), "say hello=True"),
        (lambda: FedAvg(hello=True, parts=[ControlVariates()]), "'control_variates' needs its side on the server"),
        (lambda: FedAvg(parts=[Mirror()]), "'mirror' needs its side on the server"),
        (lambda: FedAvg(parts=[Prune(sparsity=0.5)]), "'prune' is not registered"),
        (lambda: Compressed(FlowerFedAvg(), parts=[NormBound()]), "'norm_bound' acts on the server's mean"),
        (lambda: Compressed(FlowerFedAvg(), hello=True, parts=[ServerControl()]), "'control_variates' acts on"),
        (lambda: SplitMS(cut="2", hello=True, parts=[ServerControl()]), "'control_variates' corrects local training"),
        (lambda: MalcomPSGD(topology={"name": "ring"}, num_nodes=4, parts=[TopKUpdate()]), "'topk_update' is for"),
    ],
)
def test_parts_that_a_method_cannot_have_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_split_learning_clips_its_bottoms() -> None:
    loop = SplitMS(cut="2", steps_per_round=2, hello=True, values="raw", parts=[Clip(max_norm=1e-3)])
    *_, report = run(loop, digits(), rounds=1)
    assert report.metrics["update_norm"] > 1e-3
    assert report.metrics["failures"] == 0


# -- saved states ------------------------------------------------------------------------------------------------------


def test_a_state_of_before_parts_is_restored() -> None:
    """DPPF without control variates used to save empty ones."""
    old = {**DPPF(hello=True).state_dict(), "accepted": {"1": 4}, "once": [1], "workers": {}, "control": {}}
    loop = DPPF(hello=True)
    loop.load_state_dict(old)
    assert loop.worker_rounds.memory.accepted == {1: 4}


@pytest.mark.parametrize(
    ("make", "lost", "message"),
    [
        (lambda: DPPF(hello=True), ("accepted", "workers", "held"), "held, accepted, workers"),
        (lambda: Scaffold(), ("control",), "lacks control"),
        (lambda: MalcomPSGD(topology={"name": "ring"}, num_nodes=4), ("relay", "initial"), "initial, relay"),
    ],
)
def test_a_state_that_lacks_something_is_refused_with_all_of_it(make: Any, lost: tuple[str, ...], message: str) -> None:
    state = {key: value for key, value in make().state_dict().items() if key not in lost}
    loop = make()
    state["next_round"] = 7
    with pytest.raises(ValueError, match=message):
        loop.load_state_dict(state)
    assert loop.state_dict()["next_round"] == 1  # nothing of it was taken


def test_control_variates_are_not_restored_from_a_run_without_them() -> None:
    state = {**DPPF(hello=True).state_dict(), "control": {}}
    with pytest.raises(ValueError, match=r"lacks control.arrays, control.confirmed, control.met"):
        DPPF(hello=True, control_variates=True).load_state_dict(state)
