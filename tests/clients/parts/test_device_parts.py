"""Parts of the device one by one, on updates made by hand."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from flsparse._flwr import set_identity
from flsparse.clients import CompressMod, NodeState
from flsparse.clients.core.compress import coded_update
from flsparse.clients.core.part import Leaving, Part, Way, asked_entries, asked_parts, check_parts
from flsparse.clients.parts.clip import Clip
from flsparse.clients.parts.control import ControlVariates
from flsparse.clients.parts.mirror import Mirror
from flsparse.clients.parts.noise import Noise
from flsparse.clients.parts.prune import Prune
from flsparse.clients.parts.topk_update import TopKUpdate
from flsparse.codec import Reference, decode
from flsparse.nets.arrays import Arrays
from flsparse.wire.messages import CONTROL

RNG = np.random.default_rng(0)


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> NodeState:
    monkeypatch.setenv("FLSPARSE_STATE_DIR", str(tmp_path))
    set_identity(run_id=1)
    return NodeState(Context(run_id=1, node_id=5, node_config={}, state=RecordDict(), run_config={}))


def model() -> Arrays:
    """Return a layer, a batch norm with its statistics and a counter."""
    return {
        "w": RNG.standard_normal((30, 40)).astype(np.float32),
        "b": RNG.standard_normal(30).astype(np.float32),
        "bn.running_mean": RNG.standard_normal(30).astype(np.float32),
        "bn.running_var": np.ones(30, np.float32),
        "bn.num_batches_tracked": np.array(3),
    }


def moved(arrays: Mapping[str, np.ndarray], by: float = 0.1) -> Arrays:
    """Return arrays changed at random, the counter by 1."""
    return {
        n: (a + by * RNG.standard_normal(a.shape)).astype(a.dtype) if a.dtype.kind == "f" else a + 1
        for n, a in arrays.items()
    }


def leaving(state: NodeState, received: Arrays, *, server_round: int = 1, values: str = "raw") -> Leaving:
    return Leaving(Reference(received), ["w"], state, values, 0, server_round, 0, {})


def sent(parts: list[Part], trained: Arrays, on_its_way: Leaving) -> Arrays:
    """Return an update as the server reads it."""
    way = Way(parts, on_its_way)
    payload = coded_update(trained, way, "nearest", on_its_way.stream("rounding"))
    reference = None if on_its_way.values == "raw" else way.base
    return decode(payload, like=trained, reference=reference)


def norm(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], names: tuple[str, ...] = ("w", "b")) -> float:
    return math.sqrt(sum(float(np.square(a[n].astype(np.float64) - b[n]).sum()) for n in names))


def same(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return list(a) == list(b) and all(a[n].dtype == b[n].dtype and a[n].tobytes() == b[n].tobytes() for n in a)


# -- clip --------------------------------------------------------------------------------------------------------------


def test_a_clipped_update_has_the_norm_and_its_direction(state: NodeState) -> None:
    received = model()
    trained, way = moved(received), leaving(state, received)
    out = Clip(max_norm=0.5).outgoing(trained, way, way.received)
    assert way.metrics["update-norm"] == pytest.approx(norm(trained, received), rel=1e-12)
    assert norm(out, received) == pytest.approx(0.5, rel=1e-6)
    for name in ("w", "b"):
        factor = 0.5 / norm(trained, received)
        np.testing.assert_allclose(out[name] - received[name], factor * (trained[name] - received[name]), atol=1e-6)


def test_clipping_leaves_statistics_counters_and_control_variates_alone(state: NodeState) -> None:
    received = model() | {CONTROL + "w": np.ones((30, 40), np.float32)}
    trained, way = moved(received, by=10.0), leaving(state, received)
    out = Clip(max_norm=0.5).outgoing(trained, way, way.received)
    for name in set(trained) - {"w", "b"}:
        assert out[name] is trained[name]


def test_a_short_update_passes_unchanged(state: NodeState) -> None:
    received = model()
    trained, way = moved(received), leaving(state, received)
    assert Clip(max_norm=norm(trained, received) * 1.001).outgoing(trained, way, way.received) is trained


# -- noise -------------------------------------------------------------------------------------------------------------


def test_noise_is_gaussian_of_the_asked_deviation_and_zeros_stay(state: NodeState) -> None:
    received = {"w": np.zeros((400, 250), np.float32)}
    trained = {"w": np.ones((400, 250), np.float32)}
    trained["w"][:, :50] = 0
    way = leaving(state, received)
    out, again = (Noise(std=0.2).outgoing(trained, way, way.received)["w"] for _ in range(2))
    assert not out[:, :50].any()
    drawn = out[:, 50:].astype(np.float64).ravel() - 1  # 8e4 draws; limits are five standard errors
    assert abs(drawn.mean()) < 5 * 0.2 / math.sqrt(drawn.size)
    assert drawn.std() == pytest.approx(0.2, rel=5 / math.sqrt(2 * drawn.size))
    assert np.mean(np.abs(drawn) < 0.2) == pytest.approx(0.6827, abs=5 * 0.47 / math.sqrt(drawn.size))
    assert not np.array_equal(out, again)  # a seed would let the server take the noise out


def test_noise_spares_statistics_and_counters(state: NodeState) -> None:
    trained = model()
    way = leaving(state, trained)
    out = Noise(std=1.0).outgoing(trained, way, way.received)
    assert {name for name in trained if out[name] is not trained[name]} == {"w", "b"}


# -- order -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turned", [False, True])
def test_parts_act_in_their_declared_order_whatever_the_lists(state: NodeState, turned: bool) -> None:
    parts: list[Part] = [Clip(), Noise(), Prune(sparsity=0.5), TopKUpdate(), Mirror()]
    way = Way(parts[::-1] if turned else parts, leaving(state, model()))
    assert [part.name for part in way.parts] == ["clip", "noise", "prune", "topk_update", "mirror"]


def test_noise_comes_after_the_clip(state: NodeState) -> None:
    received = model()
    way = leaving(state, received)
    out = sent([Noise(std=1.0), Clip(max_norm=1e-3)], moved(received), way)
    assert norm(out, received) > 10  # noise before the clip would have been clipped with the rest


# -- sparse updates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.05, 0.5])
def test_no_more_weights_change_than_the_density_says_and_the_largest_do(state: NodeState, density: float) -> None:
    received = model()
    trained = moved(received)
    out = sent([TopKUpdate(density=density)], trained, leaving(state, received))
    changed = out["w"] != received["w"]
    assert changed.sum() == round(density * changed.size)
    change = np.abs(trained["w"] - received["w"])
    assert change[changed].min() >= change[~changed].max()
    assert same({n: out[n] for n in out if n != "w"}, {n: trained[n] for n in trained if n != "w"})


@pytest.mark.parametrize("values", ["raw", "fp32", "int4"])
def test_what_is_sent_and_the_residual_are_all_changes_together(state: NodeState, values: str) -> None:
    received = model()
    changes = {name: np.zeros(received[name].shape) for name in ("w", "b")}
    told = {name: np.zeros(received[name].shape) for name in ("w", "b")}
    for server_round in range(1, 9):
        trained = moved(received)
        way = leaving(state, received, server_round=server_round, values=values)
        out = sent([TopKUpdate(density=0.1, decay=1.0)], trained, way)
        for name in changes:
            changes[name] += trained[name].astype(np.float64) - received[name]
            told[name] += out[name].astype(np.float64) - received[name]
        received = {name: np.array(array) for name, array in out.items()}
    residual = state.get("residual")
    assert residual is not None
    for name, change in changes.items():
        np.testing.assert_allclose(told[name] + residual[name], change, atol=2e-5)


def test_decay_0_keeps_nothing(state: NodeState) -> None:
    received = model()
    sent([TopKUpdate(density=0.1, decay=0.0)], moved(received), leaving(state, received))
    assert state.get("residual") is None
    assert "residual-round" not in state.values


@pytest.mark.parametrize("rounds", [1, 7, 400])
def test_the_residual_of_a_node_that_is_seldom_sampled_decays_by_the_rounds_between(
    state: NodeState, rounds: int
) -> None:
    received, part = model(), TopKUpdate(density=0.1, decay=0.5)
    sent([part], moved(received), leaving(state, received))
    before = state.get("residual")
    assert before is not None
    sent([part], received, leaving(state, received, server_round=1 + rounds))  # an update of 0: the residual alone
    after = state.get("residual")
    assert after is not None
    kept = after["w"] != 0
    np.testing.assert_allclose(after["w"][kept], 0.5**rounds * before["w"][kept], atol=1e-6)


def test_a_residual_that_outlived_its_round_decays_once(state: NodeState) -> None:
    """A run resumed from an older checkpoint counts rounds that its nodes have seen already."""
    received, part = model(), TopKUpdate(density=0.1, decay=0.5)
    sent([part], moved(received), leaving(state, received, server_round=9))
    before = state.get("residual")
    assert before is not None
    out = sent([part], received, leaving(state, received, server_round=4))
    assert np.abs(out["w"] - received["w"]).max() == pytest.approx(0.5 * np.abs(before["w"]).max(), rel=1e-3)


def test_the_residual_of_pruned_weights_is_dropped(state: NodeState) -> None:
    received = model()
    sent([TopKUpdate(density=0.1, decay=1.0)], moved(received), leaving(state, received))
    pruned = moved(received)
    pruned["w"][::2] = 0
    out = sent([TopKUpdate(density=0.1, decay=1.0)], pruned, leaving(state, received, server_round=2))
    residual = state.get("residual")
    assert residual is not None
    assert not out["w"][::2].any()
    assert not residual["w"][::2].any()


def test_a_fit_that_fails_before_its_update_is_coded_changes_no_residual(state: NodeState) -> None:
    received, part = model(), TopKUpdate(density=0.1)
    sent([part], moved(received), leaving(state, received))
    before = state.get("residual")
    assert before is not None
    Way([part], leaving(state, received, server_round=2)).outgoing(moved(received))
    after = state.get("residual")
    assert after is not None
    assert same(before, after)


# -- parts in messages -------------------------------------------------------------------------------------------------


def test_parts_travel_as_plain_values() -> None:
    parts: list[Part] = [Clip(max_norm=2.0), TopKUpdate(density=0.25, decay=0.5)]
    record: dict[str, object] = {}
    for part in parts:
        record |= asked_entries(part)
    assert asked_parts(record | {"parts": "clip,topk_update", "method": "fedavg"}) == parts


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"parts": "clop"}, "parts='clop' is none of .*; did you mean clip"),
        ({"parts": "clip", "clip.norm": 1.0}, "clip"),
        ({"parts": "clip", "clip.max_norm": "1"}, "is not a number"),
        ({"parts": "noise", "noise.std": 0.0}, r"std=0.0 is not in \(0, inf\)"),
        ({"parts": "prune"}, "is none of"),
    ],
)
def test_a_part_that_makes_no_sense_is_refused(record: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asked_parts(record)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([Clip(), Clip(max_norm=2.0)], "'clip' is there twice"),
        ([Noise(), ControlVariates()], "'noise' cannot stand beside 'control_variates'"),
        ([Mirror(), TopKUpdate()], "'topk_update' cannot stand beside 'mirror'"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(parts: list[Part], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_parts(parts)


def test_error_feedback_of_the_mod_is_the_part_with_everything_sent() -> None:
    mod = CompressMod(error_feedback=True)
    asked = {**asked_entries(Clip())}
    assert mod.parts(asked)[1:] == [TopKUpdate(density=1.0, decay=1.0)]  # type: ignore[arg-type]
    for own in (TopKUpdate(density=0.5), Mirror(density=0.5)):  # a mirror sends later what it has not sent
        assert mod.parts(asked_entries(own)) == [own]  # type: ignore[arg-type]
