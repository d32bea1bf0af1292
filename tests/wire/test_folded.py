"""Folded messages: everything comes back as it was, and nothing but what was folded is read."""

import json
import zlib
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from flsparse._flwr import set_identity, wire_size
from flsparse.codec import PayloadError
from flsparse.wire import folded
from flsparse.wire.folded import fold, is_folded, is_ours, unfold
from flsparse.wire.messages import OPAQUE, RECORD, pack, to_record

numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
texts = st.text(st.characters(exclude_categories=["Cs"]))


def lists(values):
    return st.lists(values, min_size=1, max_size=4)


plain = st.one_of(
    *(each | lists(each) for each in (st.integers(-9, 9), st.floats(allow_nan=False), texts, st.binary()))
)
configs = st.builds(ConfigRecord, st.dictionaries(texts, plain | st.booleans(), max_size=4))
metrics = st.builds(MetricRecord, st.dictionaries(texts, numbers | lists(st.floats(allow_nan=False)), max_size=4))
payloads = st.builds(pack, st.binary(max_size=99), st.sampled_from(["flsparse.v1", OPAQUE]))
tensors = st.just(to_record({"w": np.arange(6.0)}))
contents = st.dictionaries(texts, configs | metrics | payloads | tensors, max_size=5)


@given(contents)
def test_a_content_comes_back_as_it_was(records):
    records.pop(RECORD, None)
    content = RecordDict({**records, RECORD: ConfigRecord({"round": 3, "blueprint": b"abc"})})
    assert is_ours(content)
    assert not is_folded(content)
    travels = fold(content)
    assert is_folded(travels)
    assert unfold(travels) == content
    assert {type(v) for r in unfold(travels).values() for v in r.values()} == {
        type(v) for r in content.values() for v in r.values()
    }


def test_what_is_no_number_comes_back_too():
    content = RecordDict({"metrics": MetricRecord({"loss": float("nan"), "most": float("inf")})})
    found = unfold(fold(content))["metrics"]
    assert str(found["loss"]) == "nan"
    assert found["most"] == float("inf")


def test_large_payloads_and_tensors_stay_records_that_are_sent_in_chunks():
    large, settings = pack(bytes(folded.LARGEST + 1)), ConfigRecord({"lr": 0.5})
    content = RecordDict({"arrays": large, "config": settings, "mine": to_record({"w": np.ones(2)})})
    travels = fold(content)
    assert set(travels) == {RECORD, "arrays", "mine"}
    assert unfold(travels) == content
    assert set(fold(RecordDict({"arrays": pack(bytes(folded.LARGEST))}))) == {RECORD}


def test_settings_of_megabytes_stay_records() -> None:
    content = RecordDict(
        {"config": ConfigRecord({"words": ["seven letters" * 40] * 9000}), RECORD: ConfigRecord({"round": 1})}
    )
    assert fold(content) is content
    assert not is_folded(content)


def test_a_folded_message_is_no_larger_than_its_payload_and_four_hundred_bytes():
    set_identity(1)
    said: dict[str, Any] = {"hold": True, "values": "int4", "rounding": "nearest", "seed": 0, "round": 17, "node": 42}
    method: dict[str, Any] = {
        "method": "sparsyfed",
        "method.sparsity": 0.92,
        "method.scope": "global",
        "method.beta": 1.25,
    }
    config: dict[str, Any] = {
        "lr": 0.13,
        "lr-final": 0.0062,
        "lr-schedule": "geometric",
        "batch-size": 32,
        "local-epochs": 1,
    }
    payload = np.random.default_rng(0).bytes(700)
    content = RecordDict(
        {
            "arrays": pack(payload),
            "config": ConfigRecord({**config, "server-round": 17, "num-rounds": 60}),
            RECORD: ConfigRecord({**said, **method, "reference": "7a6d0f27cbc54e7f4d5e169fd0044e23"}),
        }
    )
    as_records, in_one = (wire_size(Message(each, 1, "train")) for each in (content, fold(content)))
    assert in_one - len(payload) <= 400 < (as_records - len(payload)) / 3


def blob_of(rows, data=b""):
    deflater = zlib.compressobj(9, wbits=-15, zdict=folded.DICTIONARY)
    text = rows if isinstance(rows, bytes) else json.dumps(rows).encode()
    return RecordDict({RECORD: ConfigRecord({folded.VERSION: deflater.compress(text) + deflater.flush() + data})})


def with_array(stype, size):
    return blob_of([["arrays", "a", {"payload": [stype, size]}]], b"1234")


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({RECORD: ConfigRecord({"2": b"from the future"})}),
        RecordDict({RECORD: ConfigRecord({folded.VERSION: "text"})}),
        RecordDict({RECORD: ConfigRecord({folded.VERSION: b""})}),
        RecordDict({RECORD: ConfigRecord({folded.VERSION: b"\xff" * 9})}),
        blob_of(b"[" * 100_000),
        blob_of(b'["config", "c"'),
        blob_of(b"\xff\xfe"),
        blob_of({"config": 1}),
        blob_of([["config", "c"]]),
        blob_of([["config", "x", {}]]),
        blob_of([["config", [], {}]]),
        blob_of([[1, "c", {}]]),
        blob_of([["config", "c", []]]),
        blob_of([["config", "c", {"lr": None}]]),
        blob_of([["config", "c", {"lr": {"b": 5}}]]),
        blob_of([["config", "c", {"lr": {"b": -1}}]]),
        blob_of([["config", "c", {"lr": {"b": 1.0}}]]),
        blob_of([["config", "c", {"lr": {}}]]),
        blob_of([["config", "c", {"lr": [[1]]}]]),
        blob_of([["config", "c", {"lr": [1, "x"]}]]),
        blob_of([["config", "c", {"lr": "\ud800"}]]),
        blob_of([["metrics", "m", {"loss": "low"}]]),
        blob_of([], b"more"),
        with_array("flsparse.v1", 3),
        with_array("flsparse.v1", 5),
        with_array("numpy.ndarray", 4),
        with_array(None, 4),
        blob_of([["arrays", "a", {"payload": 4}]], b"1234"),
        RecordDict({**blob_of([["arrays", "c", {}]]), "arrays": ArrayRecord({"w": Array(np.ones(2))})}),
        blob_of(b"[" + b" " * (1 << 22) + b"]"),
    ],
)
def test_what_was_not_folded_here_is_refused_in_a_line(content):
    assert is_folded(content)
    with pytest.raises(PayloadError, match="folded") as caught:
        unfold(content)
    assert "\n" not in str(caught.value)


@given(st.data())
def test_a_damaged_message_is_refused_or_read_and_never_more(data):
    content = RecordDict({"arrays": pack(b"1234"), RECORD: ConfigRecord({"round": 3, "held": "ab"})})
    blob = bytearray(cast("bytes", fold(content).config_records[RECORD][folded.VERSION]))
    for _ in range(data.draw(st.integers(1, 3))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    blob = blob[: data.draw(st.integers(0, len(blob)))]
    try:
        found = unfold(RecordDict({RECORD: ConfigRecord({folded.VERSION: bytes(blob)})}))
    except PayloadError:
        return
    assert all(isinstance(record, ArrayRecord | ConfigRecord | MetricRecord) for record in found.values())
