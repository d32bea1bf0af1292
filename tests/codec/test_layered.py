"""Integers of several arrays with tables of their own, and positions with tables apart: format version 2."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flsparse.codec import Codec, PayloadError, decode, payload_info
from flsparse.codec.coders import gaps, integers, layered
from flsparse.codec.wire import Reader

LARGE = 70_000  # kept values from which on there are several lanes


def drawn(rng: np.random.Generator, kept: int, bound: int, agree: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Return integers of a scale of their own, whose signs agree with those before, and their positions."""
    magnitudes = np.minimum(rng.geometric(rng.uniform(0.1, 0.9), kept), bound)
    changed = rng.random(kept) > agree
    signs = np.where(np.bitwise_xor.accumulate(changed) if kept else changed, -1, 1)
    return (magnitudes * signs).astype(np.int16), np.cumsum(rng.geometric(0.1, kept)).astype(np.int64)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 400), min_size=1, max_size=6), st.sampled_from([7, 127]))
def test_integers_come_back(seed: int, sizes: list[int], bound: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [drawn(rng, size + (i == 0), bound, rng.random()) for i, size in enumerate(sizes)]
    coded = layered.encode([q for q, _ in parts], [at for _, at in parts], bound)
    reader = Reader(coded)
    assert reader.skips(layered.MARK)
    for out, (q, _) in zip(layered.decode(reader, [at for _, at in parts], bound), parts, strict=True):
        np.testing.assert_array_equal(out, q)
    reader.finish("the test")


def test_many_integers_come_back_through_several_lanes() -> None:
    rng = np.random.default_rng(0)
    q, at = drawn(rng, LARGE, 127)
    reader = Reader(layered.encode([q], [at], 127))
    assert reader.skips(layered.MARK)
    np.testing.assert_array_equal(layered.decode(reader, [at], 127)[0], q)


def test_unlike_arrays_and_signs_that_agree_cost_less_than_one_table() -> None:
    rng = np.random.default_rng(1)
    parts = [drawn(rng, 5_000, 127, agree=0.9) for _ in range(4)]
    coded = layered.encode([q for q, _ in parts], [at for _, at in parts], 127)
    assert len(coded) < 0.9 * len(integers.encode_integers(np.concatenate([q for q, _ in parts])))


def test_signs_by_hand() -> None:
    q, at = np.array([-1, -2, 3, 3], np.int16), np.array([0, 9, 19, 20])
    assert layered._changed(q).tolist() == [True, False, True, False]
    assert layered._far(at).tolist() == [True, False, True, False]


@pytest.mark.parametrize("values", ["fp32", "fp16", "int8", "int4"])
def test_only_payloads_with_the_new_modes_say_so(values: str) -> None:
    rng, arrays = np.random.default_rng(2), {}
    for i, density in enumerate((0.02, 0.03, 0.25)):
        x = rng.laplace(size=(200, 300)) * 10.0**-i
        arrays[f"w{i}"] = np.where(np.abs(x) > np.quantile(np.abs(x), 1 - density), x, 0).astype(np.float32)
    alone = Codec(values).encode(arrays)
    assert payload_info(alone).version == 2
    assert set(decode(alone, like=arrays)) == set(arrays)
    dense = {"w": rng.laplace(size=(20, 30)).astype(np.float32)}
    assert payload_info(Codec(values).encode(dense)).version == 1


@pytest.mark.parametrize("density", [0.0, 0.01, 0.2, 0.7])
def test_groups_apart_come_back(density: float) -> None:
    rng = np.random.default_rng(3)
    masks = [rng.random(n) < density * share for n, share in ((90_000, 1.0), (0, 1.0), (40_000, 0.1), (5, 1.0))]
    sizes = [mask.size for mask in masks]
    coded = gaps.encode(gaps.subsets(np.concatenate(masks), sizes), apart=True)
    assert coded is not None
    reader = Reader(coded)
    for mask, subset in zip(masks, gaps.decode(reader, sizes, apart=True), strict=True):
        np.testing.assert_array_equal(subset.mask(), mask)
    reader.finish("the test")


def test_damage_is_refused() -> None:
    rng = np.random.default_rng(4)
    parts: Any = [drawn(rng, 300, 7), drawn(rng, 2, 7)]
    at = [own for _, own in parts]
    coded = layered.encode([q for q, _ in parts], at, 7)
    for i in range(1, len(coded)):
        reader = Reader(coded[:i])
        reader.skips(layered.MARK)
        with pytest.raises(PayloadError):
            layered.decode(reader, at, 7)
    with pytest.raises(PayloadError, match="without a value"):
        layered.decode(Reader(coded), [at[0][:0]], 7)
