"""Activation codecs by name: mask encoding, and the compressors it is compared with at equal size.

========== ==================================================================================================
ms         mask encoding
topk       the k largest as they are and a 1-bit mask: mask encoding with b = 1
randtopk   the same, but each kept place goes with probability alpha to one of the smaller values (Zheng et
           al., IJCAI 2023, arXiv 2305.18469)
uniform    b bits a value between the smallest and the largest
none       all values as they are, fp32 or fp16
========== ==================================================================================================
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flsparse.codec.activations import envelope as wire
from flsparse.codec.activations import mask_encoding as ms
from flsparse.codec.activations.mask_encoding import Codes, Floats, MaskEncoding, Shape
from flsparse.codec.coders import contexts
from flsparse.codec.errors import require
from flsparse.codec.wire import Reader
from flsparse.configs import build

Sent = NDArray[np.bool_]


class ActivationCodec(Protocol):
    """Codes one tensor of activations into one payload."""

    def encode(self, array: np.ndarray, *, rng: np.random.Generator | None = None) -> bytes:
        """Encode a tensor; ``rng`` makes the random draws."""
        return self.encode_and_tell(array, rng=rng)[0]

    def encode_and_tell(self, array: np.ndarray, *, rng: np.random.Generator | None = None) -> tuple[bytes, Sent]:
        """Encode a tensor, and return which of its values have a code that is not 0: shape (d,), bool."""
        ...


@dataclass(frozen=True)
class RandTopK(ActivationCodec):
    """Randomized top-k: some of the kept places go to values that are not among the largest.

    Parameters
    ----------
    sparsity : float
        In [0, 1).
    alpha : float (default: 0.1)
        Probability of a kept place to go to one of the smaller values, in [0, 1].
    entropy : bool (default: True)
        False: a packed 1-bit mask and plain values.
    values : {"fp32", "fp16"} (default: "fp32")
        Precision of the kept values.
    """

    sparsity: float
    alpha: float = 0.1
    entropy: bool = True
    values: str = "fp32"

    def encode_and_tell(self, array: np.ndarray, *, rng: np.random.Generator | None = None) -> tuple[bytes, Sent]:
        """Encode a tensor; ``rng`` draws which values are kept."""
        if rng is None:
            raise ValueError("randtopk needs rng")
        settings = MaskEncoding(self.sparsity, bits=1, values=self.values, entropy=self.entropy)
        flat = ms.as_floats(array)
        best = ms.largest(np.abs(flat), ms.kept_count(flat.size, self.sparsity))
        inside, outside = np.flatnonzero(best), np.flatnonzero(~best & (flat != 0))
        swapped = min(int(rng.binomial(inside.size, self.alpha)), outside.size)
        kept = best.copy()
        kept[rng.choice(inside, swapped, replace=False)] = False
        kept[rng.choice(outside, swapped, replace=False)] = True
        what = ms.masked(flat, kept, settings)
        return ms.write_masked(what, array.shape, 1, self.values, self.entropy), what.codes != 0


@dataclass(frozen=True)
class Masks(ActivationCodec):
    """Mask encoding behind the common signature."""

    settings: MaskEncoding

    def encode_and_tell(self, array: np.ndarray, *, rng: np.random.Generator | None = None) -> tuple[bytes, Sent]:
        """Encode a tensor; nothing is drawn."""
        what, s = self.settings.quantize(array), self.settings
        return ms.write_masked(what, array.shape, s.bits, s.values, s.entropy), what.codes != 0


@dataclass(frozen=True)
class UniformQuantizer(ActivationCodec):
    """``m = round((x - low) / step)`` with ``step = (high - low) / (2^b - 1)``, low and high the extremes.

    Parameters
    ----------
    bits : int (default: 3)
        1..8.
    entropy : bool (default: True)
        False: codes packed.
    """

    bits: int = 3
    entropy: bool = True

    def encode_and_tell(self, array: np.ndarray, *, rng: np.random.Generator | None = None) -> tuple[bytes, Sent]:
        """Encode a tensor; nothing is drawn."""
        flat = ms.as_floats(array)
        low = flat.min(initial=np.inf) if flat.size else np.float32(0)
        step = np.float32((np.float64(flat.max(initial=-np.inf)) - low) / _top(self.bits)) if flat.size else low
        codes = np.rint((flat.astype(np.float64) - low) / step) if step > 0 else np.zeros(flat.size)
        out = wire.start(wire.UNIFORM, self.bits, wire.CODED * self.entropy)
        out.array(np.array([low, step], np.float32))
        small = np.minimum(codes, _top(self.bits)).astype(np.uint8)
        out.raw(contexts.encode(small, array.shape, self.bits, entropy=self.entropy))
        return wire.finish(out), small != 0


def _top(bits: int) -> int:
    return (1 << bits) - 1


def read_uniform(reader: Reader, shape: Shape, bits: int) -> tuple[Floats, Codes]:
    """Decode the bytes that :class:`UniformQuantizer` writes after the header."""
    low, step = (float(x) for x in reader.array("f4", 2))
    require(bool(np.isfinite([low, step]).all()) and step >= 0, "a quantizer's range is not finite")
    codes = contexts.decode(reader, shape, bits)
    limit = float(np.finfo(np.float32).max)
    table = np.clip(low + step * np.arange(_top(bits) + 1), -limit, limit).astype(np.float32)
    return table[codes], codes


@dataclass(frozen=True)
class DenseActivations(ActivationCodec):
    """All values as they are: no compression.

    Parameters
    ----------
    values : {"fp32", "fp16"} (default: "fp32")
        Precision.
    """

    values: str = "fp32"

    def encode_and_tell(self, array: np.ndarray, *, rng: np.random.Generator | None = None) -> tuple[bytes, Sent]:
        """Encode a tensor; nothing is drawn."""
        flat = ms.as_floats(array)
        out = wire.start(wire.DENSE, 8, wire.HALF * (self.values == "fp16"))
        if self.values == "fp16":
            limit = float(np.finfo(np.float16).max)
            flat = np.clip(flat, -limit, limit).astype(np.float16)
        out.array(flat)
        return wire.finish(out), flat != 0


def read_dense(reader: Reader, shape: Shape, flags: int) -> Floats:
    """Decode the bytes that :class:`DenseActivations` writes after the header."""
    kind = "f2" if flags & wire.HALF else "f4"
    flat: Floats = np.asarray(reader.array(kind, prod(shape))).astype(np.float32)
    require(bool(np.isfinite(flat).all()), "the payload holds NaN or infinity")
    return flat


def _top_k(*, sparsity: float, values: str, entropy: bool) -> Masks:
    return Masks(MaskEncoding(sparsity, 1, "round", values, entropy))


COMPRESSORS: dict[str, Callable[..., ActivationCodec]] = {
    "ms": Masks,
    "topk": _top_k,
    "randtopk": RandTopK,
    "uniform": UniformQuantizer,
    "none": DenseActivations,
}


def make_activation_codec(
    name: str,
    *,
    sparsity: float = 0.99,
    bits: int = 2,
    rounding: str = "round",
    values: str = "fp32",
    entropy: bool = True,
) -> ActivationCodec:
    """Build a compressor by name; settings of the other compressors are ignored.

    Raises
    ------
    ValueError
        The name is unknown or a setting out of range.
    """
    settings = {"sparsity": sparsity, "bits": bits, "rounding": rounding, "values": values, "entropy": entropy}
    offered = {**settings, "settings": MaskEncoding(sparsity, bits, rounding, values, entropy)}  # checks them all
    return build(COMPRESSORS, name, {}, what="compressor", offered=offered)


def decode_activations(payload: bytes, shape: Shape) -> tuple[Floats, Codes | None]:
    """Decode a payload of any of the compressors; its header names the compressor.

    Parameters
    ----------
    payload : bytes
        From anywhere.
    shape : tuple of int
        Of the tensor.

    Returns
    -------
    array : np.ndarray
        The tensor, float32.
    codes : np.ndarray or None
        Shape (d,), uint8: the code of each value; None for a dense payload.

    Raises
    ------
    PayloadError
        When the payload is damaged, hostile or of another shape.
    """
    head, reader = wire.open_payload(payload, shape)
    codes = None
    if head.kind == wire.MASKED:
        flat, codes = ms.read_masked(reader, shape, head)
    elif head.kind == wire.UNIFORM:
        flat, codes = read_uniform(reader, shape, head.bits)
    else:
        flat = read_dense(reader, shape, head.flags)
    reader.finish("the payload")
    return flat.reshape(shape), codes
