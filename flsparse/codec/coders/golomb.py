"""The vector source code of MALCOM-PSGD (arXiv 2311.05760): each symbol's frequency and support, in Golomb runs.

A vector of symbols is described symbol by symbol, the rarest first: how often it occurs, and where among the positions
that are still open, as the runs between its occurrences. The most frequent symbol needs no description: it fills the
remaining positions. By the chain rule of entropy, coding the symbols one after the other loses nothing; a Golomb code
of geometric runs loses up to 4 % at the worst frequency and usually well below 1 %.

A run r is coded by Golomb's rule with parameter m: ``r // m`` in unary, ``r % m`` in truncated binary (Golomb 1966;
Gallager and Van Voorhis 1975 for the best m). The unary parts, the leading and the last bits of the remainders are kept
in streams of their own, so that NumPy reads and writes all runs at once.
"""

import numpy as np
from numpy.typing import NDArray

from flsparse.codec.coders import bits
from flsparse.codec.errors import require
from flsparse.codec.portable import power
from flsparse.codec.wire import Reader, Writer

Runs = NDArray[np.int64]


def golomb_parameter(count: int, population: int) -> int:
    """Return the best m for the runs between ``count`` positions drawn at random from ``population``.

    The smallest with ``q^m + q^(m + 1) <= 1``, where q is the share of the other positions.

    Examples
    --------
    >>> [golomb_parameter(n, 100) for n in (50, 25, 10, 1)]
    [1, 2, 7, 69]
    """
    q = (population - count) / population
    low, high = 0, population + 1  # too small, large enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(q, middle) * (1.0 + q) <= 1.0 else (middle, high)
    return high


def encode_runs(runs: Runs, m: int) -> bytes:
    """Code runs with Golomb parameter m.

    Parameters
    ----------
    runs : np.ndarray
        Shape (n,), int64, 0 or more.
    m : int
        At least 1.

    Returns
    -------
    bytes
        m and the bytes of the unary stream (varints); the unary stream (a run's ones end with a 0); the remainders'
        leading bits; the last bits of the remainders that have one more.
    """
    quotient, rest = np.divmod(runs, m)
    unary = np.ones(int(quotient.sum()) + runs.size, np.uint8)
    unary[np.cumsum(quotient + 1) - 1] = 0
    packed = np.packbits(unary).tobytes()
    width, cutoff = _remainder_widths(m)
    is_long = rest >= cutoff
    lead = np.where(is_long, (rest + cutoff) >> 1, rest)
    out = Writer()
    out.varint(m)
    out.varint(len(packed))
    out.raw(packed)
    out.raw(bits.pack(lead, width))
    if width or m > 1:
        out.raw(bits.pack((rest[is_long] + cutoff) & 1, 1))
    return out.done()


def decode_runs(reader: Reader, count: int, most: int) -> Runs:
    """Read ``count`` runs that sum to at most ``most``, written by :func:`encode_runs`."""
    m = reader.varint(most + 1)
    require(m >= 1, "a Golomb parameter is 0")
    unary = np.unpackbits(np.frombuffer(reader.raw(reader.varint(reader.left)), np.uint8))
    ends = np.flatnonzero(unary == 0)
    require(ends.size >= count, "a stream of runs ends early")
    last = int(ends[count - 1]) if count else -1
    require(unary.size - last - 1 < 8 and not unary[last + 1 :].any(), "a stream of runs is padded wrongly")
    quotient = np.diff(ends[:count], prepend=-1) - 1
    width, cutoff = _remainder_widths(m)
    lead = bits.unpack(reader, count, width).astype(np.int64)
    is_long = lead >= cutoff
    if width or m > 1:
        extra = bits.unpack(reader, int(is_long.sum()), 1).astype(np.int64)
        lead[is_long] = (lead[is_long] << 1 | extra) - cutoff
    require(bool((lead < m).all()), "a remainder is out of range")
    require(int(quotient.max(initial=0)) <= most // m, "a run is too long")
    runs = quotient * m + lead
    require(int(runs.sum()) <= most, "runs exceed their vector")
    return runs


def _remainder_widths(m: int) -> tuple[int, int]:
    """Return the leading bits of a remainder below m, and the leading value from which one more bit follows."""
    if m == 1:
        return 0, 1
    width = (m - 1).bit_length()
    return width - 1, (1 << width) - m


def encode_symbols(symbols: np.ndarray, alphabet: int) -> bytes:
    """Code a vector of symbols.

    Parameters
    ----------
    symbols : np.ndarray
        Shape (n,), integers in 0..alphabet - 1; n is known to the decoder.
    alphabet : int
        At least 1.

    Returns
    -------
    bytes
        The symbols' counts (varints), then the runs of each that occurs, the rarest first, but for the last.
    """
    counts = np.bincount(symbols, minlength=alphabet)
    out = Writer()
    for count in counts.tolist():
        out.varint(count)
    remaining = symbols
    for symbol in _by_rarity(counts)[:-1]:
        here = remaining == symbol
        positions = np.flatnonzero(here)
        out.raw(encode_runs(np.diff(positions, prepend=-1) - 1, golomb_parameter(positions.size, remaining.size)))
        remaining = remaining[~here]
    return out.done()


def decode_symbols(reader: Reader, size: int, alphabet: int) -> NDArray[np.int64]:
    """Read ``size`` symbols written by :func:`encode_symbols`."""
    counts = np.array([reader.varint(size) for _ in range(alphabet)], np.int64)
    require(int(counts.sum()) == size, "the frequencies of the symbols do not add up")
    out = np.zeros(size, np.int64)
    remaining = np.arange(size)
    order = _by_rarity(counts)
    for symbol in order[:-1]:
        count = int(counts[symbol])
        positions = np.cumsum(decode_runs(reader, count, remaining.size - count) + 1) - 1
        out[remaining[positions]] = symbol
        remaining = np.delete(remaining, positions)
    if order:
        out[remaining] = order[-1]
    return out


def _by_rarity(counts: NDArray[np.int64]) -> list[int]:
    return [int(symbol) for symbol in np.argsort(counts, kind="stable") if counts[symbol]]
