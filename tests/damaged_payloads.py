"""Payloads of every kind for the decoder, and the damage that strangers do to them."""

import functools

import numpy as np

from flsparse.codec import Codec, PayloadError, Reference, decode, decode_layers, payload_info, specs_of
from flsparse.codec.wire import checksum


def reseal(payload):
    """Make a mutated payload's checksum right again, so that the parsers behind it are reached."""
    fixed = bytearray(payload)
    if len(fixed) >= 8:
        fixed[4:8] = checksum(fixed)
    return bytes(fixed)


def network(rng, scale=1):
    return {
        "conv.weight": rng.laplace(size=(8 * scale, 4, 3, 3)).astype(np.float32),
        "fc.weight": rng.normal(size=(16, 40 * scale)).astype(np.float32),
        "half": rng.normal(size=(10, 10)).astype(np.float16),
        "double": rng.normal(size=(5, 20)),
        "fc.bias": rng.normal(size=16).astype(np.float32),
        "norm.weight": (1 + 0.1 * rng.random(16)).astype(np.float32),
        "tracked": np.array(17),
        "codes": rng.integers(0, 255, 60, np.uint8),
        "flags": rng.random(19) < 0.3,
        "scalar": np.float32(3.5) * np.ones(()),
        "none": np.zeros((0, 3), np.float32),
    }


def layer(rng, size, density, scale):
    """A layer of a density and a scale of its own."""
    weights = scale * rng.laplace(size=(size // 10, 10))
    return np.where(np.abs(weights) > np.quantile(np.abs(weights), 1 - density), weights, 0).astype(np.float32)


@functools.cache
def corpus(scale=1, sparsities=(0.0, 0.5, 0.9, 0.98), codecs=("raw", "fp32", "fp16", "int8", "int4")):
    """Valid payloads of every codec and format version, with every mode of the positions: payload, like, reference."""
    rng = np.random.default_rng(7)
    found = []
    for sparsity in sparsities:
        old, new = network(rng, scale), network(rng, scale)
        for name in ("conv.weight", "fc.weight", "half", "double"):
            new[name] = (old[name] + 0.05 * new[name]).astype(old[name].dtype)
            old[name][np.abs(old[name]) < np.quantile(np.abs(old[name]).astype(float), sparsity)] = 0
        same = {n: np.where(old[n] == 0, 0, a).astype(a.dtype) if a.ndim >= 2 else a for n, a in new.items()}
        free = {n: np.where(rng.random(a.shape) < sparsity, 0, a).astype(a.dtype) for n, a in new.items()}
        part = {n: np.where(rng.random(a.shape) < 0.1, 0, a).astype(a.dtype) for n, a in same.items()}
        reference = Reference(old)
        for values in codecs:
            for arrays in (same, part, free):
                plain, coded = (Codec(values).encode(arrays, reference=known) for known in (None, reference))
                found += [(plain, reference.specs, None), (coded, reference.specs, reference)]
    unlike = {f"w{i}": layer(rng, 12_000, 0.01 * 3**i, 10.0**-i) for i in range(4)}
    found += 3 * [(Codec(values).encode(unlike), specs_of(unlike), None) for values in codecs]
    return found


def mutate(rng, payload, other):
    """Return a damaged copy: flips, overwrites, cuts, insertions, splices, repeats."""
    data = bytearray(payload)
    for _ in range(int(rng.integers(1, 4))):
        kind, at = int(rng.integers(0, 8)), int(rng.integers(0, max(1, len(data))))
        if not data:
            break
        if kind <= 2:  # the head and the sections' first bytes decide most
            at = at if kind else min(at, int(rng.integers(8, 80)), len(data) - 1)
            data[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 3:
            data[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == 4:
            del data[at : at + int(rng.integers(1, 40))]
        elif kind == 5:
            data[at:at] = rng.bytes(int(rng.integers(1, 12)))
        elif kind == 6:
            start = int(rng.integers(0, len(other)))
            piece = other[start : start + int(rng.integers(1, 60))]
            data[at : at + len(piece)] = piece
        else:
            data = data[:at]
    return bytes(data)


def attack(count, seed):
    """Decode ``count`` mutated payloads; return how many got past the checks."""
    rng = np.random.default_rng(seed)
    payloads = corpus()
    survived = 0
    for i in range(count):
        payload, like, reference = payloads[int(rng.integers(len(payloads)))]
        damaged = mutate(rng, payload, payloads[int(rng.integers(len(payloads)))][0])
        if i % 16:
            damaged = reseal(damaged)
        try:
            layers = decode_layers(damaged, like=like, reference=reference)
        except PayloadError:
            continue
        survived += 1
        assert [layer.name for layer in layers] == list(like)
        for layer in layers:
            spec = like[layer.name]
            assert layer.values.dtype == spec.dtype
            assert np.isfinite(layer.values).all()
            if layer.positions is None:
                assert layer.values.shape == (spec.size,)
            else:
                assert layer.values.shape == layer.positions.shape
                assert not layer.positions.size or 0 <= layer.positions[0] <= layer.positions[-1] < spec.size
                assert (np.diff(layer.positions) > 0).all()
        if payload_info(damaged).values == "raw" or i % 4 == 0:
            decode(damaged, like=like, reference=reference)
    return survived
