"""The codec's parts, with numbers worked out by hand."""

import subprocess
import sys

import numpy as np
import pytest

from flsparse.codec import (
    Accumulator,
    ArraySpec,
    Codec,
    Layer,
    PayloadError,
    Reference,
    decode,
    decode_layers,
    payload_info,
    specs_of,
    steps,
)
from flsparse.codec.coders import bits, gaps, grouped, integers, rans, tables, zstd
from flsparse.codec.wire import Reader, Writer, checksum


def test_import_needs_neither_torch_nor_flwr():
    code = "import sys, flsparse.codec; print([m for m in ('torch', 'flwr', 'scipy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_varint_is_seven_bits_a_byte_low_first():
    writer = Writer()
    for value in (0, 127, 128, 300):
        writer.varint(value)
    assert writer.done().hex() == "007f8001ac02"
    reader = Reader(writer.done())
    assert [reader.varint(300) for _ in range(4)] == [0, 127, 128, 300]
    reader.finish("the test")


@pytest.mark.parametrize("data", [b"\x80\x00", b"\xff" * 10, b"\x80", b"\xad\x02"])
def test_bad_varints_are_refused(data):
    with pytest.raises(PayloadError):
        Reader(data).varint(300)


def test_bits_pack_most_significant_first():
    assert bits.pack(np.array([5, 1, 7]), 3) == bytes([0b10100111, 0b10000000])
    assert bits.unpack(Reader(bytes([0b10100111, 0b10000000])), 3, 3).tolist() == [5, 1, 7]
    with pytest.raises(PayloadError, match="padding"):
        bits.unpack(Reader(bytes([0b10100111, 0b10000001])), 3, 3)


@pytest.mark.parametrize("width", [1, 3, 8, 13, 40])
def test_bits_round_trip_across_chunks(width):
    fields = np.random.default_rng(0).integers(0, 2**width, 70_001).astype(np.uint64)
    packed = bits.pack(fields, width)
    assert len(packed) == -(-70_001 * width // 8)
    np.testing.assert_array_equal(bits.unpack(Reader(packed), fields.size, width), fields)


def test_rice_by_hand():
    # k = 1: 0 -> 0|0, 3 -> 10|1, 4 -> 110|0
    packed = bits.rice_pack(np.array([0, 3, 4]), 1)
    assert packed == bytes([0b00101110, 0b00000000])
    assert bits.rice_unpack(Reader(packed), 3, 1, 4) == [0, 3, 4]
    with pytest.raises(PayloadError):
        bits.rice_unpack(Reader(b"\xff" * 4), 1, 1, 4)


def test_frequencies_sum_to_the_total_and_keep_rare_symbols():
    weights = np.array([10**9, 1, 0, 1])
    frequencies = tables.normalize(weights)
    assert frequencies.tolist() == [tables.TOTAL - 2, 1, 0, 1]
    crowded = tables.normalize(np.array([1] * 200 + [10**6] * 56))
    assert crowded.sum() == tables.TOTAL
    assert crowded.min() == 1


def test_tables_come_back_as_chosen():
    rng = np.random.default_rng(0)
    for counts in (rng.integers(0, 1000, 255), np.bincount(np.abs(rng.normal(0, 9, 5000)).astype(int), minlength=255)):
        table = tables.choose(counts, signed=True)
        np.testing.assert_array_equal(tables.read(Reader(table.spec), 255, signed=True), table.frequencies)


@pytest.mark.parametrize("scale", [0.3, 3.0, 30.0])
@pytest.mark.parametrize("size", [1, 40, 3000, 100_000])
def test_a_chosen_table_knows_its_bits_and_none_comes_below_the_least(size, scale):
    rng = np.random.default_rng(size)
    counts = np.bincount(np.clip(np.rint(scale * rng.laplace(size=size)), -60, 60).astype(int) + 60, minlength=121)
    guess = tables.normalize(counts + 1)
    for signed, given in ((True, None), (False, None), (False, guess), (True, guess)):
        table = tables.choose(counts, signed=signed, given=given)
        assert table.bits == 8 * len(table.spec) + tables.cost_bits(counts, table.frequencies)
        assert tables.least_bits(counts) <= table.bits - 8 * len(table.spec)
        read = tables.read(Reader(table.spec), 121, signed=signed, given=given)
        np.testing.assert_array_equal(read, table.frequencies)


def test_rows_of_tables_are_normalized_as_each_alone():
    weights = np.random.default_rng(0).integers(0, 50, (20, 255)) ** 3
    weights[3, 1:] = 0
    rows = tables.normalize(weights)
    assert all((row == tables.normalize(own)).all() for row, own in zip(rows, weights, strict=True))
    assert (rows.sum(axis=1) == tables.TOTAL).all()


@pytest.mark.parametrize("count", [1, 60, 5000, 12 * 1024 + 1, 200_000])
@pytest.mark.parametrize("rows", [512, 1024])
def test_a_stream_is_not_below_its_least(count, rows):
    rng = np.random.default_rng(count)
    data = np.minimum(rng.geometric(0.4, count) - 1, 9)
    frequencies = tables.normalize(np.bincount(data, minlength=10) + 1)
    bits_of = tables.cost_bits(np.bincount(data, minlength=10), frequencies)
    size = len(rans.encode(data, frequencies[None], rows=rows))
    assert rans.least(bits_of, count, rows) <= size <= 1.02 * bits_of / 8 + 8 + 4 * rans.lane_count(count, rows)


def test_geometric_table_is_near_the_truth():
    frequencies = tables.geometric(np.array([0, 1, 2, 3, 10**6]), 4, 1)
    np.testing.assert_allclose(frequencies / tables.TOTAL, [0.25, 0.1875, 0.140625, 0.421875], atol=2e-4)


@pytest.mark.parametrize("count", [1, 2, 1000, 12 * 1024, 12 * 1024 + 1, 50_001])
def test_rans_reaches_the_entropy(count):
    rng = np.random.default_rng(count)
    data = np.minimum(rng.geometric(0.4, count) - 1, 9).astype(np.uint8)
    which = rng.integers(0, 2, count).astype(np.uint8)
    frequencies = np.array([tables.normalize(np.bincount(data[which == t], minlength=10) + 1) for t in (0, 1)])
    coded = rans.encode(data, frequencies, which)
    np.testing.assert_array_equal(rans.decode(Reader(coded), count, frequencies, which), data)
    ideal = sum(tables.cost_bits(np.bincount(data[which == t], minlength=10), frequencies[t]) for t in (0, 1)) / 8
    assert len(coded) <= ideal + 4 + 4 * rans.lane_count(count)


def test_rans_refuses_a_changed_stream():
    frequencies = tables.normalize(np.array([5, 3, 1]))[None]
    coded = rans.encode(np.array([0, 1, 2, 0, 0, 1] * 50, np.uint8), frequencies)
    for at in range(1, len(coded)):
        damaged = coded[:at] + bytes([coded[at] ^ 0x10]) + coded[at + 1 :]
        with pytest.raises(PayloadError):
            rans.decode(Reader(damaged), 300, frequencies)


def test_one_symbol_alphabet_costs_nothing_per_symbol():
    frequencies = np.array([[tables.TOTAL, 0]])
    coded = rans.encode(np.zeros(10_000, np.uint8), frequencies)
    assert len(coded) == 1 + 4


@pytest.mark.parametrize("top", [0, 1, 7, 127, 128, 2047])
def test_integers_of_any_width(top):
    q = np.random.default_rng(top).integers(-top, top + 1, 3000).astype(np.int16)
    coded = integers.encode_integers(q)
    reader = Reader(coded)
    np.testing.assert_array_equal(integers.decode_integers(reader, q.size), q)
    reader.finish("the test")
    assert len(coded) <= 3000 * (2 * top + 1).bit_length() / 8 + 20


def test_zstd_size_is_checked_before_decompressing():
    data = np.tile(np.arange(256, dtype=np.uint8), 200)
    coded = integers.encode_bytes(data)
    assert coded[0] == integers.ZSTD
    np.testing.assert_array_equal(integers.decode_bytes(Reader(coded), data.size), data)
    with pytest.raises(PayloadError, match="declares"):
        integers.decode_bytes(Reader(coded), data.size - 1)


@pytest.mark.parametrize("density", [0.0, 0.003, 0.1, 0.5, 0.9, 1.0])
def test_gaps_beat_or_meet_independent_positions(density):
    rng = np.random.default_rng(1)
    masks = [rng.random(n) < density for n in (5000, 1, 0, 20_000)]
    subsets = gaps.subsets(np.concatenate(masks), [mask.size for mask in masks])
    for mask, one in zip(masks, subsets, strict=True):
        alone = gaps.subset(mask)
        assert (one.size, one.flipped, one.rare.tolist()) == (alone.size, alone.flipped, alone.rare.tolist())
    coded = gaps.encode(subsets)
    assert coded is not None
    assert density in (0, 1) or gaps.encode(subsets, 0.5 * len(coded)) is None
    reader = Reader(coded)
    size = reader.left
    decoded = gaps.decode(reader, [mask.size for mask in masks])
    reader.finish("the test")
    for mask, subset in zip(masks, decoded, strict=True):
        np.testing.assert_array_equal(subset.mask(), mask)
        np.testing.assert_array_equal(subset.positions(), np.flatnonzero(mask))
    p = min(max(density, 1e-9), 1 - 1e-9)
    ideal = -25_000 * (p * np.log2(p) + (1 - p) * np.log2(1 - p)) / 8
    assert size <= 1.02 * ideal + 30


def test_step_codes_are_eight_an_octave():
    assert steps.step_of(steps.ONE_CODE) == 1.0
    assert steps.step_of(steps.ONE_CODE + 8) == 2.0
    assert steps.step_code(1.0) == steps.ONE_CODE
    assert steps.step_of(steps.step_code(1.01, up=True)) == 1.125
    assert np.isfinite(steps.step_of(steps.MAX_CODE))
    assert not np.isfinite(steps.step_of(steps.MAX_CODE + 1))


def test_nearest_quantization_by_hand():
    q = steps.quantize(np.array([0.24, 0.26, -9.0, 3.6]), 0.5, 7)
    assert q.tolist() == [0, 1, -7, 7]
    out = steps.dequantize(q, 0.5, np.array([1, 1, 1, 1], np.float32), np.dtype(np.float32))
    assert out.tolist() == [1.0, 1.5, -2.5, 4.5]


def test_least_squares_step_is_the_best_of_its_codes():
    x = np.random.default_rng(0).normal(size=4000)
    best = steps.least_squares_code(x, 7)
    errors = {}
    for code in range(best - 6, best + 7):
        step = steps.step_of(code)
        errors[code] = np.mean((x - step * steps.quantize(x, step, 7)) ** 2)
    assert min(errors, key=errors.__getitem__) == best
    assert 0.3 < steps.step_of(best) < 0.42  # the optimum for a normal distribution and 15 levels is near 0.35


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_stochastic_rounding_is_unbiased(values):
    arrays = {"w": np.random.default_rng(0).normal(size=(10, 20)).astype(np.float32)}
    rng = np.random.default_rng(1)
    codec = Codec(values, "stochastic")
    mean = sum(decode(codec.encode(arrays, rng=rng), like=arrays)["w"] for _ in range(200)) / 200
    step = np.abs(arrays["w"]).max() / (127 if values == "int8" else 7) * 1.125
    assert np.abs(mean - arrays["w"]).max() < 5 * step / 2 / 14
    with pytest.raises(ValueError, match="rng"):
        codec.encode(arrays)


def test_same_support_costs_three_bytes():
    rng = np.random.default_rng(0)
    old = {"w": np.where(rng.random((100, 100)) < 0.05, rng.normal(size=(100, 100)), 0).astype(np.float32)}
    new = {"w": np.where(old["w"] != 0, old["w"] + 0.01, 0).astype(np.float32)}
    info = payload_info(Codec("int4").encode(new, reference=Reference(old)))
    assert info.sections["positions"] == 2
    assert info.nnz == np.count_nonzero(old["w"])
    assert info.sections["header"] <= 30


def test_the_paper_network_is_below_1400_bytes():
    """90 k parameters, 95 % sparse, the reference's support, 298 dense leftovers."""
    rng = np.random.default_rng(0)
    shapes = {"c1": (16, 1, 5, 5), "c2": (32, 16, 3, 3), "c3": (64, 32, 3, 3), "f1": (64, 1024), "f2": (10, 64)}
    old, new = {}, {}
    for name, shape in shapes.items():
        weights = rng.laplace(size=shape)
        keep = np.abs(weights) > np.quantile(np.abs(weights), 0.95)
        old[name] = np.where(keep, weights, 0).astype(np.float32)
        new[name] = np.where(keep, weights + 0.01 * rng.laplace(size=shape), 0).astype(np.float32)
    for i, size in enumerate((16, 16, 32, 32, 64, 64, 64, 10)):
        old[f"d{i}"] = (i % 2 + 0.1 * rng.normal(size=size)).astype(np.float32)
        new[f"d{i}"] = (old[f"d{i}"] + 0.01 * rng.normal(size=size)).astype(np.float32)
    payload = Codec("int4").encode(new, reference=Reference(old))
    assert len(payload) < 1400
    assert sum(a.nbytes for a in new.values()) / len(payload) > 250


def test_positions_outside_the_reference_keep_their_size():
    old = {"w": np.zeros((50, 50), np.float32)}
    old["w"][:, 0] = 1.0
    new = {"w": old["w"] + np.float32(0.001) * (old["w"] != 0)}
    new["w"][7, 9] = -3.0
    out = decode(Codec("int4").encode(new, reference=Reference(old)), like=old, reference=Reference(old))
    assert np.abs(out["w"] - new["w"])[7, 9] < 0.3
    assert np.abs(out["w"] - new["w"])[:, 0].max() < 0.0005
    assert np.count_nonzero(out["w"]) == 51


def test_variances_stay_positive_at_any_scale():
    rng = np.random.default_rng(0)
    old = {"var": np.exp(4 * rng.normal(size=200)).astype(np.float32)}
    new = {"var": old["var"] * np.exp(0.1 * rng.normal(size=200)).astype(np.float32)}
    for reference in (None, Reference(old)):
        out = decode(Codec("int4").encode(new, reference=reference), like=new, reference=reference)["var"]
        assert (out > 0).all()
        assert np.abs(out / new["var"] - 1).max() < 0.1


def test_fp32_is_bit_exact_at_the_edges():
    info = np.finfo(np.float32)
    edge = np.array([[-0.0, 0.0, info.max, info.min, info.tiny, info.smallest_subnormal, -1.0, 0.1]], np.float32)
    other = Reference({"w": edge[:, ::-1].copy()})
    for reference in (None, other):
        out = decode(Codec("fp32").encode({"w": edge}, reference=reference), like={"w": edge}, reference=reference)
        assert out["w"].tobytes() == edge.tobytes()


@pytest.mark.parametrize("values", ["raw", "fp32", "fp16", "int8", "int4"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_arrays_are_named(values, bad):
    arrays = {"fine": np.ones(3, np.float32), "broken": np.array([[1, bad]], np.float32)}
    with pytest.raises(ValueError, match="broken"):
        Codec(values).encode(arrays)


def test_non_finite_raw_payloads_are_refused():
    arrays = {"w": np.ones(4, np.float32)}
    payload = bytearray(Codec("raw").encode(arrays))
    payload[-4:] = np.float32(np.nan).tobytes()
    payload[4:8] = checksum(payload)
    with pytest.raises(PayloadError, match="NaN"):
        decode(bytes(payload), like=arrays)


def test_extreme_magnitudes_survive_quantization():
    for dtype in (np.float16, np.float32, np.float64):
        info = np.finfo(dtype)
        arrays = {"w": np.array([[info.max, -info.max, 0, info.tiny]], dtype), "b": np.array([info.max, 1], dtype)}
        for values in ("int8", "int4"):
            out = decode(Codec(values).encode(arrays), like=arrays)
            assert np.isfinite(out["w"]).all()
            assert np.isfinite(out["b"]).all()
    with pytest.raises(ValueError, match="fp16"):
        Codec("fp16").encode({"w": np.array([[1e6]], np.float32)})


def test_wrong_reference_version_names_or_checksum():
    old, new = {"w": np.ones((3, 3), np.float32)}, {"w": np.full((3, 3), 2, np.float32)}
    payload = Codec("int8").encode(new, reference=Reference(old))
    with pytest.raises(PayloadError, match="needs reference"):
        decode(payload, like=old)
    with pytest.raises(PayloadError, match="needs reference"):
        decode(payload, like=old, reference=Reference(new))
    with pytest.raises(PayloadError, match="other names"):
        decode(payload, like={"v": old["w"]}, reference=Reference(old))
    with pytest.raises(PayloadError, match="checksum"):
        decode(payload[:-1] + b"\0\0", like=old, reference=Reference(old))
    with pytest.raises(PayloadError, match="version 9"):
        decode(payload[:3] + b"\x09" + payload[4:], like=old, reference=Reference(old))
    with pytest.raises(ValueError, match="reference"):
        Codec("int8").encode({"v": old["w"]}, reference=Reference(old))


def test_reference_is_immutable_and_named_by_content():
    arrays = {"w": np.arange(4, dtype=np.float32)}
    reference = Reference(arrays)
    arrays["w"][0] = 9
    assert reference.arrays["w"][0] == 0
    with pytest.raises(ValueError, match="read-only"):
        reference.arrays["w"][0] = 1
    assert len(reference.id) == 32
    assert reference.id == Reference({"w": np.arange(4, dtype=np.float32)}).id
    assert reference.id != Reference({"w": np.arange(4, dtype=np.float64)}).id
    assert reference.id != Reference({"v": np.arange(4, dtype=np.float32)}).id
    assert reference.id != Reference({"w": np.arange(4, dtype=np.float32).reshape(2, 2)}).id
    assert reference.nbytes == 16
    with pytest.raises(ValueError, match="NaN"):
        Reference({"w": np.array([np.nan])})


def test_accumulator_by_hand():
    accumulator = Accumulator({"w": ArraySpec((3,), np.dtype(np.float32)), "n": ArraySpec((), np.dtype(np.int64))})
    one, two = np.array([1]), np.array([2])
    accumulator.add([Layer("w", np.array([0, 2]), np.array([1, 4], np.float32)), Layer("n", None, one)], 1.0)
    accumulator.add([Layer("w", None, np.array([1, 2, 0], np.float32)), Layer("n", None, two)], 3.0)
    mean = accumulator.mean()
    assert mean["w"].tolist() == [1.0, 1.5, 1.0]
    assert mean["n"].shape == ()
    assert mean["n"] == 2
    assert accumulator.total_weight == 4.0


@pytest.mark.parametrize("last", ["inside", "whole", "outside"])
def test_sums_over_the_references_support_are_the_dense_sums(last):
    """Nodes keep parts of the support, or all of it; the last one may leave it, or know nothing of it."""
    rng = np.random.default_rng(0)
    old = np.where(rng.random((60, 50)) < 0.2, rng.normal(size=(60, 50)), 0).astype(np.float32)
    reference, accumulator, total = Reference({"w": old}), Accumulator({"w": old}), np.zeros(old.shape)
    for kind in ("inside", "inside", "whole", last):
        kept = (old != 0) & ((rng.random(old.shape) < 0.7) | (kind == "whole")) | (rng.random(old.shape) < 0.1) & (
            kind == "outside"
        )
        update = np.where(kept, old + rng.normal(size=old.shape) / 50, 0).astype(np.float32)
        payload = Codec("fp32").encode({"w": update}, reference=reference)
        (layer,) = decode_layers(payload, like=reference.specs, reference=reference)
        assert (layer.within is not None) == (kind == "inside")
        accumulator.add([layer], 0.3)
        total += update * np.float64(0.3)
    mean = accumulator.mean()["w"]
    assert mean.tobytes() == (total / accumulator.total_weight).astype(np.float32).tobytes()


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf])
def test_accumulator_refuses_bad_weights(weight):
    accumulator = Accumulator({"w": np.zeros(3)})
    with pytest.raises(ValueError, match="weight"):
        accumulator.add([Layer("w", None, np.zeros(3))], weight)
    with pytest.raises(ValueError, match="nothing"):
        accumulator.mean()


def test_accumulator_refuses_other_layers():
    accumulator = Accumulator({"w": np.zeros(3)})
    for layers in ([], [Layer("v", None, np.zeros(3))], [Layer("w", None, np.zeros(2))]):
        with pytest.raises(ValueError, match="layer"):
            accumulator.add(layers, 1.0)


def test_dense_layers_come_back_without_positions():
    arrays: dict[str, np.ndarray]
    arrays = {"dense": np.ones((4, 4), np.float32), "sparse": np.eye(8, dtype=np.float32), "n": np.arange(3)}
    layers = {layer.name: layer for layer in decode_layers(Codec("fp32").encode(arrays), like=specs_of(arrays))}
    assert layers["dense"].positions is None
    assert layers["n"].positions is None
    assert layers["sparse"].positions is not None
    assert layers["sparse"].positions.tolist() == list(range(0, 64, 9))


def test_unknown_settings_and_dtypes_are_refused():
    with pytest.raises(ValueError, match="int5"):
        Codec("int5")
    with pytest.raises(ValueError, match="up"):
        Codec("int8", "up")
    with pytest.raises(ValueError, match="datetime64"):
        Codec("fp32").encode({"t": np.zeros(2, "datetime64[s]")})


def test_equal_input_gives_equal_bytes():
    arrays = {"w": np.random.default_rng(0).normal(size=(30, 30)).astype(np.float32)}
    assert Codec("int4").encode(arrays) == Codec("int4").encode({"w": np.asfortranarray(arrays["w"])})
    swapped = {"w": arrays["w"].astype(">f4")}
    assert Codec("int4").encode(arrays) == Codec("int4").encode(swapped)


@pytest.mark.parametrize("scale", [0.3, 0.65, 1.2, 4.0])
def test_many_small_integers_come_close_to_their_entropy(scale):
    q = np.clip(np.rint(np.random.default_rng(3).laplace(scale=scale, size=200_000)), -7, 7).astype(np.int16)
    coded = integers.encode_integers(q)
    reader = Reader(coded)
    np.testing.assert_array_equal(integers.decode_integers(reader, q.size), q)
    reader.finish("the test")
    shares = np.unique(q, return_counts=True)[1] / q.size
    assert len(coded) <= 1.03 * -(shares * np.log2(shares)).sum() * q.size / 8


@pytest.mark.parametrize("reach", grouped.REACHES)
@pytest.mark.parametrize("count", [1, 5, 6, 7, 1000])
def test_groups_give_their_integers_back(reach, count):
    q = np.random.default_rng(count).integers(-9, 10, count).astype(np.int16)
    groups, escapes = grouped.split(q, reach)
    assert groups.size == grouped.group_count(count, reach)
    digits = grouped.digits_of(groups, count, reach)
    escaped = np.flatnonzero(digits > reach)
    np.testing.assert_array_equal(escaped, np.flatnonzero(np.abs(q) > reach))
    grouped.join(digits, escaped, escapes, reach)
    np.testing.assert_array_equal(digits, q)


def section(reach, groups, escapes=b""):
    out = Writer()
    out.byte(integers.GROUPED | reach)
    frame = zstd.compress(bytes(groups))
    out.varint(len(frame))
    return out.done() + frame + escapes


def test_bad_groups_are_refused():
    good = integers.decode_integers(Reader(section(1, [21, 21])), 6)
    np.testing.assert_array_equal(good, np.zeros(6))
    cases = {
        "reach 4": section(4, [0, 0]),
        "out of range": section(1, [21, 64]),
        "padding": section(1, [21, 22]),
        "declares 3 bytes": section(1, [21, 21, 21]),
        "escaped integer": section(0, [32], bytes([integers.PACKED | 8 << 2, 0xFF, 127, 0xFE])),
    }
    for words, coded in cases.items():
        with pytest.raises(PayloadError, match=words):
            integers.decode_integers(Reader(coded), 1 if words == "escaped integer" else 5)


def test_groups_within_groups_end():
    deep = b""
    for _ in range(50):
        deep = section(0, [63], deep)
    with pytest.raises(PayloadError, match="too many groups"):
        integers.decode_integers(Reader(deep), 6)
