"""Lossless sections: integers, booleans, exact floats, and all floats under ``fp32``."""

from collections.abc import Mapping

import numpy as np

from flsparse.codec.coders import integers
from flsparse.codec.models.layout import Layout, words_of
from flsparse.codec.specs import Specs
from flsparse.codec.wire import Reader

Flat = Mapping[str, np.ndarray]


def _join(arrays: list[np.ndarray], order: bool) -> np.ndarray:
    """Concatenate the words of arrays of one dtype; ``order`` maps floats to integers that sort alike."""
    words = words_of(np.concatenate(arrays))
    if order and arrays[0].dtype.kind == "f":
        words = _sortable(words)
    return words


def _sortable(words: np.ndarray) -> np.ndarray:
    """Flip a float's bits so that neighboring floats become neighboring integers."""
    top = words.dtype.type(1 << 8 * words.itemsize - 1)
    return np.where(words & top, ~words, words | top)


def _unsortable(words: np.ndarray) -> np.ndarray:
    top = words.dtype.type(1 << 8 * words.itemsize - 1)
    return np.where(words & top, words ^ top, ~words)


def encode_group(arrays: list[np.ndarray], bases: list[np.ndarray] | None) -> bytes:
    """Code arrays of one dtype bit for bit, as differences from ``bases`` when given."""
    words = _join(arrays, bases is not None)
    return integers.encode_words(words, None if bases is None else _join(bases, True))


def decode_group(reader: Reader, sizes: list[int], dtype: np.dtype, bases: list[np.ndarray] | None) -> list[np.ndarray]:
    """Decode the bytes that :func:`encode_group` writes."""
    words = integers.decode_words(reader, sum(sizes), np.dtype(f"u{dtype.itemsize}"))
    parts = np.split(words, np.cumsum(sizes)[:-1])
    for part, base in zip(parts, bases or [], strict=False):  # array by array, in place: less memory
        part[:] = integers.unfold(part)
        part += _join([base], True)
        if dtype.kind == "f":
            part[:] = _unsortable(part)
    return [part.view(dtype) for part in parts]


def encode_integers(layout: Layout, flat: Flat, reference: Flat | None) -> bytes:
    """Code exact, integer and boolean arrays: per dtype one run of words, booleans as packed bits."""
    parts = []
    for names in layout.lossless:
        arrays = [flat[name] for name in names]
        bases = None if reference is None else [reference[name] for name in names]
        if arrays[0].dtype == np.bool_:
            bits = np.concatenate(arrays) if bases is None else np.concatenate(arrays) ^ np.concatenate(bases)
            parts.append(integers.encode_bytes(np.packbits(bits)))
        else:
            parts.append(encode_group(arrays, bases))
    return b"".join(parts)


def decode_integers(reader: Reader, layout: Layout, specs: Specs, reference: Flat | None) -> dict[str, np.ndarray]:
    """Decode the bytes that :func:`encode_integers` writes: flat arrays by name."""
    out: dict[str, np.ndarray] = {}
    for names in layout.lossless:
        sizes = [specs[name].size for name in names]
        bases = None if reference is None else [reference[name] for name in names]
        dtype = specs[names[0]].dtype
        if dtype == np.bool_:
            total = sum(sizes)
            packed = integers.decode_bytes(reader, (total + 7) // 8)
            bits = np.unpackbits(packed, count=total).view(np.bool_)
            if bases is not None:
                bits = bits ^ np.concatenate(bases)
            arrays = np.split(bits, np.cumsum(sizes)[:-1])
        else:
            arrays = decode_group(reader, sizes, dtype, bases)
        out.update(zip(names, arrays, strict=True))
    return out
