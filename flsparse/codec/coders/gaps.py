"""Subsets of groups of positions, coded by the gaps between the rarer ones.

The space of positions is cut into consecutive *groups* of about equal density inside. For each group the rarer side,
kept or dropped, is coded by the gaps between its positions. A gap becomes a token and raw bits: below 16 the token is
the gap, above it each octave has four tokens. Groups whose densities share an octave share a frequency table: one that
is sent, or, where that costs too many bytes, the geometric one that their counts imply.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flsparse.codec.coders import bits, rans, tables
from flsparse.codec.errors import require
from flsparse.codec.wire import Reader, Writer

Positions = NDArray[np.int64]

_LITERALS = 16
_MAX_EXTRA = 45
_EXTRA = np.concatenate([np.zeros(_LITERALS, np.uint8), np.repeat(np.arange(2, _MAX_EXTRA, dtype=np.uint8), 4)])
_EDGES = np.concatenate(
    [[0], np.cumsum(np.int64(1) << _EXTRA.astype(np.int64))]
)  # token t: gaps _EDGES[t] .. _EDGES[t + 1] - 1
_NEAR = 1 << 12
_NARROW = 1 << 29  # up to this many positions, every token's gap fits 32 bits
_NEAR_TOKENS = (np.searchsorted(_EDGES, np.arange(_NEAR), "right") - 1).astype(np.uint8)


class Subset(NamedTuple):
    """A subset of ``range(size)``, held as the positions of its rarer side.

    Parameters
    ----------
    size : int
        Positions in the group.
    rare : np.ndarray
        Shape (r,), integer, strictly increasing, ``2 r <= size``.
    flipped : bool
        Whether ``rare`` lists the dropped positions.
    """

    size: int
    rare: NDArray[np.integer]
    flipped: bool

    @property
    def kept(self) -> int:
        """Number of positions in the subset."""
        return self.size - self.rare.size if self.flipped else self.rare.size

    def positions(self) -> Positions:
        """Return the subset's positions: int64, strictly increasing."""
        return np.flatnonzero(self.mask()) if self.flipped else self.rare.astype(np.int64, copy=False)

    def mask(self) -> NDArray[np.bool_]:
        """Return the subset as a mask of shape (size,)."""
        mask = np.full(self.size, self.flipped)
        mask[self.rare] = not self.flipped
        return mask


def subset(mask: NDArray[np.bool_]) -> Subset:
    """Return the subset that a mask describes."""
    flipped = 2 * int(np.count_nonzero(mask)) > mask.size
    return Subset(mask.size, np.flatnonzero(~mask if flipped else mask), flipped)


def subsets(mask: NDArray[np.bool_], sizes: list[int]) -> list[Subset]:
    """Return the subsets of consecutive groups, given one mask over all of them."""
    ends = np.cumsum([0, *sizes])
    flipped = 2 * np.diff(np.searchsorted(np.flatnonzero(mask), ends)) > sizes
    rare = np.flatnonzero(mask ^ np.repeat(flipped, sizes))
    bounds = np.searchsorted(rare, ends)
    rare -= np.repeat(ends[:-1], np.diff(bounds))
    cuts = bounds.tolist()
    parts = zip(sizes, cuts, cuts[1:], flipped.tolist(), strict=False)
    return [Subset(size, rare[low:high], flip) for size, low, high, flip in parts]


def sparse_subset(size: int, positions: Positions) -> Subset:
    """Return the subset of ``range(size)`` with these positions, without a mask where they are few."""
    if 2 * positions.size <= size:
        return Subset(size, positions, False)
    mask = np.zeros(size, np.bool_)
    mask[positions] = True
    return subset(mask)


def _tokens(gaps: Positions) -> NDArray[np.uint8]:
    far = np.flatnonzero(gaps >= _NEAR)
    tokens = _NEAR_TOKENS[np.minimum(gaps, _NEAR - 1)]
    tokens[far] = np.searchsorted(_EDGES, gaps[far], "right") - 1
    return tokens


@dataclass(frozen=True)
class _Model:
    """What the counts alone imply: the groups that share each table, the table of each gap, the largest token."""

    alphabet: int
    members: list[list[int]]
    which: NDArray[np.uint16]


def _model(sizes: list[int], rares: list[int], apart: bool) -> _Model:
    classes = [(size // rare).bit_length() if rare else 0 for size, rare in zip(sizes, rares, strict=True)]
    if apart:
        classes = [i + 1 if rare else 0 for i, rare in enumerate(rares)]
    present = sorted({c for c in classes if c})
    largest = max(size for size, rare in zip(sizes, rares, strict=True) if rare) - 1
    members = [[i for i, other in enumerate(classes) if other == c] for c in present]
    table_of = [present.index(c) if c else 0 for c in classes]
    alphabet = int(np.searchsorted(_EDGES, largest, "right"))
    return _Model(alphabet, members, np.repeat(np.array(table_of, np.uint16), rares))


def _guesses(model: _Model, sizes: list[int], rares: list[int]) -> list[NDArray[np.int64]]:
    """Return the geometric guess for each table."""
    edges = _EDGES[: model.alphabet + 1]
    return [tables.geometric(edges, sum(sizes[i] for i in own), sum(rares[i] for i in own)) for own in model.members]


def _gaps(subsets: list[Subset], rares: list[int]) -> Positions:
    """Return the positions that each group skips before each of its rarer ones."""
    rare = np.concatenate([s.rare for s in subsets])
    gaps: Positions = rare.astype(np.int64)
    gaps[1:] -= rare[:-1] + 1
    starts = (np.cumsum(rares) - rares)[np.array(rares) > 0]
    gaps[starts] = rare[starts]
    return gaps


def _rows(tokens: int, apart: bool) -> int:
    """Rows of the stream of tokens: from 65,537 on twice as fast in NumPy, for some 0.05 bits each."""
    if apart:
        return 4096
    return 512 if tokens > 1 << 16 else 1024


def encode(subsets: list[Subset], limit: float = float("inf"), *, apart: bool = False) -> bytes | None:
    """Code subsets of groups; the decoder knows the groups' sizes.

    Parameters
    ----------
    subsets : list of Subset
        Of consecutive groups.
    limit : float
        Bytes that another way needs; where this one clearly does not come below, nothing is coded.
    apart : bool
        A table for each group, and fewer lanes.

    Returns
    -------
    bytes or None
        Per group that is not empty ``2 * len(rare) + flipped`` (varint); per table that is used its spec; the rANS
        stream of tokens; then the raw bits: first of all gaps with 2 of them, then of all gaps with 3, ...
    """
    subsets = [s for s in subsets if s.size]
    out = Writer()
    for s in subsets:
        out.varint(2 * s.rare.size + s.flipped)
    sizes, rares = [s.size for s in subsets], [s.rare.size for s in subsets]
    if not sum(rares):
        return out.done()
    gaps = _gaps(subsets, rares)
    tokens = _tokens(gaps)
    model, rows = _model(sizes, rares, apart), _rows(tokens.size, apart)
    index = tokens if len(model.members) == 1 else model.which.astype(np.intp) * model.alphabet + tokens
    counts = np.bincount(index, minlength=len(model.members) * model.alphabet).reshape(-1, model.alphabet)
    fixed = len(subsets) + int((counts * _EXTRA[: model.alphabet]).sum()) / 8
    if fixed + rans.least(sum(map(tables.least_bits, counts)), tokens.size, rows) >= limit:
        return None
    chosen = [
        tables.choose(own, signed=False, given=guess)
        for own, guess in zip(counts, _guesses(model, sizes, rares), strict=True)
    ]
    specs = b"".join(table.spec for table in chosen)
    coded = sum(table.bits for table in chosen) - 8 * len(specs)
    if fixed + len(specs) + rans.least(coded, tokens.size, rows) >= limit:
        return None
    out.raw(specs)
    frequencies = np.array([table.frequencies for table in chosen])
    out.raw(rans.encode(tokens, frequencies, model.which, rows))
    extra = _EXTRA[tokens]
    for width in range(2, int(extra.max()) + 1):
        own = np.flatnonzero(extra == width)
        out.raw(bits.pack(gaps[own] & (1 << width) - 1, width))  # token edges are multiples of 2^width
    return out.done()


def decode(reader: Reader, sizes: list[int], *, apart: bool = False) -> list[Subset]:
    """Read the subsets of groups of the given sizes, written by :func:`encode`."""
    rares, flips = [], []
    for size in sizes:
        count = reader.varint(size) if size else 0
        rares.append(count >> 1)
        flips.append(bool(count & 1))
    total = sum(rares)
    if not total:
        return [Subset(size, np.empty(0, np.int64), flip) for size, flip in zip(sizes, flips, strict=True)]
    model = _model(sizes, rares, apart)
    guesses = _guesses(model, sizes, rares)
    chosen = [tables.read(reader, model.alphabet, signed=False, given=guess) for guess in guesses]
    tokens = rans.decode(reader, total, np.array(chosen), model.which, _rows(total, apart))
    room = sum(sizes)
    gaps: np.ndarray = _EDGES.astype(np.int32 if room <= _NARROW else np.int64)[tokens]
    extra = _EXTRA[tokens]
    for width in range(2, int(extra.max()) + 1):
        own = np.flatnonzero(extra == width)
        gaps[own] += bits.unpack(reader, own.size, width).astype(gaps.dtype)
    gaps += 1
    require(int(gaps.sum(dtype=np.int64)) <= room, "a position is beyond its array")
    ends = np.cumsum(gaps, dtype=gaps.dtype, out=gaps)
    subsets, at, base = [], 0, 0
    for size, rare, flip in zip(sizes, rares, flips, strict=True):
        positions = ends[at : at + rare] - (base + 1)
        if rare:
            base = int(ends[at + rare - 1])
            require(int(positions[-1]) < size, "a position is beyond its array")
        at += rare
        subsets.append(Subset(size, positions, flip))
    return subsets
