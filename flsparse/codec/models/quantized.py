"""int8 and int4: sections of quantized values.

Sparse arrays: per array a step for the kept positions inside the reference's support and one for the positions outside
(or for all, without a reference). Dense arrays: per array a step; arrays with fewer than two dimensions get a finer
one, and are quantized in the logarithm where all their values are positive, as norm weights and variances are, so that
the decoded values are positive too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flsparse.codec import steps as quant
from flsparse.codec.coders import bits, layered, rank_one
from flsparse.codec.coders import integers as symbols
from flsparse.codec.coders.gaps import Positions
from flsparse.codec.errors import require
from flsparse.codec.models.layout import is_fine
from flsparse.codec.specs import ArraySpec
from flsparse.codec.steps import Floats, Integers
from flsparse.codec.wire import Reader, Writer

INT4 = 7
RANK_ONE = 3  # format version from which on changes may be coded in the contexts of rows and columns
_FINE, _FINER = 4.0, 64.0  # steps per rms of small arrays: of their changes under int4; else


@dataclass(frozen=True)
class Quantizer:
    """Quantizer of a payload's values.

    Parameters
    ----------
    bound : int
        7 for int4, 127 for int8.
    rng : np.random.Generator, optional
        Rounds stochastically.
    """

    bound: int
    rng: np.random.Generator | None = None

    def code(self, x: Floats, relative: bool) -> int:
        """Return the step code for values, or changes, of sparse or large dense arrays."""
        if self.rng is not None:
            return quant.widest_code(x, self.bound)
        best = quant.least_squares_code(x, self.bound)
        if relative and self.bound == INT4:
            return max(best, quant.step_code(quant.rms(x)))  # a finer step spends bits on noise, see docs/codec.md
        return best

    def fine_code(self, x: Floats, relative: bool) -> int:
        """Return the step code for values of small dense arrays: nothing is clipped."""
        steps_per_rms = _FINE if relative and self.bound == INT4 else _FINER
        return max(quant.step_code(quant.rms(x) / steps_per_rms), quant.widest_code(x, quant.FINE_BOUND))

    def integers(self, x: Floats, code: int, bound: int) -> Integers:
        """Quantize with a step code."""
        return quant.quantize(x, quant.step_of(code), bound, self.rng)


def _write_codes(out: Writer, codes: list[int]) -> None:
    """Write step codes as folded differences, the first from a step of 1: mostly a byte each."""
    for before, code in zip([quant.ONE_CODE, *codes], codes, strict=False):
        step = code - before
        out.varint(2 * step if step >= 0 else -2 * step - 1)


def _read_codes(reader: Reader, count: int) -> list[float]:
    """Read ``count`` step codes and return their steps."""
    steps, code = [], quant.ONE_CODE
    for _ in range(count):
        folded = reader.varint(2 * quant.MAX_CODE)
        code += -(folded + 1) // 2 if folded & 1 else folded // 2
        require(1 <= code <= quant.MAX_CODE, f"step code {code} is not a positive finite step")
        steps.append(quant.step_of(code))
    return steps


def _check_range(q: Integers, bound: int) -> None:
    in_range = not q.size or (-bound <= int(q.min()) and int(q.max()) <= bound)  # |-2^15| is no int16
    require(in_range, "a quantized value is out of range")


@dataclass(frozen=True)
class SparseRun:
    """Kept values of one sparse array: integers, whether each lies inside the reference's support, step codes."""

    q: Integers
    inside: NDArray[np.bool_]
    codes: tuple[int | None, int | None]  # inside, outside; None where there is nothing

    def select(self, worth: NDArray[np.bool_]) -> "SparseRun":
        """Return the run without the values that are not worth sending; all of these lie outside."""
        inside = self.inside[worth]
        return SparseRun(self.q[worth], inside, (self.codes[0], None if inside.all() else self.codes[1]))


def quantize_sparse(values: np.ndarray, base: np.ndarray | None, quantizer: Quantizer) -> SparseRun:
    """Quantize the kept values of one array, relative to ``base`` where that is not zero."""
    inside = np.zeros(values.size, np.bool_) if base is None else base != 0
    x = values.astype(np.float64)
    if base is not None:
        x -= base
    q = np.empty(x.size, np.int16)
    codes: list[int | None] = []
    for side in (inside, ~inside):
        part = x[side]
        codes.append(quantizer.code(part, side is inside) if part.size else None)
        if codes[-1] is not None:
            q[side] = quantizer.integers(part, codes[-1], quantizer.bound)
    return SparseRun(q, inside, (codes[0], codes[1]))


Places = Sequence[Positions | range]
Shapes = list[tuple[int, ...]]


def _within(at: Places, insides: list[NDArray[np.bool_]]) -> list[Positions | range]:
    """Return the positions that lie inside the reference's support."""
    return [own if inside.all() else np.asarray(own)[inside] for own, inside in zip(at, insides, strict=True)]


def _write_changes(parts: list[Integers], at: Places, shapes: Shapes, bound: int) -> bytes:
    """Code changes of arrays at positions: in the contexts of their rows and columns where that is smaller."""
    q = _joined(parts) if parts else np.empty(0, np.int16)
    places = rank_one.places(at, shapes)
    if places is None:
        return symbols.encode_integers(q)
    coding = rank_one.plan(q, places, bound)
    plain = symbols.smaller_integers(q, coding.size) if symbols.least(q) < coding.size else None
    return coding.bytes() if plain is None else plain


def _read_changes(reader: Reader, at: Places, shapes: Shapes, bound: int, version: int) -> Integers:
    """Decode the bytes that :func:`_write_changes` writes; before version 3 there are no contexts."""
    for family, mark in rank_one.MARKS.items():
        if version >= RANK_ONE and reader.skips(mark):
            places = rank_one.places(at, shapes)
            require(places is not None, "no, or too many, values in the contexts of rows and columns")
            assert places is not None
            return rank_one.decode(reader, family, places, bound)
    return symbols.decode_integers(reader, sum(map(len, at)))


def write_sparse(
    runs: list[SparseRun], at: list[Positions], shapes: Shapes, bound: int, *, alone: bool
) -> tuple[bytes, int]:
    """Write the values section: step codes inside and outside, integers inside and outside.

    ``alone``, without a reference, the integers are layered where that is smaller: then, the format version that is
    returned as well is 2.
    """
    out = Writer()
    codes = [run.codes[side] for side in (0, 1) for run in runs]
    _write_codes(out, [code for code in codes if code is not None])
    if alone and any(own.size for own in at):
        coded = layered.encode([run.q for run in runs], at, bound)
        plain = symbols.smaller_integers(np.concatenate([run.q for run in runs]), len(coded))
        out.raw(coded if plain is None else plain)
        return out.done(), 2 if plain is None else 1
    changed = _within(at, [run.inside for run in runs])
    out.raw(_write_changes([run.q[run.inside] for run in runs], changed, shapes, bound))
    new = [run.q[~run.inside] for run in runs]
    out.raw(symbols.encode_integers(np.concatenate([np.empty(0, np.int16), *new])))
    return out.done(), 1


def read_sparse(
    reader: Reader,
    at: list[Positions],
    bases: list[np.ndarray] | None,
    specs: list[ArraySpec],
    bound: int,
    version: int,
) -> list[np.ndarray]:
    """Decode the bytes that :func:`write_sparse` writes: the kept values of every sparse array."""
    sizes = [own.size for own in at]
    insides = [np.zeros(n, np.bool_) for n in sizes] if bases is None else [base != 0 for base in bases]
    counts = [(int(np.count_nonzero(inside)), int(np.count_nonzero(~inside))) for inside in insides]
    known = iter(_read_codes(reader, sum(bool(count[side]) for count in counts for side in (0, 1))))
    steps = [[next(known) if count[side] else 0.0 for count in counts] for side in (0, 1)]
    if version > 1 and bases is None and reader.skips(layered.MARK):
        streams = [np.empty(0, np.int16), np.concatenate(layered.decode(reader, at, bound))]
    else:
        shapes = [spec.shape for spec in specs]
        streams = [
            _read_changes(reader, _within(at, insides), shapes, bound, version),
            symbols.decode_integers(reader, sum(outside for _, outside in counts)),
        ]
    for stream in streams:
        _check_range(stream, bound)
    out, start = [], [0, 0]
    for i, (inside, spec, count) in enumerate(zip(insides, specs, counts, strict=True)):
        dtype = spec.dtype
        base = None if bases is None else bases[i]
        parts = [streams[side][start[side] : start[side] + count[side]] for side in (0, 1)]
        start = [start[0] + count[0], start[1] + count[1]]
        if not all(count):  # one step for the whole array
            side = 0 if count[0] else 1
            out.append(quant.dequantize(parts[side], steps[side][i], base if side == 0 else None, dtype))
            continue
        assert base is not None
        values = np.empty(inside.size, dtype)
        values[inside] = quant.dequantize(parts[0], steps[0][i], base[inside], dtype)
        values[~inside] = quant.dequantize(parts[1], steps[1][i], None, dtype)
        out.append(values)
    return out


@dataclass(frozen=True)
class DenseRun:
    """One dense array of a payload.

    Parameters
    ----------
    spec : ArraySpec
        Floating.
    base : np.ndarray or None
        The reference's flat array.
    """

    spec: ArraySpec
    base: np.ndarray | None

    @property
    def size(self) -> int:
        """Elements."""
        return self.spec.size

    @property
    def dtype(self) -> np.dtype:
        """The array's."""
        return self.spec.dtype

    @property
    def fine(self) -> bool:
        """Whether it needs a finer step."""
        return is_fine(self.spec)


def _everywhere(runs: list[DenseRun]) -> tuple[Places, Shapes]:
    """Return all positions of the large arrays, and their shapes."""
    large = [run for run in runs if not run.fine]
    return [range(run.size) for run in large], [run.spec.shape for run in large]


def _positive(array: np.ndarray, base: np.ndarray | None) -> bool:
    return bool((array > 0).all()) and (base is None or bool((base > 0).all()))


def write_dense(arrays: list[np.ndarray], runs: list[DenseRun], quantizer: Quantizer) -> bytes:
    """Write the dense section: a bit per array (logarithm), step codes, integers of large arrays and of small ones."""
    out = Writer()
    parts: dict[bool, list[Integers]] = {False: [], True: []}
    logarithms, codes = [], []
    for array, run in zip(arrays, runs, strict=True):
        logarithm = run.fine and _positive(array, run.base)
        x = quant.log_code(array) if logarithm else array.astype(np.float64)
        if run.base is not None:
            x -= quant.log_code(run.base) if logarithm else run.base
        pick = quantizer.fine_code if run.fine else quantizer.code
        code = pick(x, run.base is not None)
        parts[run.fine].append(quantizer.integers(x, code, quant.FINE_BOUND if run.fine else quantizer.bound))
        logarithms.append(logarithm)
        codes.append(code)
    out.array(np.packbits(np.array(logarithms, np.bool_)))
    _write_codes(out, codes)
    if any(run.base is None for run in runs):
        out.raw(symbols.encode_integers(np.concatenate([np.empty(0, np.int16), *parts[False]])))
    else:
        out.raw(_write_changes(parts[False], *_everywhere(runs), quantizer.bound))
    out.raw(symbols.encode_integers(np.concatenate([np.empty(0, np.int16), *parts[True]])))
    return out.done()


def read_dense(reader: Reader, runs: list[DenseRun], bound: int, version: int) -> list[np.ndarray]:
    """Decode the bytes that :func:`write_dense` writes: flat arrays."""
    logarithms = bits.read_flags(reader, len(runs))
    steps = _read_codes(reader, len(runs))
    streams, at = {}, {False: 0, True: 0}
    streams[False] = _read_changes(reader, *_everywhere(runs), bound, version)
    streams[True] = symbols.decode_integers(reader, sum(run.size for run in runs if run.fine))
    _check_range(streams[False], bound)
    _check_range(streams[True], quant.FINE_BOUND)
    parts: list[Integers] = []
    groups: dict[object, list[int]] = {}
    for i, (logarithm, run) in enumerate(zip(logarithms, runs, strict=True)):
        parts.append(streams[run.fine][at[run.fine] : at[run.fine] + run.size])
        at[run.fine] += run.size
        require(run.fine or not logarithm, "a logarithm of a large array")
        key = (bool(logarithm), run.dtype) if run.fine else i  # small arrays are many: alike ones go together
        groups.setdefault(key, []).append(i)
    out: list[np.ndarray] = [np.empty(0)] * len(runs)
    for members in groups.values():
        some, sizes = [runs[i] for i in members], [runs[i].size for i in members]
        q, base = _joined([parts[i] for i in members]), None
        if some[0].base is not None:
            base = _joined([run.base for run in some if run.base is not None])
        step = np.repeat([steps[i] for i in members], sizes) if len(members) > 1 else np.array(steps[members[0]])
        values = _dense_values(q, step, base, some[0].dtype, logarithm=bool(logarithms[members[0]]))
        for i, value in zip(members, np.split(values, np.cumsum(sizes)[:-1]), strict=True):
            out[i] = value
    return out


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _dense_values(
    q: Integers, step: Floats, base: np.ndarray | None, dtype: np.dtype, *, logarithm: bool
) -> np.ndarray:
    if not logarithm:
        return quant.dequantize(q, step, base, dtype)
    require(base is None or bool((base > 0).all()), "a logarithm of what is not positive")
    with np.errstate(over="ignore"):
        x = q * step
    return quant.log_value(x if base is None else x + quant.log_code(base), dtype)
