"""Frequency tables of the entropy coder: small enough to send, built alike on every machine.

A table gives each symbol of an alphabet a frequency; the frequencies sum to ``2**14``. It travels either as quantized
logarithms of the counts (*explicit*) or as the parameter of a distribution. Both ends build the same bits whatever
their platform (:mod:`flsparse.codec.portable`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from flsparse.codec import portable
from flsparse.codec.coders.bits import rice_bits, rice_pack, rice_unpack
from flsparse.codec.errors import require
from flsparse.codec.wire import Reader, Writer

BITS = 14
TOTAL = 1 << BITS
EXPLICIT, LAPLACE, GAUSS, GIVEN = range(4)
_MAX_OCTAVE = 15


def normalize(weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """Scale non-negative integer weights to frequencies that sum to ``TOTAL``, above 0 for every weight above 0.

    Examples
    --------
    >>> normalize(np.array([3, 0, 1])).tolist()
    [12288, 0, 4096]
    """
    frequencies = weights * TOTAL // int(weights.sum())
    frequencies[(weights > 0) & (frequencies == 0)] = 1
    while missing := TOTAL - int(frequencies.sum()):
        top = int(frequencies.argmax())
        frequencies[top] += max(missing, -(int(frequencies[top]) // 2))
    return frequencies


def cost_bits(counts: NDArray[np.int64], frequencies: NDArray[np.int64]) -> float:
    """Return the bits of a message with these symbol counts; infinite when it holds a symbol of frequency 0."""
    used = counts > 0
    if (frequencies[used] == 0).any():
        return float("inf")
    return int((counts[used] * _costs()[frequencies[used]]).sum()) / (1 << portable.FRACTION)


@lru_cache(maxsize=1)
def _costs() -> NDArray[np.int64]:
    """Return the cost of a symbol by its frequency 0..TOTAL, in units of 2^-FRACTION bits; not used at frequency 0."""
    return (BITS << portable.FRACTION) - portable.log2(np.maximum(np.arange(TOTAL + 1), 1))


def _level_weights(levels: NDArray[np.int64], sub: int) -> NDArray[np.int64]:
    """Weights of levels: 0 is absent, level 1 + e * 2**sub + m stands for (2**sub + m) * 2**e."""
    octave, step = np.divmod(np.maximum(levels - 1, 0), 1 << sub)
    return np.where(levels > 0, ((1 << sub) + step) << octave, 0)


def _levels(counts: NDArray[np.int64], sub: int) -> NDArray[np.int64]:
    """Quantize counts to levels: the table's resolution is ``2**sub`` levels an octave."""
    scaled = counts * (TOTAL / max(1, int(counts.sum())))
    mantissa, exponent = np.frexp(np.maximum(scaled, 1.0))
    step = np.rint((2.0 * mantissa - 1.0) * (1 << sub))
    return np.where(counts > 0, 1 + (exponent - 1) * (1 << sub) + step, 0).astype(np.int64)


def _parametric(kind: int, parameter: int, bound: int) -> NDArray[np.int64]:
    """Frequencies of the symbols -bound..bound under theta^|i| (Laplace) or theta^(i^2) (Gauss)."""
    theta = (parameter + 0.5) / 256.0
    ratios = np.full(bound + 1, theta)  # of a symbol's weight to its inner neighbor's
    if kind == GAUSS:
        ratios[2:] = theta * theta
        ratios[1:] = np.multiply.accumulate(ratios[1:])
    ratios[0] = 1.0
    side = (np.multiply.accumulate(ratios) * (1 << 30)).astype(np.int64) + (1 << 14)
    return normalize(np.concatenate([side[:0:-1], side]))


@dataclass(frozen=True)
class Table:
    """One frequency table and the bytes that rebuild it.

    Parameters
    ----------
    frequencies : np.ndarray
        Shape (alphabet,), int64, summing to ``TOTAL``.
    spec : bytes
        Bytes that travel.
    """

    frequencies: NDArray[np.int64]
    spec: bytes


def _explicit(counts: NDArray[np.int64]) -> list[Table]:
    used = np.flatnonzero(counts)
    low, high = int(used[0]), int(used[-1])
    tables = []
    for sub in (1, 2, 3, 4):
        levels = _levels(counts[low : high + 1], sub)
        steps = np.diff(levels, prepend=0)
        folded = np.where(steps < 0, -2 * steps - 1, 2 * steps)
        k = min(range(8), key=lambda k: rice_bits(folded, k))
        out = Writer()
        out.byte(EXPLICIT | (sub - 1) << 2 | k << 4)
        out.varint(low)
        out.varint(high - low)
        out.raw(rice_pack(folded, k))
        frequencies = np.zeros(counts.size, np.int64)
        frequencies[low : high + 1] = normalize(_level_weights(levels, sub))
        tables.append(Table(frequencies, out.done()))
    return tables


def _best_parameter(kind: int, counts: NDArray[np.int64]) -> Table:
    """Golden-section-like search: coarse to fine, the cost is unimodal in theta."""
    bound = counts.size // 2
    costs: dict[int, float] = {}
    center, reach = 128, 64
    while reach:
        for parameter in (center - reach, center, center + reach):
            if parameter not in costs and 0 <= parameter < 256:
                costs[parameter] = cost_bits(counts, _parametric(kind, parameter, bound))
        center = min(costs, key=lambda p: costs[p])
        reach //= 2
    return Table(_parametric(kind, center, bound), bytes([kind, center]))


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
    tables = _explicit(counts)
    if signed:
        tables += [_best_parameter(LAPLACE, counts), _best_parameter(GAUSS, counts)]
    if given is not None:
        tables.append(Table(given, bytes([GIVEN])))
    return min(tables, key=lambda t: 8 * len(t.spec) + cost_bits(counts, t.frequencies))


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
    return _parametric(kind, reader.byte(), alphabet // 2)


def geometric(edges: Sequence[int], population: int, kept: int) -> NDArray[np.int64]:
    """Frequencies of gap tokens when ``kept`` of ``population`` positions are drawn at random.

    Parameters
    ----------
    edges : sequence of int
        Token t stands for the gaps ``edges[t]`` up to, not including, ``edges[t + 1]``; length alphabet + 1.
    population, kept : int
        ``0 < kept <= population``.
    """
    q = (population - kept) / population
    survival = np.array([portable.power(q, edge) for edge in edges])
    mass = survival[:-1] - survival[1:]
    return normalize((mass * (1 << 40)).astype(np.int64) + (1 << 24))
