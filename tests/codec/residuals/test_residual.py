"""Golomb runs, the source code and the payload of a residual."""

import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flsparse.codec import PayloadError
from flsparse.codec.coders.golomb import decode_runs, decode_symbols, encode_runs, encode_symbols, golomb_parameter
from flsparse.codec.residuals.dither import Dither, entropy_bits
from flsparse.codec.residuals.residual import CODERS, ResidualCodec, Stamp, apply_residual, copy_checksum, read_stamp
from flsparse.codec.wire import Reader

SIZES = [5000, 8, 600]


def test_golomb_by_hand():
    # m = 3: run 7 = 2 * 3 + 1: unary 110, remainder 1 -> 10; run 0: unary 0, remainder 0 -> 0
    data = encode_runs(np.array([7, 0]), 3)
    assert data == bytes([3, 1, 0b11000000, 0b10000000, 0b00000000])
    assert decode_runs(Reader(data), 2, 7).tolist() == [7, 0]


@pytest.mark.parametrize("m", [1, 2, 3, 5, 8, 69])
def test_golomb_round_trip(m):
    runs = np.random.default_rng(m).geometric(1 / (m + 1), 300) - 1
    reader = Reader(encode_runs(runs, m))
    np.testing.assert_array_equal(decode_runs(reader, 300, int(runs.sum())), runs)
    reader.finish("runs")


@pytest.mark.parametrize(("count", "size", "m"), [(50, 100, 1), (25, 100, 2), (10, 100, 7), (1, 100, 69), (1, 1, 1)])
def test_golomb_parameter(count, size, m):
    assert golomb_parameter(count, size) == m


@settings(max_examples=80, deadline=None)
@given(alphabet=st.integers(1, 9), symbols=st.lists(st.integers(0, 8), max_size=200))
def test_the_source_code_round_trips(alphabet, symbols):
    vector = np.array([s % alphabet for s in symbols], np.int64)
    reader = Reader(encode_symbols(vector, alphabet))
    np.testing.assert_array_equal(decode_symbols(reader, vector.size, alphabet), vector)
    reader.finish("symbols")


def vector(scale: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal(sum(SIZES))).astype(np.float32)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("levels", [1, 2, 40])
def test_residuals_round_trip(coder, whole, levels):
    copy, x = vector(1.0), vector(1.0) + vector(0.1, 1)
    codec = ResidualCodec(SIZES, Dither(levels), whole, coder)
    payload, q = codec.encode(x, copy, Stamp(7, 12, copy_checksum(copy)), np.random.default_rng(5))
    assert read_stamp(payload) == Stamp(7, 12, copy_checksum(copy))
    new = apply_residual(payload, copy, SIZES)
    assert np.linalg.norm(x - new) < np.linalg.norm(x - copy)
    steps = [unit[unit != 0] for unit in np.split(new - copy, np.cumsum(SIZES)[:-1])]
    assert q is not None
    assert np.abs(q).max() == levels
    assert sum(each.size for each in steps) == np.count_nonzero(q)
    np.testing.assert_array_equal(apply_residual(payload, copy, SIZES), new)  # the same bits for every holder


def test_coders_decode_alike():
    copy, x = vector(1.0), vector(1.0, 3)
    decoded = []
    for coder in CODERS:
        codec = ResidualCodec(SIZES, Dither(3), coder=coder)
        payload, _ = codec.encode(x, copy, Stamp(0, 1, copy_checksum(copy)), np.random.default_rng(5))
        decoded.append(apply_residual(payload, copy, SIZES))
    np.testing.assert_array_equal(decoded[0], decoded[1])
    np.testing.assert_array_equal(decoded[0], decoded[2])


@pytest.mark.parametrize("coder", CODERS)
def test_more_groups_than_a_byte_counts(coder):
    sizes = [4096] * 257
    x = np.random.default_rng(0).standard_normal(sum(sizes)).astype(np.float32)
    x *= np.repeat(np.linspace(1, 2, 257, dtype=np.float32) ** 9, sizes)  # no two groups alike
    copy = np.zeros_like(x)
    codec = ResidualCodec(sizes, Dither(2), whole=True, coder=coder)
    payload, q = codec.encode(x, copy, Stamp(0, 1, copy_checksum(copy)), np.random.default_rng(0))
    new = apply_residual(payload, copy, sizes)
    assert q is not None
    np.testing.assert_array_equal(np.sign(new), np.sign(q))
    assert np.linalg.norm(x - new) < np.linalg.norm(x)


def test_a_dense_payload_is_the_model_itself():
    copy, x = vector(1.0), vector(1.0, 3)
    payload, q = ResidualCodec(SIZES, None).encode(x, copy, Stamp(0, 1, copy_checksum(copy)), np.random.default_rng(0))
    assert q is None
    assert len(payload) == 4 * sum(SIZES) + 11
    np.testing.assert_array_equal(apply_residual(payload, copy, SIZES), x)


@pytest.mark.parametrize(("levels", "coder"), [(2, "golomb"), (16, "rans")])
def test_coders_are_near_the_entropy(levels, coder):
    sizes = [50_000, 64, 640]
    x = np.random.default_rng(0).standard_normal(sum(sizes)).astype(np.float32)
    copy = np.zeros_like(x)
    codec = ResidualCodec(sizes, Dither(levels), coder=coder)
    payload, q = codec.encode(x, copy, Stamp(0, 1, copy_checksum(copy)), np.random.default_rng(0))
    assert q is not None
    entropy = sum(entropy_bits(part) for part in np.split(q, np.cumsum(sizes)[:-1]))
    assert 8 * len(payload) < 1.03 * entropy


def test_damage_is_a_payload_error():
    copy, x = vector(1.0), vector(1.0, 3)
    for coder in CODERS:
        codec = ResidualCodec(SIZES, Dither(2), coder=coder)
        payload, _ = codec.encode(x, copy, Stamp(0, 1, copy_checksum(copy)), np.random.default_rng(5))
        for at in range(0, len(payload), 97):
            damaged = bytearray(payload)
            damaged[at] ^= 0x10
            with pytest.raises(PayloadError):
                apply_residual(bytes(damaged), copy, SIZES)
        with pytest.raises(PayloadError, match="checksum"):
            apply_residual(payload[:-1], copy, SIZES)
        with pytest.raises(PayloadError, match="another copy"):
            apply_residual(payload, x, SIZES)
    with pytest.raises(PayloadError, match="too few"):
        read_stamp(b"")


def resealed(payload: bytes, at: int, value: int) -> bytes:
    """Change a byte and mend the checksum, as an attacker would."""
    body = bytearray(payload)
    body[at] = value
    body[1:5] = zlib.crc32(body[5:], zlib.crc32(body[:1])).to_bytes(4, "little")
    return bytes(body)


@settings(max_examples=150, deadline=None)
@given(coder=st.sampled_from(CODERS), place=st.floats(0, 1), value=st.integers(0, 255))
def test_a_hostile_payload_is_refused_or_decodes_to_finite_numbers(coder, place, value):
    copy, x = vector(1.0), vector(1.0, 3)
    codec = ResidualCodec(SIZES, Dither(2), coder=coder)
    payload, _ = codec.encode(x, copy, Stamp(0, 1, copy_checksum(copy)), np.random.default_rng(5))
    at = 11 + int(place * (min(len(payload), 200) - 12))
    with suppress(PayloadError):
        assert np.isfinite(apply_residual(resealed(payload, at, value), copy, SIZES)).all()


def test_divergence_and_unknown_coders_are_named():
    x = vector(1.0)
    x[3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity: lower"):
        ResidualCodec(SIZES, Dither(2)).encode(x, vector(1.0), Stamp(0, 1, 0), np.random.default_rng(0))
    with pytest.raises(ValueError, match="coder='zip'"):
        ResidualCodec(SIZES, Dither(2), coder="zip")
