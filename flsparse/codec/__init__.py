"""How updates travel: quantized, sparse, entropy coded, and safe to read from strangers.

Needs NumPy and zstandard only. The wire format is described in ``docs/codec.md``.
"""

from flsparse.codec.accumulate import Accumulator
from flsparse.codec.activations import decode_activations, make_activation_codec
from flsparse.codec.codec import Codec
from flsparse.codec.cut_gradient import decode_gradient, encode_gradient
from flsparse.codec.decoder import Layer, decode, decode_layers
from flsparse.codec.errors import PayloadError
from flsparse.codec.mask_encoding import MaskEncoding
from flsparse.codec.specs import ArraySpec, Reference, Specs, specs_of
from flsparse.codec.wire import PayloadInfo, payload_info

__all__ = [
    "Accumulator",
    "ArraySpec",
    "Codec",
    "Layer",
    "MaskEncoding",
    "PayloadError",
    "PayloadInfo",
    "Reference",
    "Specs",
    "decode",
    "decode_activations",
    "decode_gradient",
    "decode_layers",
    "encode_gradient",
    "make_activation_codec",
    "payload_info",
    "specs_of",
]
