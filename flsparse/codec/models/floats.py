"""fp32 and fp16: sections of floating values that are not quantized to integers."""

import numpy as np

from flsparse.codec import steps as quant
from flsparse.codec.coders import integers
from flsparse.codec.errors import require
from flsparse.codec.models import lossless
from flsparse.codec.wire import Reader

Arrays = list[np.ndarray]


def _by_dtype(dtypes: list[np.dtype]) -> list[list[int]]:
    """Indices of the arrays of each dtype, dtypes in the order of their size."""
    found = sorted(set(dtypes), key=lambda dtype: dtype.itemsize)
    return [[i for i, dtype in enumerate(dtypes) if dtype == wanted] for wanted in found]


def write(names: list[str], arrays: Arrays, bases: Arrays | None, values: str) -> bytes:
    """Write floating values: ``fp32`` bit for bit, ``fp16`` as half-precision differences from ``bases``.

    Raises
    ------
    ValueError
        Under ``fp16``, when a value is beyond 65504.
    """
    if values == "fp32":
        groups = _by_dtype([array.dtype for array in arrays])
        return b"".join(
            lossless.encode_group([arrays[i] for i in group], None if bases is None else [bases[i] for i in group])
            for group in groups
        )
    halves = []
    for i, array in enumerate(arrays):
        with np.errstate(over="ignore"):
            x = array if bases is None else array.astype(np.float64) - bases[i]
            halves.append(x.astype(np.float16))
        if not np.isfinite(halves[-1]).all():
            raise ValueError(f"array {names[i]!r} holds values or changes beyond 65504, too large for fp16")
    return integers.encode_words(np.concatenate([np.empty(0, np.float16), *halves]).view(np.uint16), None)


def read(
    reader: Reader, sizes: list[int], dtypes: list[np.dtype], bases: Arrays | None, values: str
) -> list[np.ndarray]:
    """Decode the bytes that :func:`write` writes.

    Raises
    ------
    PayloadError
        Also for NaN and infinity.
    """
    out: list[np.ndarray] = [np.empty(0)] * len(sizes)
    if values == "fp32":
        for group in _by_dtype(dtypes):
            own = None if bases is None else [bases[i] for i in group]
            arrays = lossless.decode_group(reader, [sizes[i] for i in group], dtypes[group[0]], own)
            for i, array in zip(group, arrays, strict=True):
                out[i] = array
    else:
        halves = integers.decode_words(reader, sum(sizes), np.dtype(np.uint16)).view(np.float16)
        require(bool(np.isfinite(halves).all()), "the payload holds NaN or infinity")
        for i, half in enumerate(np.split(halves, np.cumsum(sizes)[:-1]) if sizes else []):
            out[i] = quant.dequantize(half.astype(np.float64), 1.0, None if bases is None else bases[i], dtypes[i])
    require(all(bool(np.isfinite(array).all()) for array in out), "the payload holds NaN or infinity")
    return out
