"""Changes in the contexts of their rows and columns, and the lean header: format version 3."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flsparse.codec import Codec, PayloadError, Reference, decode, payload_info
from flsparse.codec.coders import integers, rank_one
from flsparse.codec.coders.gaps import Positions
from flsparse.codec.wire import Reader

Shapes = list[tuple[int, ...]]
SHAPES: Shapes = [(8, 3, 3, 3), (20, 30), (40,), (1, 1), (7, 0), (5, 6, 2)]


def drawn(rng: np.random.Generator, shape: tuple[int, ...], density: float, bound: int) -> tuple[Positions, np.ndarray]:
    """Return positions, and integers that are the rounded product of a row's error and a column's input."""
    at = np.flatnonzero(rng.random(int(np.prod(shape))) < density)
    errors, inputs = rng.laplace(size=shape[0]), rng.exponential(size=(int(np.prod(shape[1:])),))
    full = np.outer(errors, inputs).ravel() + 0.2 * rng.normal(size=int(np.prod(shape)))
    return at, np.clip(np.rint(full[at] * bound / 7), -bound, bound).astype(np.int16)


def coded_and_back(parts: list[tuple[Positions, np.ndarray]], shapes: Shapes, bound: int) -> tuple[bytes, float]:
    """Code integers, assert that they come back, and return the bytes and the size that was planned."""
    q = np.concatenate([own for _, own in parts])
    places = rank_one.places([at for at, _ in parts], shapes)
    assert places is not None
    coding = rank_one.plan(q, places, bound)
    data = coding.bytes()
    reader = Reader(data)
    (family,) = [family for family, mark in rank_one.MARKS.items() if reader.skips(mark)]
    np.testing.assert_array_equal(rank_one.decode(reader, family, places, bound), q)
    reader.finish("the test")
    return data, coding.size


@settings(deadline=None)
@given(
    st.integers(0, 2**32), st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4), st.floats(0, 1),
    st.sampled_from([7, 127]),
)  # fmt: skip
def test_integers_come_back(seed: int, shapes: Shapes, density: float, bound: int) -> None:
    rng = np.random.default_rng(seed)
    shapes = [(20, 30), *shapes]
    parts = [drawn(rng, shape, max(density, 0.05) if i == 0 else density, bound) for i, shape in enumerate(shapes)]
    if not any(at.size for at, _ in parts):
        return
    data, planned = coded_and_back(parts, shapes, bound)
    assert abs(len(data) - planned) < 6 + 0.01 * len(data)


def test_what_came_before_by_hand() -> None:
    """Rows 0 0 0 1, columns 0 1 2 0 of a matrix: magnitudes 4 4 0 1."""
    places = rank_one.places([np.array([0, 1, 2, 3])], [(2, 3)])
    assert places is not None
    assert places.contexts == 1 + 2 + 3
    assert places.ids.tolist() == [[0, 0, 0, 0], [1, 1, 1, 2], [3, 4, 5, 3]]
    sizes, signs = rank_one.classes(np.array([-4, 4, 0, 1], np.int16), places)
    means = [1 / 2, 5 / 3, 9 / 4, 9 / 5]
    x = [
        means[0],
        (4 + 2 * means[1]) / 3,
        (8 + 2 * means[2]) / 4,
        (4 + 4 * means[3]) / 5,
    ]
    edges = [2.0 ** (k - 3) for k in range(11)]
    assert sizes.tolist() == [sum(own >= edge for edge in edges) for own in x]
    assert signs.tolist() == [1, -3, 1, 1]  # |S|/(n + 2): 0, 1/3, 0, and 0 of a new row


def test_kernels_share_a_column_among_their_places_and_vectors_are_one_row() -> None:
    places = rank_one.places([np.array([0, 3, 4, 15]), np.array([2, 5])], [(2, 2, 2, 2), (6,)])
    assert places is not None
    assert places.ids[1].tolist() == [1, 1, 1, 2, 6, 6]
    assert places.ids[2].tolist() == [3, 3, 4, 4, 7, 7]


def test_changes_of_rank_one_cost_less_than_one_table() -> None:
    rng = np.random.default_rng(1)
    shapes: Shapes = [(64, 32, 3, 3), (64, 256)]
    parts = [drawn(rng, shape, 0.1, 7) for shape in shapes]
    data, _ = coded_and_back(parts, shapes, 7)
    assert len(data) < 0.85 * len(integers.encode_integers(np.concatenate([q for _, q in parts])))


def test_as_many_as_go_through_one_lane_and_no_more() -> None:
    rng = np.random.default_rng(2)
    shape = (rank_one.MOST // 256, 256)
    at, q = drawn(rng, shape, 2.0, 7)
    coded_and_back([(at, q)], [shape], 7)
    assert rank_one.places([range(rank_one.MOST + 1)], [(rank_one.MOST + 1, 1)]) is None
    assert rank_one.places([range(9)], [(9, 1 << 17)]) is None
    assert rank_one.places([range(0)], [(9, 9)]) is None


@pytest.mark.parametrize("values", ["fp32", "fp16", "int8", "int4"])
def test_a_reference_makes_payloads_of_version_3_without_a_fingerprint(values: str) -> None:
    rng = np.random.default_rng(3)
    old = {"w": rng.normal(size=(40, 60)).astype(np.float32), "count": np.array(3)}
    new = {"w": (old["w"] + 0.01).astype(np.float32), "count": np.array(4)}
    reference = Reference(old)
    info = payload_info(Codec(values).encode(new, reference=reference))
    assert info.version == 3
    assert info.sections["header"] == 17 + 2 + 1 + 1 + 2 - (info.sections["dense"] < 128)
    assert info.sections["lossless"] > 0
    del old["count"], new["count"]
    lean = Codec(values).encode(new, reference=Reference(old))
    assert payload_info(lean).sections["header"] == 17 + 2 + 1 + 1
    with pytest.raises(PayloadError, match="other names, shapes or dtypes"):
        decode(lean, like={"w": old["w"].reshape(60, 40)}, reference=Reference(old))


def test_the_contexts_pay_in_dense_and_in_sparse_arrays_of_an_update() -> None:
    rng = np.random.default_rng(4)
    old = {"sparse": rng.normal(size=(64, 128)), "dense": rng.normal(size=(64, 64))}
    old["sparse"][rng.random((64, 128)) < 0.8] = 0
    change = {name: np.outer(rng.laplace(size=64), rng.exponential(size=a.shape[1])) for name, a in old.items()}
    new = {name: np.where(old[name] != 0, old[name] + change[name], 0) for name in old}
    shuffled = {}
    for name, array in new.items():
        q = (array - old[name])[old[name] != 0]
        shuffled[name] = np.zeros_like(array)
        shuffled[name][old[name] != 0] = old[name][old[name] != 0] + rng.permutation(q)
    reference = Reference(old)
    known, mixed = (payload_info(Codec("int4").encode(a, reference=reference)).sections for a in (new, shuffled))
    for section in ("values", "dense"):
        assert known[section] < 0.9 * mixed[section]


def test_damage_is_refused() -> None:
    rng = np.random.default_rng(5)
    parts = [drawn(rng, (20, 30), 0.5, 7)]
    places = rank_one.places([parts[0][0]], [(20, 30)])
    assert places is not None
    data, _ = coded_and_back(parts, [(20, 30)], 7)
    (family,) = [family for family, mark in rank_one.MARKS.items() if data[0] == mark]
    for end in range(1, len(data)):
        with pytest.raises(PayloadError):
            rank_one.decode(Reader(data[1:end]), family, places, 7)
    with pytest.raises(PayloadError, match=r"ends early|does not end where it began"):
        rank_one.decode(Reader(data[1:-1] + bytes([data[-1] ^ 1])), family, places, 7)
