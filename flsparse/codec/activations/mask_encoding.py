"""Mask-encoded sparsification of activations (Zhou et al., ECAI 2024, arXiv 2408.13787).

For d values with sparsity r and a mask of b bits a value::

    k = floor((1 - r) d)             vec = the k largest, in position order;  T = min(vec)
    m = 2^b - 1                      where the value is kept: "take the next of vec"
    m = min(round(x (2^b - 1) / T), 2^b - 2)                                     elsewhere
    decode: next of vec where m = 2^b - 1, else m T / (2^b - 1)

No scale and no index travels. Magnitudes are ranked and coded; where values are negative, the signs of all codes that
are not 0 follow, a bit each. Fewer than k values that are not 0: only these are kept. The paper's text rounds down, its
code and its Figure 1 round to nearest.

Beyond the paper, the mask is entropy coded, each code in the context of two neighbors
(:mod:`flsparse.codec.coders.contexts`), and kept values travel without the bits that T implies. The decoded tensor
stays the same, bit for bit. With b = 1 this is top-k with a one-bit mask.
"""

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from flsparse.codec.activations.envelope import CODED, HALF, MASKED, SIGNED, Head, finish, open_payload, start
from flsparse.codec.coders import contexts, integers
from flsparse.codec.errors import require
from flsparse.codec.wire import Reader

Shape = tuple[int, ...]
Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]

_EPSILON = 1e-6  # floor must not turn a level, computed a little low, into the one below


@dataclass(frozen=True)
class Masked:
    """Mask codes and kept values of a tensor, before they are bytes.

    Attributes
    ----------
    codes : np.ndarray
        Shape (d,), uint8, below 2**bits.
    kept : np.ndarray
        Shape (at most k,), magnitudes of the kept values in position order, float32 or float16.
    negative : np.ndarray or None
        Shape (codes that are not 0,), bool; None where no value is negative.
    """

    codes: Codes
    kept: np.ndarray
    negative: NDArray[np.bool_] | None


@dataclass(frozen=True)
class MaskEncoding:
    """Mask-encoded sparsification.

    Parameters
    ----------
    sparsity : float (default: 0.99)
        r, in [0, 1): the fraction of values that are not kept exactly.
    bits : int (default: 2)
        b, mask bits a value, 1..8.
    rounding : {"round", "floor"} (default: "round")
        How a value that is not kept becomes a code.
    values : {"fp32", "fp16"} (default: "fp32")
        Precision of kept values.
    entropy : bool (default: True)
        False: masks packed as b bits a value and kept values as they are, the paper's size.

    Raises
    ------
    ValueError
        For an argument out of range.

    Examples
    --------
    >>> x = np.array([2.2, 0.8, 1.2, 0.4, 1.8, 0.2, 3.1, 2.0], np.float32)
    >>> ms = MaskEncoding(sparsity=0.75)
    >>> [round(float(v), 2) for v in ms.decode(ms.encode(x), x.shape)]
    [2.2, 0.73, 1.47, 0.73, 1.47, 0.0, 3.1, 1.47]
    """

    sparsity: float = 0.99
    bits: int = 2
    rounding: str = "round"
    values: str = "fp32"
    entropy: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity={self.sparsity} is not in [0, 1): it is the fraction of values not kept")
        if type(self.bits) is not int or not 1 <= self.bits <= 8:
            raise ValueError(f"bits={self.bits} is not a whole number from 1 to 8")
        if self.rounding not in ("round", "floor"):
            raise ValueError(f"rounding={self.rounding!r} is neither 'round' nor 'floor'")
        check_values(self.values)

    def quantize(self, array: np.ndarray) -> Masked:
        """Return the codes and kept values of a tensor.

        Parameters
        ----------
        array : np.ndarray
            Any shape, floating, finite; memory order counts.

        Raises
        ------
        ValueError
            For NaN or infinity, or a kept value too large for fp16.
        """
        flat = as_floats(array)
        return masked(flat, largest(np.abs(flat), kept_count(flat.size, self.sparsity)), self)

    def encode(self, array: np.ndarray) -> bytes:
        """Encode a tensor (see :meth:`quantize`) into one payload."""
        return write_masked(self.quantize(array), array.shape, self.bits, self.values, self.entropy)

    def decode(self, payload: bytes, shape: Shape) -> Floats:
        """Decode a tensor of a known shape, float32; the payload's header holds the settings of its encoder.

        Raises
        ------
        PayloadError
            When the payload is damaged, hostile or of another shape.
        """
        head, reader = open_payload(payload, shape)
        require(head.kind == MASKED, "these activations are not mask encoded")
        flat, _ = read_masked(reader, shape, head)
        reader.finish("the payload")
        return flat.reshape(shape)


def check_values(values: str) -> None:
    """Raise ValueError unless ``values`` is a precision that kept values can have."""
    if values not in ("fp32", "fp16"):
        raise ValueError(f"values={values!r} is neither 'fp32' nor 'fp16'")


def as_floats(array: np.ndarray) -> Floats:
    """Return a tensor as contiguous float32, shape (d,).

    Raises
    ------
    ValueError
        For NaN, infinity or values beyond float32.
    """
    with np.errstate(over="ignore"):
        flat = np.ravel(np.asarray(array, dtype=np.float32))
    if not np.isfinite(flat).all():
        raise ValueError("the activations hold NaN or infinity: has the training diverged? lower client.lr")
    return flat


def kept_count(size: int, sparsity: float) -> int:
    """Return k = floor((1 - r) d), at least 1 where there is anything to keep.

    >>> kept_count(16, 0.75), kept_count(10, 0.9), kept_count(10, 0.99)
    (4, 1, 1)
    """
    return min(size, max(1, int((1 - sparsity) * size + 1e-9)))


def largest(magnitudes: Floats, count: int) -> NDArray[np.bool_]:
    """Return which values are the ``count`` largest: never a 0, and of equal ones the first.

    Parameters
    ----------
    magnitudes : np.ndarray
        Shape (d,), not negative.
    """
    if count == 0 or not magnitudes.size:
        return np.zeros(magnitudes.size, np.bool_)
    threshold = np.partition(magnitudes, -count)[-count]
    kept: NDArray[np.bool_] = magnitudes > threshold
    if threshold > 0:
        ties = np.flatnonzero(magnitudes == threshold)
        kept[ties[: count - int(np.count_nonzero(kept))]] = True
    return kept


def masked(flat: Floats, kept: NDArray[np.bool_], settings: MaskEncoding) -> Masked:
    """Code a tensor of which the positions ``kept`` travel as they are."""
    top = (1 << settings.bits) - 1
    magnitudes = np.abs(flat)
    vec = magnitudes[kept]
    if settings.values == "fp16":
        with np.errstate(over="ignore"):
            vec = vec.astype(np.float16)
        if not np.isfinite(vec).all():
            raise ValueError("an activation is beyond 65504, too large for values='fp16': use values='fp32'")
    codes = np.zeros(flat.size, np.uint8)
    if vec.size and (threshold := np.float32(vec.min())) > 0:
        with np.errstate(over="ignore"):
            levels = magnitudes / threshold * np.float32(top)
        levels = np.rint(levels) if settings.rounding == "round" else np.floor(levels + np.float32(_EPSILON))
        codes = np.minimum(levels, top - 1).astype(np.uint8)
    codes[kept] = top
    signs = np.signbit(flat[codes != 0])
    return Masked(codes, vec, signs if signs.any() else None)


def unmask(what: Masked, bits: int) -> Floats:
    """Return the tensor of codes and kept values: shape (d,), float32."""
    top = (1 << bits) - 1
    kept = what.kept.astype(np.float32)
    threshold = kept.min(initial=np.float32(np.inf)) if kept.size else np.float32(0)
    table = (np.arange(top + 1) * (np.float64(threshold) / top)).astype(np.float32)
    out: Floats = table[what.codes]
    out[what.codes == top] = kept
    if what.negative is not None:
        out[np.flatnonzero(what.codes)[what.negative]] *= -1
    return out


# -- bytes -------------------------------------------------------------------------------------------------------------


def write_masked(what: Masked, shape: Shape, bits: int, values: str, entropy: bool) -> bytes:
    """Write codes and kept values.

    Returns
    -------
    bytes
        Header; bytes of codes and signs (varint); codes (:mod:`flsparse.codec.coders.contexts`); signs; kept values: as
        they are, or the smallest, then all minus it as integers, which for positive floats keeps their order.
    """
    flags = HALF * (values == "fp16") | CODED * entropy | SIGNED * (what.negative is not None)
    out = start(MASKED, bits, flags)
    mask = contexts.encode(what.codes, shape, bits, entropy=entropy)
    if what.negative is not None:
        mask += integers.encode_bytes(np.packbits(what.negative))
    out.varint(len(mask))
    out.raw(mask)
    words = what.kept.view(np.uint16 if values == "fp16" else np.uint32)
    if entropy and words.size:
        least = words.min()
        out.array(least[None])
        out.raw(integers.encode_words(words - least, None))
    else:
        out.array(words)
    return finish(out)


def read_masked(reader: Reader, shape: Shape, head: Head) -> tuple[Floats, Codes]:
    """Decode the bytes that :func:`write_masked` writes after the header: the flat tensor and its codes."""
    bits, flags, size = head.bits, head.flags, prod(shape)
    masks = Reader(reader.raw(reader.varint(reader.left)))
    codes = contexts.decode(masks, shape, bits)
    negative = None
    if flags & SIGNED:
        count = int(np.count_nonzero(codes))
        packed = integers.decode_bytes(masks, (count + 7) // 8)
        negative = np.unpackbits(packed, count=count).view(np.bool_)
    masks.finish("the mask section")
    word = np.dtype(np.uint16 if flags & HALF else np.uint32)
    count = int(np.count_nonzero(codes == (1 << bits) - 1)) if size else 0
    if flags & CODED and count:
        least = np.asarray(reader.array(word.str[1:], 1)).astype(word)
        words = integers.decode_words(reader, count, word)
        require(int(words.max()) <= (1 << 8 * word.itemsize) - 1 - int(least[0]), "a kept value is out of range")
        words = words + least
    else:
        words = np.asarray(reader.array(word.str[1:], count)).astype(word)
    kept = words.view(np.float16 if flags & HALF else np.float32)
    require(bool(np.isfinite(kept).all()) and not np.signbit(kept).any(), "a kept value is negative or not finite")
    return unmask(Masked(codes, kept, negative), bits), codes
