"""The compiled kernel and NumPy do the same: equal payloads, equal arrays, equal refusals."""

import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import kernel_kit
import numpy as np
import pytest
from damaged_payloads import corpus, mutate, network, reseal
from hypothesis import given, settings
from hypothesis import strategies as st

from flsparse.codec import Codec, PayloadError, Reference, decode_layers, kernel, portable, steps
from flsparse.codec.coders import bits, gaps, grouped, rank_one, rans, tables
from flsparse.codec.wire import Reader

pytestmark = pytest.mark.skipif(not kernel_kit.COMPILER, reason="no C compiler, or no headers of Python")
FIXED = settings(deadline=None)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return kernel_kit.load(kernel_kit.build(tmp_path_factory.mktemp("kernel")))


Both = Callable[[Callable[[], Any]], tuple[Any, Any]]


@pytest.fixture(scope="module")
def both(compiled: ModuleType) -> Iterator[Both]:
    """Return a function that calls another one with the kernel and without, and returns both results or refusals."""
    before = kernel.compiled

    def once(call: Callable[[], Any], found: ModuleType | None) -> Any:
        kernel.compiled = found
        try:
            return call()
        except PayloadError as error:
            return str(error)

    yield lambda call: (once(call, compiled), once(call, None))
    kernel.compiled = before


def alike(pair: tuple[Any, Any]) -> Any:
    """Assert that two results are equal bit for bit, and return one."""
    one, other = pair
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes()
    else:
        assert one == other
    return one


counts_lists = st.lists(st.one_of(st.just(0), st.integers(0, 30), st.integers(0, 10**6)), min_size=1, max_size=300)


def test_the_kernel_is_the_one_that_python_expects(compiled: ModuleType) -> None:
    assert compiled.VERSION == kernel.VERSION


def test_the_environment_turns_it_off() -> None:
    code = "from flsparse.codec import kernel; print(kernel.compiled, kernel.in_use())"
    environment = {"FLSPARSE_KERNEL": "0", "PYTHONPATH": str(kernel_kit.ROOT)}
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None numpy: FLSPARSE_KERNEL=0"


@FIXED
@given(counts_lists, st.booleans(), st.booleans())
def test_tables_are_chosen_alike(both: Both, counts: list[int], signed: bool, guess: bool) -> None:
    own = np.array(counts if len(counts) % 2 else [*counts, 0], np.int64)
    own[len(own) // 2] += 1
    given_table = tables.normalize(own[::-1] + 1) if guess else None

    def chosen() -> tuple[bytes, float, list[int]]:
        table = tables.choose(own, signed=signed, given=given_table)
        return table.spec, table.bits, table.frequencies.tolist()

    spec, _, frequencies = alike(both(chosen))
    read = alike(both(lambda: tables.read(Reader(spec), own.size, signed=signed, given=given_table)))
    assert read.tolist() == frequencies


@FIXED
@given(
    st.lists(st.integers(-40, 40) | st.integers(1 - (1 << 15), (1 << 15) - 1), max_size=200),
    st.sampled_from(grouped.REACHES),
)
def test_groups_are_split_alike(both: Both, values: list[int], reach: int) -> None:
    alike(both(lambda: [part.tolist() for part in grouped.split(np.array(values, np.int16), reach)]))


@FIXED
@given(st.lists(st.integers(0, 300), max_size=60), st.integers(0, 7), st.integers(0, 2**32))
def test_rice_codes_are_read_alike_whole_and_damaged(both: Both, values: list[int], k: int, seed: int) -> None:
    rng, packed = np.random.default_rng(seed), bits.rice_pack(np.array(values, np.int64), k)
    for data, most in ((packed, 300), (packed, 40), (mutate(rng, packed, packed), 300)):

        def read(data: bytes = data, most: int = most) -> tuple[list[int], int]:
            reader = Reader(data)
            return bits.rice_unpack(reader, len(values), k, most), reader.left

        alike(both(read))


@FIXED
@given(counts_lists)
def test_entropies_are_alike(both: Both, counts: list[int]) -> None:
    alike(both(lambda: portable.entropy_bits(np.array(counts))))
    alike(both(lambda: portable.entropy_bits(np.array(counts) << 17)))


@FIXED
@given(st.integers(1, 150), st.integers(1, 10**9), st.floats(0, 1))
def test_geometric_tables_are_alike(both: Both, alphabet: int, population: int, share: float) -> None:
    kept = max(1, int(share * population))
    alike(both(lambda: tables.geometric(gaps._EDGES[: alphabet + 1], population, kept)))


@FIXED
@given(
    st.integers(0, 2**32), st.integers(1, 20_000), st.sampled_from([0.0, 1e-300, 1e-3, 1.0, 1e6, 1e300]),
    st.sampled_from([1, 7, 127]),
)  # fmt: skip
def test_steps_are_alike(both: Both, seed: int, size: int, scale: float, bound: int) -> None:
    rng = np.random.default_rng(seed)
    x = scale * rng.standard_t(2, size) * (rng.random(size) < rng.random())
    alike(both(lambda: steps.least_squares_code(x, bound)))


def stream(seed: int, count: int, alphabet: int, tables_count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return symbols, their frequencies and tables."""
    rng = np.random.default_rng(seed)
    symbols = np.minimum(rng.geometric(rng.uniform(0.01, 1), count) - 1, alphabet - 1).astype(np.uint8)
    which = rng.integers(0, tables_count, count).astype(np.uint8)
    counts = np.zeros((tables_count, alphabet), np.int64)
    np.add.at(counts, (which, symbols), 1)
    counts[:, 0] += 1
    return symbols, np.array([tables.normalize(own) for own in counts]), which


def decoded_from(data: bytes, *coded: Any) -> np.ndarray:
    return rans.decode(Reader(data), *coded)


@FIXED
@given(
    st.integers(0, 2**32), st.sampled_from([1, 2, 999, 12_288, 12_289, 40_001]), st.integers(1, 256), st.integers(1, 3),
    st.sampled_from([512, 1024]),
)  # fmt: skip
def test_streams_are_alike_whole_and_damaged(
    both: Both, seed: int, count: int, alphabet: int, tables_count: int, rows: int
) -> None:
    symbols, frequencies, which = stream(seed, count, alphabet, tables_count)
    coded = alike(both(lambda: rans.encode(symbols, frequencies, which, rows)))
    decoded = alike(both(lambda: decoded_from(coded, count, frequencies, which, rows)))
    assert (decoded == symbols).all()
    rng = np.random.default_rng(seed)
    for _ in range(3):
        damaged = mutate(rng, coded, coded)
        alike(both(functools.partial(decoded_from, damaged, count, frequencies, which, rows)))


@FIXED
@given(st.integers(0, 2**32), st.integers(1, 600), st.integers(0, 40), st.sampled_from([1, 7, 127]))
def test_contexts_of_rows_and_columns_are_alike_whole_and_damaged(
    both: Both, seed: int, count: int, spread: int, bound: int
) -> None:
    rng = np.random.default_rng(seed)
    shapes = [(int(rng.integers(1, 30)), int(rng.integers(1, 30)), 3), (40,)]
    at = [np.flatnonzero(rng.random(int(np.prod(shape))) < count / 600) for shape in shapes]
    places = rank_one.places(at, shapes)
    if places is None:
        return
    scales = spread * rng.exponential(size=places.contexts)[places.ids[1]]
    q = np.clip(np.rint(rng.laplace(size=places.ids.shape[1]) * scales), -bound, bound).astype(np.int16)
    alike(both(lambda: [own.tolist() for own in rank_one.classes(q, places)]))
    coded = alike(both(lambda: rank_one.plan(q, places, bound).bytes()))
    family = {mark: family for family, mark in rank_one.MARKS.items()}[coded[0]]

    def back(data: bytes) -> np.ndarray:
        return rank_one.decode(Reader(data), family, places, bound)

    assert (alike(both(lambda: back(coded[1:]))) == q).all()
    for _ in range(3):
        alike(both(functools.partial(back, mutate(rng, coded[1:], coded))))


@settings(FIXED, max_examples=20)
@given(st.integers(0, 2**32), st.sampled_from([1, 12]), st.sampled_from(["fp32", "fp16", "int8", "int4"]))
def test_models_are_coded_alike(both: Both, seed: int, scale: int, values: str) -> None:
    rng = np.random.default_rng(seed)
    old, new = network(rng, scale), network(rng, scale)
    kept = rng.random()
    for arrays in (old, new):
        for name, array in arrays.items():
            if array.ndim == 2:
                arrays[name] = np.where(rng.random(array.shape) < kept, array, 0).astype(array.dtype)
    for reference in (None, Reference(old)):
        encode = functools.partial(Codec(values).encode, new, reference=reference)
        assert len(alike(both(encode))) > 0


@settings(FIXED, max_examples=300)
@given(st.integers(0, 2**32))
def test_damaged_payloads_are_read_or_refused_alike(both: Both, seed: int) -> None:
    rng = np.random.default_rng(seed)
    payloads = corpus()
    payload, like, reference = payloads[int(rng.integers(len(payloads)))]
    damaged = reseal(mutate(rng, payload, payloads[int(rng.integers(len(payloads)))][0]))

    def layers() -> list[tuple[bytes, bytes]]:
        found = decode_layers(damaged, like=like, reference=reference)
        return [(b"" if x.positions is None else x.positions.tobytes(), x.values.tobytes()) for x in found]

    alike(both(layers))


def test_buffers_of_other_sizes_and_senseless_contents_are_refused(compiled: ModuleType) -> None:
    one, table, out = np.zeros(1, np.int32), np.array([tables.TOTAL, 0]), np.empty(1, np.uint16)
    state = np.array([1 << 16], "<u4")
    ids, rooms = np.arange(3, dtype=np.int32), (np.empty(1, np.uint8), np.empty(1, np.int8))
    assert compiled.rank_one_decode(np.zeros(1, np.int16), ids, 3, state, b"", np.tile(table, 5), 2, 0) == 0
    assert compiled.rans_decode(out, state, b"", table, 2, None) == 0
    for call in (
        lambda: compiled.rans_encode(one + 1, table, 2, 1),  # no frequency
        lambda: compiled.rans_encode(one - 1, table, 2, 1),
        lambda: compiled.rans_encode(one, table, 2, 2),  # more lanes than symbols
        lambda: compiled.rans_encode(one, table, 0, 1),
        lambda: compiled.rans_encode(one, table - 1, 2, 1),
        lambda: compiled.rans_encode(one.view(np.uint8)[:3], table, 2, 1),
        lambda: compiled.rans_encode(np.zeros(17, np.uint8)[1:], table, 2, 1),  # not aligned
        lambda: compiled.rans_decode(out, state, b"", table, 3, None),
        lambda: compiled.rans_decode(out, b"", b"", table, 2, None),
        lambda: compiled.rans_decode(out, state, b"", table, 2, np.array([1], np.uint16)),
        lambda: compiled.rans_decode(out, state, b"", table, 2, np.zeros(2, np.uint16)),
        lambda: compiled.choose(np.empty(2, np.int64), np.array([0, 0]), None, False),
        lambda: compiled.choose(np.empty(2, np.int64), np.array([1, 1]), None, True),  # no middle
        lambda: compiled.choose(np.empty(2, np.int64), np.array([1, -1]), None, False),
        lambda: compiled.choose(np.empty(3, np.int64), np.array([1, 1]), None, False),
        lambda: compiled.choose(np.empty(2, np.int64), np.array([1, 1]), table + 1, False),
        lambda: compiled.entropy(np.array([-1])),
        lambda: compiled.group_split(np.empty(1, np.uint8), np.empty(3, np.int16), np.zeros(3, np.int16), 1, 2),
        lambda: compiled.group_split(np.empty(2, np.uint8), np.empty(2, np.int16), np.zeros(3, np.int16), 1, 2),
        lambda: compiled.group_split(np.empty(2, np.uint8), np.empty(3, np.int16), np.zeros(3, np.int16), 1, 0),
        lambda: compiled.rank_one_classes(out[:0], out[:0], np.zeros(1, np.int16), ids, 3),  # no room
        lambda: compiled.rank_one_classes(*rooms, np.zeros(1, np.int16), ids, 2),
        lambda: compiled.rank_one_classes(*rooms, np.zeros(1, np.int16), ids - 1, 3),
        lambda: compiled.rank_one_classes(*rooms, np.zeros(1, np.int16), ids[:2], 3),
        lambda: compiled.rank_one_classes(*rooms, np.zeros(1, np.int16), ids, 1 << 17),
        lambda: compiled.rank_one_decode(np.zeros(1, np.int16), ids, 2, state, b"", np.tile(table, 5), 2, 0),
        lambda: compiled.rank_one_decode(np.zeros(1, np.int16), ids, 3, state, b"", np.tile(table, 4), 2, 0),
        lambda: compiled.rank_one_decode(np.zeros(1, np.int16), ids, 3, b"", b"", np.tile(table, 5), 2, 0),
        lambda: compiled.rank_one_decode(np.zeros(1, np.int16), ids, 3, state, b"", np.tile(table, 5), 2, 16),
        lambda: compiled.rank_one_decode(np.zeros(1, np.int16), ids, 3, state, b"", np.tile(table, 5), 3, 0),
        lambda: compiled.rice_unpack(np.empty(3, np.int64), b"", 8, 100),
        lambda: compiled.parametric(np.empty(3, np.int64), 1, 256),
        lambda: compiled.geometric(np.empty(3, np.int64), np.arange(3), 0.5),
        lambda: compiled.least_squares(np.zeros(3), np.zeros(2), 100, 7),
        lambda: compiled.least_squares(np.zeros(3), np.zeros(3), 1 << 14, 7),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"range|elements|frequency"):
            call()


@pytest.mark.slow
def test_sanitizers_find_nothing_in_damaged_payloads(tmp_path: Path) -> None:
    script = [sys.executable, str(kernel_kit.ROOT / "tests" / "fuzz_kernel.py"), str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "payloads" in done.stdout
