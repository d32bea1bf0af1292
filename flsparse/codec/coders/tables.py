"""Frequency tables of the entropy coder: small enough to send, built alike on every machine.

A table gives each symbol of an alphabet a frequency; the frequencies sum to ``2**14``. It travels either as quantized
logarithms of the counts (*explicit*) or as the parameter of a distribution. Both ends build the same bits whatever
their platform (:mod:`flsparse.codec.portable`).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from flsparse.codec import kernel, portable
from flsparse.codec.coders.bits import rice_bits, rice_pack, rice_unpack
from flsparse.codec.errors import require
from flsparse.codec.wire import Reader, Writer

BITS = 14
TOTAL = 1 << BITS
EXPLICIT, LAPLACE, GAUSS, GIVEN = range(4)
_MAX_OCTAVE = 15
_SUBS = np.arange(1, 5)[:, None]  # resolutions of an explicit table
_RICE = np.arange(8)  # parameters of its entries' code


def normalize(weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """Scale non-negative integer weights to frequencies that sum to ``TOTAL``, above 0 for every weight above 0.

    Parameters
    ----------
    weights : np.ndarray
        Shape (alphabet,), or (tables, alphabet); of each table at least one is above 0.

    Examples
    --------
    >>> normalize(np.array([3, 0, 1])).tolist()
    [12288, 0, 4096]
    """
    frequencies: NDArray[np.int64] = weights * TOTAL // weights.sum(axis=-1, keepdims=True, dtype=np.int64)
    frequencies[(weights > 0) & (frequencies == 0)] = 1
    rows = frequencies.reshape(-1, frequencies.shape[-1])  # a view
    every = np.arange(len(rows))
    while (missing := TOTAL - rows.sum(axis=1, dtype=np.int64)).any():
        top = rows.argmax(axis=1)
        rows[every, top] += np.maximum(missing, -(rows[every, top] // 2))
    return frequencies


def cost_bits(counts: NDArray[np.int64], frequencies: NDArray[np.int64]) -> float:
    """Return the bits of a message with these symbol counts; infinite when it holds a symbol of frequency 0."""
    if ((counts > 0) & (frequencies == 0)).any():
        return float("inf")
    return int((counts * costs()[frequencies]).sum()) / (1 << portable.FRACTION)


@lru_cache(maxsize=1)
def costs() -> NDArray[np.int32]:
    """Return the cost of a symbol by its frequency 0..TOTAL, in units of 2^-FRACTION bits; not used at frequency 0."""
    logs = portable.log2(np.maximum(np.arange(TOTAL + 1), 1))
    return ((BITS << portable.FRACTION) - logs).astype(np.int32)


def _level_weights(levels: NDArray[np.int64], sub: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Weights of levels: 0 is absent, level 1 + e * 2**sub + m stands for (2**sub + m) * 2**e."""
    present = np.maximum(levels - 1, 0)
    octave, step = present >> sub, present & (1 << sub) - 1
    return np.where(levels > 0, ((1 << sub) + step) << octave, 0)


def _levels(counts: NDArray[np.int64], sub: NDArray[np.int64]) -> NDArray[np.int64]:
    """Quantize counts to levels, a row for each resolution: ``2**sub`` levels an octave, ``sub`` of shape (rows, 1)."""
    scaled = counts * (TOTAL / max(1, int(counts.sum())))
    mantissa, exponent = np.frexp(np.maximum(scaled, 1.0))
    step = np.rint((2.0 * mantissa - 1.0) * (1 << sub)).astype(np.int64)
    return np.where(counts > 0, 1 + ((exponent.astype(np.int64) - 1) << sub) + step, 0)


def parametric(kind: int, parameters: NDArray[np.int64], bound: int) -> NDArray[np.int64]:
    """Frequencies of the symbols -bound..bound under theta^|i| (Laplace) or theta^(i^2) (Gauss), a row a parameter."""
    theta = (parameters[:, None] + 0.5) / 256.0
    ratios = np.repeat(theta, bound + 1, axis=1)  # of a symbol's weight to its inner neighbor's
    if kind == GAUSS:
        ratios[:, 2:] = theta * theta
        ratios[:, 1:] = np.multiply.accumulate(ratios[:, 1:], axis=1)
    ratios[:, 0] = 1.0
    side = (np.multiply.accumulate(ratios, axis=1) * (1 << 30)).astype(np.int64) + (1 << 14)
    return normalize(np.concatenate([side[:, :0:-1], side], axis=1))


@lru_cache(maxsize=512)
def _parametric_costs(kind: int, parameters: range, bound: int) -> NDArray[np.int32]:
    """Return the costs of the symbols under each of some parameters, shape (parameters, 2 bound + 1)."""
    return costs()[parametric(kind, np.array(parameters), bound)]


@dataclass(frozen=True)
class Table:
    """One frequency table and the bytes that rebuild it.

    Parameters
    ----------
    frequencies : np.ndarray
        Shape (alphabet,), int64, summing to ``TOTAL``.
    spec : bytes
        Bytes that travel.
    bits : float
        Bits of the table and of the message that it was chosen for, without the coder's overhead.
    """

    frequencies: NDArray[np.int64]
    spec: bytes
    bits: float


def _best_explicit(counts: NDArray[np.int64], limit: float) -> Table | None:
    """Return the best table of levels, or None where all of them are above ``limit`` bits: only the best is packed."""
    used = np.flatnonzero(counts)
    low, high = int(used[0]), int(used[-1])
    own = counts[low : high + 1]
    head = Writer()
    head.varint(low)
    head.varint(high - low)
    ends = head.done()
    if 8 * (1 + len(ends)) + own.size + least_bits(own) > limit:  # an entry takes at least a bit
        return None
    levels = _levels(own, _SUBS)
    steps = np.diff(levels, prepend=0)
    folded = np.where(steps < 0, -2 * steps - 1, 2 * steps)
    rice = rice_bits(folded[:, None], _RICE[:, None])
    frequencies = normalize(_level_weights(levels, _SUBS))
    coded = (own * costs()[frequencies]).sum(axis=1, dtype=np.int64)
    sizes = 8 * (1 + len(ends) + (rice.min(axis=1) + 7) // 8) + coded / (1 << portable.FRACTION)
    best = int(sizes.argmin())
    if sizes[best] > limit:
        return None
    k = int(rice[best].argmin())
    whole = np.zeros(counts.size, np.int64)
    whole[low : high + 1] = frequencies[best]
    spec = bytes([EXPLICIT | best << 2 | k << 4]) + ends + rice_pack(folded[best], k)
    return Table(whole, spec, float(sizes[best]))


def least_bits(counts: NDArray[np.int64]) -> float:
    """Return a number of bits that no table comes below: the entropy, less what a logarithm may be wrong by."""
    return portable.entropy_bits(counts) - int(counts.sum()) / 1000


def _best_parameter(kind: int, counts: NDArray[np.int64]) -> tuple[float, int]:
    """Return the least bits and their parameter: coarse to fine, the cost is unimodal in theta."""
    bound = counts.size // 2
    known: dict[int, int] = {}
    seen: dict[int, int] = {}
    center, reach = 128, 64
    while reach:
        if reach in (64, 4):  # all that the next steps can come to, at once
            near = range(8, 256, 8) if reach == 64 else range(center - 7, center + 8)
            found = (counts * _parametric_costs(kind, near, bound)).sum(axis=1, dtype=np.int64)
            known |= zip(near, found.tolist(), strict=True)
        for parameter in (center - reach, center, center + reach):
            seen.setdefault(parameter, known[parameter])
        center = min(seen, key=lambda p: seen[p])
        reach //= 2
    return 16 + seen[center] / (1 << portable.FRACTION), center


def choose(counts: NDArray[np.int64], *, signed: bool, given: NDArray[np.int64] | None = None) -> Table:
    """Pick the table for which table plus message are smallest.

    Parameters
    ----------
    counts : np.ndarray
        Shape (alphabet,), int64: how often each symbol occurs, at least one of them.
    signed : bool
        Whether the alphabet is -bound..bound, so that the symmetric distributions apply.
    given : np.ndarray, optional
        Frequencies that the decoder can compute without the table.
    """
    if kernel.compiled is not None:
        chosen = np.empty(counts.size, np.int64)
        spec, size = kernel.compiled.choose(chosen, _contiguous(counts), given, signed)
        return Table(chosen, spec, size)
    sizes: dict[int, float] = {}
    parameters = {}
    if signed:
        for kind in (LAPLACE, GAUSS):
            sizes[kind], parameters[kind] = _best_parameter(kind, counts)
    if given is not None:
        sizes[GIVEN] = 8 + cost_bits(counts, given)
    explicit = _best_explicit(counts, min(sizes.values(), default=float("inf")))
    if explicit is not None:
        return explicit
    kind = min(sizes, key=lambda kind: sizes[kind])
    if kind == GIVEN:
        assert given is not None
        return Table(given, bytes([GIVEN]), sizes[GIVEN])
    frequencies = _parametric_table(kind, parameters[kind], counts.size)
    return Table(frequencies, bytes([kind, parameters[kind]]), sizes[kind])


def read(reader: Reader, alphabet: int, *, signed: bool, given: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Read a table written by :func:`choose` and return its frequencies."""
    head = reader.byte()
    kind = head & 3
    if kind == EXPLICIT:
        require(head < 0x80, f"unknown table flags 0x{head:02x}")
        sub, k = (head >> 2 & 3) + 1, head >> 4
        low = reader.varint(alphabet - 1)
        span = reader.varint(alphabet - 1 - low) + 1
        most = 1 + (_MAX_OCTAVE << sub)
        folded = np.array(rice_unpack(reader, span, k, 2 * most), np.int64)
        levels = np.cumsum(np.where(folded & 1, -(folded + 1) // 2, folded // 2))
        require(bool((levels >= 0).all() and (levels <= most).all()), "a table entry is out of range")
        require(bool(levels.any()), "a table is empty")
        frequencies = np.zeros(alphabet, np.int64)
        frequencies[low : low + span] = normalize(_level_weights(levels, sub))
        return frequencies
    require(head == kind, f"unknown table flags 0x{head:02x}")
    if kind == GIVEN:
        require(given is not None, "a table refers to a distribution that does not apply here")
        assert given is not None
        return given
    require(signed, "a symmetric distribution for unsigned symbols")
    return _parametric_table(kind, reader.byte(), alphabet)


def _parametric_table(kind: int, parameter: int, alphabet: int) -> NDArray[np.int64]:
    if kernel.compiled is None:
        return parametric(kind, np.array([parameter]), alphabet // 2).reshape(-1)
    frequencies = np.empty(alphabet, np.int64)
    kernel.compiled.parametric(frequencies, kind, parameter)
    return frequencies


def _contiguous(integers: NDArray[np.integer]) -> NDArray[np.int64]:
    return np.ascontiguousarray(integers, np.int64)


def geometric(edges: NDArray[np.int64], population: int, kept: int) -> NDArray[np.int64]:
    """Frequencies of gap tokens when ``kept`` of ``population`` positions are drawn at random.

    Parameters
    ----------
    edges : np.ndarray
        Shape (alphabet + 1,), int64: token t stands for the gaps ``edges[t]`` up to, not including, ``edges[t + 1]``.
    population, kept : int
        ``0 < kept <= population``.
    """
    q = (population - kept) / population
    if kernel.compiled is not None:
        frequencies = np.empty(edges.size - 1, np.int64)
        kernel.compiled.geometric(frequencies, _contiguous(edges), q)
        return frequencies
    survival = portable.powers(q, edges)
    mass = survival[:-1] - survival[1:]
    return normalize((mass * (1 << 40)).astype(np.int64) + (1 << 24))
