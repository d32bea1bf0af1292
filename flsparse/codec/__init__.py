"""How updates travel: quantized, sparse, entropy coded, and safe to read from strangers.

Needs NumPy and zstandard only. The wire format is described in ``docs/codec.md``.
"""

from flsparse.codec.accumulate import Accumulator
from flsparse.codec.codec import Codec
from flsparse.codec.decoder import Layer, decode, decode_layers
from flsparse.codec.errors import PayloadError
from flsparse.codec.specs import ArraySpec, Reference, Specs, specs_of
from flsparse.codec.wire import PayloadInfo, payload_info

__all__ = [
    "Accumulator",
    "ArraySpec",
    "Codec",
    "Layer",
    "PayloadError",
    "PayloadInfo",
    "Reference",
    "Specs",
    "decode",
    "decode_layers",
    "payload_info",
    "specs_of",
]
