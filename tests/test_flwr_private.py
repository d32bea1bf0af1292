"""The round trip and the byte count of Flower's messages, outside any runtime."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from flsparse import _flwr


@pytest.fixture(autouse=True)
def _identity() -> None:
    _flwr.set_identity(run_id=7)


def message_of(*arrays: np.ndarray) -> Message:
    content = RecordDict(
        {
            "arrays": ArrayRecord(list(arrays)),
            "config": ConfigRecord({"server-round": 3, "name": "x", "raw": b"\0\1"}),
            "metrics": MetricRecord({"loss": 0.25, "list": [1, 2]}),
        }
    )
    return Message(content, dst_node_id=11, message_type="train")


def test_through_wire_rebuilds_content_and_metadata() -> None:
    arrays: list[np.ndarray]
    arrays = [np.arange(12, dtype=np.float32).reshape(3, 4), np.array(5, np.int64), np.empty(0, np.float16)]
    sent = message_of(*arrays)
    got = _flwr.through_wire(sent)
    assert got is not sent
    assert got.content["config"] == sent.content["config"]
    assert got.content["metrics"] == sent.content["metrics"]
    for before, after in zip(arrays, got.content.array_records["arrays"].to_numpy_ndarrays(), strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)
    assert (got.metadata.run_id, got.metadata.dst_node_id, got.metadata.message_type) == (7, 11, "train")
    assert got.metadata.message_id == _flwr.deflate(sent)[0]


def test_errors_and_replies_go_through() -> None:
    instruction = _flwr.through_wire(message_of(np.ones(3)))
    got = _flwr.through_wire(Message(Error(code=2, reason="broken"), reply_to=instruction))
    assert (got.error.code, got.error.reason) == (2, "broken")
    assert got.metadata.reply_to_message_id == instruction.metadata.message_id
    assert 0 < _flwr.wire_size(got) < 500


def test_wire_size_is_payload_and_framing_and_counts_equal_arrays_once() -> None:
    small, large = message_of(np.zeros(0, np.uint8)), message_of(np.arange(100_000, dtype=np.uint8))
    assert 100_000 < _flwr.wire_size(large) - _flwr.wire_size(small) < 100_400
    once, twice = message_of(np.ones(50_000)), message_of(np.ones(50_000), np.ones(50_000))
    assert _flwr.wire_size(twice) - _flwr.wire_size(once) < 500


def test_arrays_over_a_chunk_are_whole() -> None:
    array = np.random.default_rng(0).integers(0, 255, 6 * 2**20, dtype=np.uint8)
    message = message_of(array)
    assert _flwr.wire_size(message) > array.nbytes
    np.testing.assert_array_equal(_flwr.through_wire(message).content.array_records["arrays"]["0"].numpy(), array)


def test_records_round_trip() -> None:
    records = RecordDict({"a": ConfigRecord({"x": b"\xff" * 10}), "b": ArrayRecord([np.arange(4)])})
    got = _flwr.unpack_records(_flwr.pack_records(records))
    assert got["a"] == records["a"]
    np.testing.assert_array_equal(got.array_records["b"]["0"].numpy(), np.arange(4))
