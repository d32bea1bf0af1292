"""Whatever goes in comes out: every mode, dtype, sparsity and relation to the reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flsparse.codec import Accumulator, Codec, Reference, decode, decode_layers, payload_info, specs_of

MODES = ("raw", "fp32", "fp16", "int8", "int4")
FLOATS = (np.float16, np.float32, np.float64)
INTS = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)


@st.composite
def models(draw):
    """A model and a reference of the same specs, in one of the relations that training makes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    arrays, reference = {}, {}
    for i in range(draw(st.integers(0, 5))):
        shape = tuple(draw(st.lists(st.integers(0, 12), max_size=3)))
        kind = draw(st.sampled_from(["float", "float", "float", "int", "bool"]))
        if kind == "int":
            dtype = draw(st.sampled_from(INTS))
            info = np.iinfo(dtype)
            old, new = (rng.integers(info.min, info.max, shape, dtype, endpoint=True) for _ in range(2))
            if draw(st.booleans()):
                new = old.copy()
        elif kind == "bool":
            old, new = rng.random(shape) < 0.5, rng.random(shape) < draw(st.floats(0, 1))
        else:
            dtype = draw(st.sampled_from(FLOATS))
            scale = 10.0 ** draw(st.integers(-4, 2))
            old = (rng.normal(size=shape) * scale * (rng.random(shape) < draw(st.floats(0, 1)))).astype(dtype)
            new = (old + rng.laplace(size=shape) * scale * draw(st.sampled_from([0.0, 0.01, 1.0]))).astype(dtype)
            relation = draw(st.sampled_from(["same", "subset", "free", "positive"]))
            if relation == "same":
                new = np.where(old == 0, 0, new).astype(dtype)
            elif relation == "subset":
                new = np.where((old == 0) | (rng.random(shape) < draw(st.floats(0, 1))), 0, new).astype(dtype)
            elif relation == "positive":
                old, new = np.abs(old) + dtype(1e-3), np.abs(new) + dtype(1e-3)
            else:
                new = np.where(rng.random(shape) < draw(st.floats(0, 1)), 0, new).astype(dtype)
            if draw(st.booleans()):
                new = np.where(new == 0, dtype(-0.0), new).astype(dtype)
        arrays[f"a{i}"], reference[f"a{i}"] = np.asarray(new), np.asarray(old)
    return arrays, Reference(reference) if draw(st.booleans()) else None


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@settings(deadline=None, max_examples=200)
@given(models(), st.sampled_from(MODES), st.sampled_from(["nearest", "stochastic"]))
def test_round_trip(model, values, rounding):
    arrays, reference = model
    rng = np.random.default_rng(0)
    payload = Codec(values, rounding).encode(arrays, reference=reference, rng=rng)
    specs = specs_of(arrays)
    out = decode(payload, like=specs, reference=reference)
    assert list(out) == list(arrays)
    for name, array in arrays.items():
        assert out[name].dtype == array.dtype
        assert out[name].shape == array.shape
        assert out[name].flags.writeable
        if values in ("raw", "fp32") or array.dtype.kind != "f":
            assert same_bits(out[name], array)
        else:
            assert np.isfinite(out[name]).all()
            if array.ndim >= 2:
                assert not out[name][array == 0].any() or not (array == 0).any()
    info = payload_info(payload)
    assert info.size == len(payload) == sum(info.sections.values())
    assert info.values == values
    wanted = None if reference is None or values == "raw" else reference.id[:16]
    assert info.reference_id == wanted


@settings(deadline=None, max_examples=100)
@given(models(), st.sampled_from(MODES))
def test_layers_are_the_decoded_arrays(model, values):
    arrays, reference = model
    payload = Codec(values).encode(arrays, reference=reference)
    out = decode(payload, like=arrays, reference=reference)
    layers = decode_layers(payload, like=arrays, reference=reference)
    assert [layer.name for layer in layers] == list(arrays)
    for layer in layers:
        array = out[layer.name]
        assert layer.values.ndim == 1
        assert layer.values.dtype == array.dtype
        if layer.positions is None:
            assert same_bits(layer.values.reshape(array.shape), array)
        else:
            assert layer.positions.dtype == np.int64
            assert (np.diff(layer.positions) > 0).all()
            dense = np.zeros(array.size, array.dtype)
            dense[layer.positions] = layer.values
            assert same_bits(dense.reshape(array.shape), array)


@settings(deadline=None, max_examples=100)
@given(st.lists(models(), min_size=1, max_size=1), st.lists(st.floats(0.1, 10), min_size=1, max_size=4))
def test_accumulated_mean_is_the_dense_mean(model, weights):
    arrays, _ = model[0]
    rng = np.random.default_rng(1)
    accumulator = Accumulator(specs_of(arrays))
    total = {name: np.zeros(array.shape) for name, array in arrays.items()}
    for weight in weights:
        mine = {n: np.where(rng.random(a.shape) < 0.5, 0, a).astype(a.dtype) for n, a in arrays.items()}
        accumulator.add(decode_layers(Codec("fp32").encode(mine), like=arrays), weight)
        for name, array in mine.items():
            total[name] += array * np.float64(weight)
    assert accumulator.total_weight == pytest.approx(sum(weights))
    for name, mean in accumulator.mean().items():
        assert mean.dtype == arrays[name].dtype
        wanted = total[name] / accumulator.total_weight
        if mean.dtype.kind == "f":
            np.testing.assert_array_equal(mean, wanted.astype(mean.dtype))
        else:
            distance = np.abs(mean.astype(np.float64) - wanted)
            assert (distance <= 0.5 + 1e-15 * np.abs(wanted)).all() or mean.dtype.itemsize == 8
