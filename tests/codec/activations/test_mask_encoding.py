"""Mask encoding and the compressors beside it: the paper's figure, exact sizes, round trips, hostile payloads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flsparse.codec import (
    MaskEncoding,
    PayloadError,
    decode_activations,
    decode_gradient,
    encode_gradient,
    make_activation_codec,
)
from flsparse.codec.activations.compressors import RandTopK
from flsparse.codec.activations.envelope import sections_of
from flsparse.codec.coders import contexts
from flsparse.codec.wire import Reader, checksum

# Figure 1 of the paper
FIGURE = np.array([[2.2, 0.8, 1.2, 0.4], [1.8, 0.2, 3.1, 2.0], [2.1, 0.2, 1.1, 1.7], [0.3, 2.8, 1.4, 0.9]], np.float32)
CODECS = {
    "ms": make_activation_codec("ms", sparsity=0.9),
    "ms-floor": make_activation_codec("ms", sparsity=0.9, rounding="floor"),
    "ms-3-bits": make_activation_codec("ms", sparsity=0.99, bits=3),
    "ms-half": make_activation_codec("ms", sparsity=0.9, values="fp16"),
    "ms-packed": make_activation_codec("ms", sparsity=0.9, entropy=False),
    "topk": make_activation_codec("topk", sparsity=0.9),
    "randtopk": make_activation_codec("randtopk", sparsity=0.9),
    "uniform": make_activation_codec("uniform", bits=3),
    "uniform-packed": make_activation_codec("uniform", bits=3, entropy=False),
    "none": make_activation_codec("none"),
    "none-half": make_activation_codec("none", values="fp16"),
}


def activations(shape, seed=0, rectified=True):
    """Return smooth images, as activations are, or rows."""
    x = np.random.default_rng(seed).standard_normal(shape)
    if len(shape) >= 4:
        for _ in range(2):
            x[..., 1:] += 0.8 * x[..., :-1]
            x[..., 1:, :] += 0.8 * x[..., :-1, :]
    return (np.maximum(x, 0) if rectified else x).astype(np.float32)


def generator():
    return np.random.default_rng(7)


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize(("rounding", "error"), [("round", 1.025), ("floor", 1.18)])
def test_figure_1_of_the_paper(rounding, error, entropy):
    ms = MaskEncoding(sparsity=0.75, bits=2, rounding=rounding, entropy=entropy)
    what = ms.quantize(FIGURE)
    np.testing.assert_array_equal(what.kept, np.array([2.2, 3.1, 2.1, 2.8], np.float32))
    decoded = ms.decode(ms.encode(FIGURE), FIGURE.shape)
    assert np.linalg.norm(decoded - FIGURE) == pytest.approx(error, abs=5e-3)


def test_figure_1_codes():
    expected = [[3, 1, 2, 1], [2, 0, 3, 2], [3, 0, 2, 2], [0, 3, 2, 1]]
    assert MaskEncoding(sparsity=0.75).quantize(FIGURE).codes.reshape(4, 4).tolist() == expected


def test_figure_1_with_top_k():
    topk = make_activation_codec("topk", sparsity=0.75)
    decoded, _ = decode_activations(topk.encode(FIGURE), FIGURE.shape)
    assert np.linalg.norm(decoded - FIGURE) == pytest.approx(4.064, abs=1e-3)


@pytest.mark.parametrize(("bits", "sparsity"), [(2, 0.99), (3, 0.999), (1, 0.95875)])
def test_packed_size_is_the_papers(bits, sparsity):
    x = activations((32, 16, 16, 16))
    size = 8 * len(MaskEncoding(sparsity, bits, entropy=False).encode(x)) / x.size
    assert size == pytest.approx(bits + 32 * (1 - sparsity), abs=0.002)


def test_default_ceiling_is_13_79():
    x = activations((32, 16, 16, 16))
    assert 4 * x.size / len(MaskEncoding(entropy=False).encode(x)) == pytest.approx(13.79, abs=0.01)


@pytest.mark.parametrize("rectified", [True, False])
@pytest.mark.parametrize("values", ["fp32", "fp16"])
def test_entropy_coding_changes_no_bit_of_what_is_decoded(values, rectified):
    x = activations((8, 16, 8, 8), rectified=rectified)
    packed, coded = (MaskEncoding(values=values, entropy=entropy) for entropy in (False, True))
    small, large = coded.encode(x), packed.encode(x)
    assert len(small) < len(large)
    np.testing.assert_array_equal(coded.decode(small, x.shape), packed.decode(large, x.shape))


def test_kept_values_are_exact_and_others_near():
    x = activations((8, 16, 8, 8), rectified=False)
    ms = MaskEncoding(sparsity=0.9, bits=4)
    decoded = ms.decode(ms.encode(x), x.shape)
    kept = np.abs(x) >= np.sort(np.abs(x).ravel())[-ms.quantize(x).kept.size]
    np.testing.assert_array_equal(decoded[kept], x[kept])
    threshold = np.abs(x[kept]).min()
    assert np.abs(decoded - x).max() <= threshold / 15 * 1.0001  # one level: below the top code two share one
    small = np.abs(x) < threshold * 14 / 15
    assert np.abs(decoded - x)[small].max() <= threshold / 30 * 1.0001


SHAPES = [
    (8, 16, 8, 8),
    (32, 64, 4, 4),
    (4, 3, 5, 7),
    (64, 100),
    (600, 40),
    (5, 7, 11),
    (300, 150),
    (17,),
    (1, 1, 200, 200),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("rectified", [True, False])
def test_round_trip_gives_what_the_codes_say(name, shape, rectified):
    x = activations(shape, rectified=rectified)
    payload = CODECS[name].encode(x, rng=generator())
    decoded, codes = decode_activations(payload, shape)
    assert decoded.shape == shape
    assert decoded.dtype == np.float32
    assert CODECS[name].encode(x, rng=generator()) == payload
    if name.startswith(("ms", "topk", "randtopk")):
        np.testing.assert_array_equal(decoded.ravel() != 0, codes != 0)
    limit = {"none": 0.0, "none-half": 1e-3, "uniform": 0.5, "ms": 0.5}.get(name, 1.0)
    assert np.linalg.norm(decoded - x) <= limit * np.linalg.norm(x)


@pytest.mark.parametrize("name", CODECS)
def test_degenerate_tensors(name):
    few = np.zeros((2, 3, 4, 4), np.float32)
    few[0, 1, 2, 3] = 5.0
    constant = np.full((3, 3, 2, 2), 0.25, np.float32)
    tiny = np.array([[1e-45, 0, 3e-45]], np.float32)
    for x in (
        np.zeros((2, 3, 4, 4), np.float32),
        few,
        np.zeros((0, 3), np.float32),
        np.array([[4.0]], np.float32),
        constant,
        tiny,
    ):
        decoded, _ = decode_activations(CODECS[name].encode(x, rng=generator()), x.shape)
        assert decoded.shape == x.shape
        assert np.isfinite(decoded).all()
        if name.startswith("ms") and name != "ms-half" and np.count_nonzero(x) <= 1:
            np.testing.assert_array_equal(decoded, x)


def test_exactly_k_values_are_kept_of_equal_ones():
    x = np.full(100, 2.0, np.float32)
    assert MaskEncoding(sparsity=0.9).quantize(x).codes.tolist() == [3] * 10 + [2] * 90


def test_randtopk_keeps_as_many_and_needs_rng():
    x = activations((4, 8, 8, 8))
    random, best = (make_activation_codec(name, sparsity=0.95) for name in ("randtopk", "topk"))
    counts = [np.count_nonzero(decode_activations(c.encode(x, rng=generator()), x.shape)[0]) for c in (random, best)]
    assert counts[0] == counts[1]
    with pytest.raises(ValueError, match="needs rng"):
        random.encode(x)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
def test_randtopk_gives_a_kept_place_away_with_probability_alpha(alpha):
    x = np.random.default_rng(0).permutation(np.arange(1, 1001)).astype(np.float32)
    codec, largest = RandTopK(0.8, alpha), x > 800
    assert make_activation_codec("randtopk", sparsity=0.8) == RandTopK(0.8, 0.1)
    random, draws = generator(), 400
    sent = np.array([codec.encode_and_tell(x, rng=random)[1] for _ in range(draws)])
    assert (sent.sum(1) == 200).all()
    swapped = sent[:, ~largest].sum(1)
    variance = 200 * alpha * (1 - alpha)  # of a binomial number: each place is given away on its own
    assert abs(swapped.mean() - 200 * alpha) <= 4 * np.sqrt(variance / draws)
    assert swapped.var() == pytest.approx(variance, rel=0.3)
    # all small values are as likely to be taken, all large ones to go
    for group, share in ((~largest, alpha / 4), (largest, 1 - alpha)):
        bound = 5 * np.sqrt(share * (1 - share) / draws)
        assert np.abs(sent[:, group].mean(0) - share).max() <= bound


@pytest.mark.parametrize("shape", [(32, 16, 16, 16), (32, 32, 8, 8), (32, 64, 4, 4)])
def test_coder_is_within_8_percent_of_the_conditional_entropy(shape):
    codes = MaskEncoding().quantize(activations(shape)).codes
    bits = 8 * len(contexts.encode(codes, shape, 2)) / codes.size
    assert bits <= 1.08 * contexts.conditional_entropy(codes, shape, 4)


@given(
    hnp.arrays(
        np.float32, hnp.array_shapes(max_dims=5, max_side=9), elements=st.floats(-(2.0**100), 2.0**100, width=32)
    ),
    st.sampled_from(["ms", "ms-packed", "ms-floor", "topk", "uniform", "none"]),
)
@settings(max_examples=150, deadline=None)
def test_any_finite_tensor_comes_back_in_shape(x, name):
    decoded, _ = decode_activations(CODECS[name].encode(x), x.shape)
    assert decoded.shape == x.shape
    assert np.isfinite(decoded).all()
    again, _ = decode_activations(CODECS[name].encode(decoded), x.shape)
    assert again.shape == x.shape


@given(hnp.arrays(np.uint8, hnp.array_shapes(max_dims=5, max_side=12), elements=st.integers(0, 7)), st.booleans())
@settings(max_examples=100, deadline=None)
def test_symbols_come_back(codes, entropy):
    payload = contexts.encode(codes.ravel(), codes.shape, 3, entropy=entropy)
    reader = Reader(payload)
    np.testing.assert_array_equal(contexts.decode(reader, codes.shape, 3), codes.ravel())
    reader.finish("the symbols")


@pytest.mark.parametrize("name", [*CODECS, "gradient-int4", "gradient-fp16"])
@pytest.mark.parametrize("resealed", [False, True])
def test_hostile_payloads_raise_payload_errors_alone(name, resealed):
    shape = (4, 16, 16, 16)
    x = activations(shape, rectified=False)
    sent = x.ravel() > 0.5
    if name.startswith("gradient"):
        payload = encode_gradient(x, name.partition("-")[2], sent)
    else:
        payload = CODECS[name].encode(x, rng=generator())
    random = np.random.default_rng(3)
    for attempt in range(60):
        damaged = bytearray(payload)
        if attempt % 3 == 0:
            del damaged[random.integers(len(damaged)) :]
        elif attempt % 3 == 1:
            for at in random.integers(4, len(damaged), 1 + attempt % 5):
                damaged[at] ^= 1 << random.integers(8)
        else:
            head = min(len(damaged), 60)
            damaged[8:head] = random.bytes(head - 8)
        if resealed and len(damaged) > 8:
            damaged[4:8] = checksum(damaged)
        try:
            if name.startswith("gradient"):
                out = decode_gradient(bytes(damaged), shape, sent)
            else:
                out, _ = decode_activations(bytes(damaged), shape)
        except PayloadError:
            continue
        assert resealed or bytes(damaged) == payload
        assert np.isfinite(out).all()


@pytest.mark.parametrize("payload", [b"", b"FSA", b"FSA\x01" + bytes(6), bytes(100), b"FSP\x01" + bytes(40)])
def test_what_is_no_payload_is_refused(payload):
    with pytest.raises(PayloadError):
        MaskEncoding().decode(payload, (2, 3))
    with pytest.raises(PayloadError):
        decode_gradient(payload, (2, 3), np.ones(6, np.bool_))


def test_another_kind_or_shape_is_refused():
    x = activations((4, 4, 4, 4))
    with pytest.raises(PayloadError, match="not mask encoded"):
        MaskEncoding().decode(CODECS["none"].encode(x), x.shape)
    with pytest.raises(PayloadError):
        MaskEncoding().decode(MaskEncoding().encode(x), (4, 4, 4, 5))
    with pytest.raises(PayloadError, match="more than"):
        MaskEncoding().decode(MaskEncoding().encode(x), (1 << 20, 1 << 20))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, "sparsity=1.0"),
        ({"bits": 0}, "bits=0"),
        ({"bits": 2.0}, "bits=2.0"),
        ({"rounding": "up"}, "rounding='up'"),
        ({"values": "fp8"}, "values='fp8'"),
    ],
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskEncoding(**arguments)


def test_what_cannot_be_coded_is_refused():
    with pytest.raises(ValueError, match="NaN or infinity"):
        MaskEncoding().encode(np.array([np.nan], np.float32))
    with pytest.raises(ValueError, match="65504"):
        MaskEncoding(values="fp16").encode(np.array([1e6], np.float32))
    with pytest.raises(ValueError, match="compressor='zip' is none of ms"):
        make_activation_codec("zip")
    with pytest.raises(ValueError, match="gradient='int3'"):
        encode_gradient(np.ones(3), "int3", np.ones(3, np.bool_))
    with pytest.raises(ValueError, match="NaN or infinity"):
        encode_gradient(np.array([np.inf], np.float32), "fp16", np.ones(1, np.bool_))


def test_sections_add_up():
    x = activations((8, 16, 8, 8))
    for codec in CODECS.values():
        payload = codec.encode(x, rng=generator())
        parts = sections_of(payload)
        assert parts.masks + parts.values + parts.header == len(payload)
    assert sections_of(CODECS["none"].encode(x)).values == 4 * x.size


@pytest.mark.parametrize(("form", "error"), [("fp32", 0.0), ("fp16", 1e-3), ("int4", 0.25)])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_gradients_come_back(form, error, scale):
    gradient = (np.random.default_rng(1).standard_normal((8, 4, 4, 4)) * scale).astype(np.float32)
    sent = np.random.default_rng(2).random(gradient.size) < 0.4
    payload = encode_gradient(gradient, form, sent)
    decoded = decode_gradient(payload, gradient.shape, sent)
    wanted = np.where(sent.reshape(gradient.shape), gradient, 0) if form == "int4" else gradient
    assert np.linalg.norm(decoded - wanted) <= error * np.linalg.norm(wanted)
    if form == "int4":
        assert 8 * len(payload) / gradient.size < 0.4 * 4 + 1


@pytest.mark.parametrize("form", ["fp32", "fp16", "int4"])
def test_a_gradient_of_zeros_comes_back(form):
    zeros = np.zeros((2, 3), np.float32)
    for sent in (np.zeros(6, np.bool_), np.ones(6, np.bool_)):
        np.testing.assert_array_equal(decode_gradient(encode_gradient(zeros, form, sent), (2, 3), sent), zeros)
