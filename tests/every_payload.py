"""A payload of every kind the codec has, from portable inputs: written into a folder, and decoded from there.

``python tests/every_payload.py FOLDER [--write]`` prints, for each, hashes of the payload and of what it decodes to.
"""

import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "golden"))

import numpy as np
from processors import cubed, pseudo
from test_golden_payloads import CASES, digest
from test_golden_payloads import encode as golden

from flsparse.codec import Codec, Reference, decode
from flsparse.codec.activations.compressors import decode_activations, make_activation_codec
from flsparse.codec.activations.gradient import FORMS, decode_gradient, encode_gradient
from flsparse.codec.residuals.dither import NORMS, Dither
from flsparse.codec.residuals.residual import CODERS, ResidualCodec, Stamp, apply_residual, copy_checksum

IMAGES = (2, 8, 6, 6)
SIZES = [4000, 1000]
START = np.zeros(sum(SIZES), np.float32)


def before() -> dict[str, np.ndarray]:
    """Return a layer large enough for the coders' fast ways, mostly zeros."""
    weights = cubed(pseudo(90_000, 50)).reshape(300, 300).astype(np.float32)
    weights[np.abs(weights) < 0.2] = 0
    return {"w": weights}


def after() -> dict[str, np.ndarray]:
    """Return the layer after a round: changed, and a part of it pruned."""
    weights = before()["w"]
    moved = np.where(weights != 0, weights + cubed(pseudo(90_000, 51)).reshape(300, 300) / 40, 0)
    return {"w": np.where(np.abs(moved) < 0.25, 0, moved).astype(np.float32)}


def activations() -> np.ndarray:
    """Return what leaves a ReLU."""
    return np.asarray(np.maximum(cubed(pseudo(576, 52)), 0).reshape(IMAGES), np.float32)


def payloads() -> dict[str, bytes]:
    """Encode a payload of every kind."""
    out = {f"model {values} {relation}": golden(values, relation)[0] for values, relation in CASES}
    for values in ("int4", "int8", "fp16", "fp32"):
        out[f"large {values} alone"] = Codec(values).encode(after())
        out[f"large {values} reference"] = Codec(values).encode(after(), reference=Reference(before()))
    for name in ("ms", "topk", "uniform", "none"):
        codec = make_activation_codec(name, sparsity=0.9, bits=3 if name == "uniform" else 2)
        out[f"activations {name}"] = codec.encode(activations())
    gradient, sent = cubed(pseudo(576, 53)).reshape(IMAGES), np.ravel(activations() != 0)
    out |= {f"gradient {form}": encode_gradient(gradient, form, sent) for form in FORMS}
    vector, stamp = cubed(pseudo(sum(SIZES), 54)).astype(np.float32), Stamp(1, 2, copy_checksum(START))
    for norm in NORMS:
        for coder in CODERS:
            residuals = ResidualCodec(SIZES, Dither(2, norm), coder=coder)
            out[f"residual {norm}-{coder}"] = residuals.encode(vector, START, stamp, np.random.default_rng(1))[0]
    return out


def arrays_of(name: str, payload: bytes) -> dict[str, np.ndarray]:
    """Decode a payload of :func:`payloads`."""
    kind, how, *rest = name.split()
    if kind == "model":
        _, reference, like = golden(how, rest[0])
        return decode(payload, like=like, reference=reference)
    if kind == "large":
        return decode(payload, like=before(), reference=Reference(before()) if rest == ["reference"] else None)
    if kind == "activations":
        return {"x": decode_activations(payload, IMAGES)[0]}
    if kind == "gradient":
        return {"x": decode_gradient(payload, IMAGES, np.ravel(activations() != 0))}
    return {"x": apply_residual(payload, START, SIZES)}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name, payload in payloads().items() if "--write" in sys.argv else []:
        (folder / name).write_bytes(payload)
    for file in sorted(folder.iterdir()):
        payload = file.read_bytes()
        arrays = arrays_of(file.name, payload)
        print(file.name, hashlib.sha256(payload).hexdigest()[:16], digest(arrays)[:16], Reference(arrays).id)
