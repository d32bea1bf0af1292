"""Codecs of updates: quantized, sparse, entropy coded, and safe to decode from untrusted nodes.

Needs NumPy and zstandard only. The wire format is described in ``docs/codec.md``.
"""

from flsparse.codec.activations.compressors import decode_activations, make_activation_codec
from flsparse.codec.activations.gradient import decode_gradient, encode_gradient
from flsparse.codec.activations.mask_encoding import MaskEncoding
from flsparse.codec.errors import PayloadError
from flsparse.codec.models.accumulate import Accumulator
from flsparse.codec.models.decoder import Layer, decode, decode_layers
from flsparse.codec.models.encoder import Codec
from flsparse.codec.specs import ArraySpec, Reference, Specs, exact_names, specs_of
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
    "exact_names",
    "make_activation_codec",
    "payload_info",
    "specs_of",
]
