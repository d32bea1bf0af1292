"""What a hostile or broken server may ask of a device: one error, before any training, and the device goes on."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flsparse.clients import CompressMod
from flsparse.codec import Codec, Reference, specs_of
from flsparse.runtime import InProcessGrid
from flsparse.wire.messages import RECORD, Blueprint, pack, to_numpy

ARRAYS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3) + 0.5, "mask": np.array([0, -np.inf], np.float32)}
GOOD = {
    "hold": True,
    "values": "fp32",
    "rounding": "nearest",
    "seed": 0,
    "round": 1,
    "node": 0,
    "blueprint": Blueprint(specs_of(ARRAYS, ["mask"]), ["w"]).to_bytes(),
}


class Device:
    """One node, and a list of the models that its app has trained."""

    def __init__(self, mods=None):
        self.trained: list[dict[str, np.ndarray]] = []
        app = ClientApp(mods=mods or [CompressMod()])

        @app.train()
        def _train(message, _):
            self.trained.append(to_numpy(message.content["arrays"]))
            content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})})
            return Message(content, reply_to=message)

        self.grid = InProcessGrid(app, 1)

    def ask(self, payload, **said):
        record = {key: value for key, value in {**GOOD, **said}.items() if value is not None}
        content = RecordDict({"arrays": pack(payload), "config": ConfigRecord({}), RECORD: ConfigRecord(record)})
        (reply,) = self.grid.send_and_receive([Message(content, next(iter(self.grid.get_node_ids())), "train")])
        return reply

    def is_well(self):
        reply = self.ask(Codec("fp32").encode(ARRAYS, exact=["mask"]))
        assert not reply.has_error()
        np.testing.assert_array_equal(self.trained.pop()["mask"], ARRAYS["mask"])
        assert RECORD not in reply.content  # it holds what it was sent


@pytest.mark.parametrize(
    "said",
    [
        {"blueprint": None},
        {"blueprint": "text"},
        {"blueprint": Blueprint(specs_of(ARRAYS), ["w"]).to_bytes()},
        {"blueprint": Blueprint(specs_of(ARRAYS, ["w", "mask"]), []).to_bytes()},
        {"blueprint": Blueprint(specs_of({"w": np.zeros((3, 2), np.float32)}), []).to_bytes()},
        {"records": "arrays"},
        {"records": [1]},
        {"records": ["arrays", "config"]},
        {"records": ["arrays", "arrays"]},
        {"records": ["elsewhere"]},
        {"seed": None},
        {"seed": "0"},
        {"round": 1.5},
        {"node": [1]},
        {"values": "int5"},
        {"values": 4},
        {"rounding": "up"},
        {"rounding": [1]},
        {"parts": "mystery"},
        {"parts": "clip", "clip.max_norm": "x"},
        {"reference": "../../x"},
    ],
    ids=str,
)
def test_a_bad_question_is_one_error_before_the_training(said):
    device = Device()
    reply = device.ask(Codec("fp32").encode(ARRAYS, exact=["mask"]), **said)
    assert reply.has_error()
    assert not device.trained
    assert "KeyError" not in reply.error.reason
    device.is_well()


@pytest.mark.parametrize("reference", [1, "0" * 32, [1]])
def test_a_reference_that_is_not_there_is_asked_for_or_refused(reference):
    device = Device()
    device.is_well()
    reply = device.ask(Codec("fp32").encode(ARRAYS, exact=["mask"]), reference=reference, blueprint=None)
    assert reply.has_error() or reply.content[RECORD]["status"] == "missing-reference"
    assert not device.trained
    device.is_well()


def test_a_delta_against_a_reference_with_exact_arrays_is_taken():
    device = Device()
    device.is_well()
    reference = Reference(ARRAYS, ["mask"])
    moved = {**ARRAYS, "w": ARRAYS["w"] * np.float32(2)}
    payload = Codec("fp32").encode(moved, reference=reference, exact=["mask"])
    assert not device.ask(payload, reference=reference.id, blueprint=None).has_error()
    np.testing.assert_array_equal(device.trained[0]["w"], moved["w"])


def test_the_mod_twice_is_the_mod_once():
    once, twice = Device(), Device([CompressMod(), CompressMod()])
    payload = Codec("fp32").encode(ARRAYS, exact=["mask"])
    one, two = (device.ask(payload).content["arrays"]["payload"].data for device in (once, twice))
    assert one == two
