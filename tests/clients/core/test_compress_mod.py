"""CompressMod around an app's own functions."""

import numpy as np
import pytest
from federation_kit import payload_of
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flsparse._flwr import set_identity
from flsparse.clients import CompressMod, Limits, TopKMod
from flsparse.codec import Codec, PayloadError, Reference, decode, specs_of
from flsparse.wire.messages import RECORD, Blueprint, pack, packed_payload, record_of, to_numpy, to_record

ARRAYS = {
    "w": np.linspace(-1, 1, 600, dtype=np.float32).reshape(20, 30),
    "b": np.linspace(0, 1, 20, dtype=np.float32),
    "steps": np.array(7),
}
UPDATE = 0.1


@pytest.fixture(autouse=True)
def _home(monkeypatch, tmp_path):
    monkeypatch.setenv("FLSPARSE_STATE_DIR", str(tmp_path))
    set_identity(run_id=1)


@pytest.fixture
def context():
    return Context(run_id=1, node_id=5, node_config={}, state=RecordDict(), run_config={})


def message(arrays=ARRAYS, reference=None, **asked):
    codec = Codec(values="int8")
    payload = codec.encode(arrays, reference=reference)
    record = {"reference": reference.id if reference else "", "hold": True, "values": "int8", "rounding": "nearest"}
    record |= {"seed": 0, "round": 1, "node": 0} | asked
    if not reference:
        record["blueprint"] = Blueprint(specs_of(arrays), ["w"]).to_bytes()
    content = RecordDict({"arrays": pack(payload), "config": ConfigRecord(), RECORD: ConfigRecord(record)})
    decoded = Reference(decode(payload, like=specs_of(arrays), reference=reference))
    return Message(content, 5, "train"), decoded


def app(mod, seen=None):
    client = ClientApp(mods=[mod])

    @client.train()
    def train(message, context):
        arrays = to_numpy(message.content["arrays"])
        if seen is not None:
            seen.append(arrays)
        trained = {n: a + np.asarray(UPDATE, a.dtype) if a.dtype.kind == "f" else a + 1 for n, a in arrays.items()}
        return Message(
            RecordDict({"arrays": to_record(trained), "metrics": MetricRecord({"num-examples": 3})}), reply_to=message
        )

    return client


def test_the_app_sees_plain_arrays_and_the_server_gets_the_update(context):
    seen: list[dict[str, np.ndarray]] = []
    asked, received = message()
    reply = app(CompressMod(), seen)(asked, context)
    for name, array in seen[0].items():
        np.testing.assert_array_equal(array, received.arrays[name])
    update = decode(payload_of(reply), like=received.specs, reference=received)
    np.testing.assert_allclose(update["w"] - received.arrays["w"], UPDATE, rtol=0.02)
    assert update["steps"] == 8
    assert "held" not in record_of(reply.content)  # it holds what it was sent
    assert reply.content["metrics"]["encode-ms"] > 0


def test_a_delta_needs_the_reference_it_was_coded_against(context):
    asked, first = message()
    app(CompressMod())(asked, context)
    moved = {name: array + array.dtype.type(1) for name, array in first.arrays.items()}
    delta, second = message(moved, reference=first)
    seen: list[dict[str, np.ndarray]] = []
    app(CompressMod(), seen)(delta, context)
    np.testing.assert_array_equal(seen[0]["w"], second.arrays["w"])

    stranger = Context(run_id=1, node_id=6, node_config={}, state=RecordDict(), run_config={})
    delta, _ = message(moved, reference=first)
    reply = app(CompressMod())(delta, stranger)
    assert record_of(reply.content)["status"] == "missing-reference"
    assert packed_payload(reply.content) is None


def test_error_feedback_sends_later_what_the_coding_lost(context):
    mod, total = CompressMod(error_feedback=True), 0
    for _ in range(30):
        asked, received = message(values="int4")
        reply = app(mod)(asked, context)
        update = decode(payload_of(reply), like=received.specs, reference=received)
        total = total + (update["w"] - received.arrays["w"])
    np.testing.assert_allclose(total / 30, UPDATE, rtol=0.02)


@pytest.mark.parametrize("limits", [Limits(max_payload_bytes=10), Limits(max_memory_bytes=1000)])
def test_the_owners_limits_hold(context, limits):
    asked, _ = message()
    with pytest.raises(ValueError, match="this device's owner set max_"):
        app(CompressMod(limits=limits))(asked, context)


def test_a_bad_broadcast_is_a_payload_error(context):
    asked, _ = message()
    asked.content["arrays"] = pack(payload_of(asked)[:-5])
    with pytest.raises(PayloadError):
        app(CompressMod())(asked, context)


def test_messages_of_other_strategies_pass_untouched(context):
    plain = Message(RecordDict({"arrays": to_record(ARRAYS), "config": ConfigRecord()}), 5, "train")
    reply = app(CompressMod())(plain, context)
    np.testing.assert_allclose(to_numpy(reply.content["arrays"])["b"], ARRAYS["b"] + np.float32(UPDATE))


def test_topk_mod_prunes_what_the_server_named(context):
    asked, received = message(**{"method.sparsity": 0.75, "method.scope": "global"})
    reply = app(TopKMod())(asked, context)
    update = decode(payload_of(reply), like=received.specs, reference=received)
    assert np.count_nonzero(update["w"]) == 150
    assert np.count_nonzero(update["b"]) >= 19


def test_an_app_that_drops_arrays_names_those_that_it_sends(context):
    client = ClientApp(mods=[CompressMod()])

    @client.train()
    def train(message, context):
        return Message(
            RecordDict({"arrays": to_record({"w": ARRAYS["w"]}), "metrics": MetricRecord({})}), reply_to=message
        )

    asked, _ = message()
    reply = client(asked, context)
    said = Blueprint.from_bytes(record_of(reply.content)["blueprint"])
    assert list(said.specs) == ["w"]
