"""Format versions 1 to 3, frozen: the same arrays give the committed bytes, and these give the same arrays.

A payload says version 2 where it uses a mode of it, and 3 where it has a reference; all that was ever written is still
read. A change of the bytes
is a new version. After raising it on purpose, ``python tests/golden/test_golden_payloads.py`` writes the payloads of
the newest version anew.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from processors import cubed, pseudo

from flsparse.codec import Codec, PayloadError, Reference, decode, payload_info
from flsparse.codec.coders import layered, rank_one
from flsparse.codec.models import support
from flsparse.codec.wire import VERSION, checksum, unseal

FOLDERS = {version: Path(__file__).parent / f"payloads_v{version}" for version in range(1, VERSION + 1)}
RELATIONS = ("none", "same", "subset", "outside")


def arrays_of(relation):
    """A small model in a relation to the reference's support; of integers and products, alike on every processor."""
    if relation == "layers":
        return {}, layers()
    if relation == "rows":
        return rows()
    base: dict[str, np.ndarray] = {
        "conv.weight": cubed(pseudo(16 * 8 * 9, 1)).reshape(16, 8, 3, 3).astype(np.float32),
        "conv.bias": pseudo(16, 2).astype(np.float32) / 10,
        "norm.weight": (1 + pseudo(16, 3) / 8).astype(np.float32),
        "fc.weight": cubed(pseudo(400, 4)).reshape(10, 40),
        "half": pseudo(64, 5).reshape(8, 8).astype(np.float16),
        "tracked": np.array(7, np.int64),
        "flags": pseudo(21, 6) > 0,
    }
    base["conv.weight"][np.abs(base["conv.weight"]) < 0.3] = 0
    base["fc.weight"][np.abs(base["fc.weight"]) < 0.5] = 0
    new: dict[str, np.ndarray] = {}
    for i, (name, array) in enumerate(base.items()):
        if array.dtype.kind != "f":
            new[name] = array + 3 if array.dtype.kind == "i" else ~array
            continue
        change = (cubed(pseudo(array.size, 10 + i)) / 50).reshape(array.shape)
        new[name] = np.where((array != 0) | (array.ndim < 2), array + change, 0).astype(array.dtype)
        if relation == "subset" and array.ndim > 1:
            new[name][np.abs(new[name]) < 0.4] = 0
        if relation == "outside" and array.ndim > 1:
            new[name].reshape(-1)[::37] = 0.25
    return base, new


def layers():
    """Kernels of unlike scales and densities, which tables in common do not fit; no reference."""
    arrays: dict[str, np.ndarray] = {}
    for i, (size, scale, least) in enumerate(((9_000, 1, 0.5), (6_000, 8, 0.6), (24_000, 1, 0.9), (300, 1, 0.5))):
        weights = cubed(pseudo(size, 20 + i)) / scale
        weights[np.abs(weights) < least / scale] = 0
        arrays[f"layer{i}"] = weights.reshape(-1, 3, 10).astype(np.float32)
    return arrays


def rows():
    """Arrays whose changes are products of what belongs to a row and what belongs to a column."""
    base, new = {}, {}
    for i, (shape, least) in enumerate((((24, 10, 3, 3), 0.3), ((40, 50), 0.0))):
        rows, inner = shape[0], int(np.prod(shape[1:]))
        weights = cubed(pseudo(rows * inner, 30 + i)).reshape(rows, inner)
        weights[np.abs(weights) < least] = 0
        change = cubed(pseudo(rows, 40 + i))[:, None] * np.abs(pseudo(inner, 50 + i)) / 8
        base[f"w{i}"] = weights.reshape(shape).astype(np.float32)
        new[f"w{i}"] = np.where(weights != 0, weights + change, 0).reshape(shape).astype(np.float32)
    return base, new


CASES = [(values, relation) for values in ("raw", "fp32", "fp16", "int8", "int4") for relation in RELATIONS]
CASES += [(values, "layers") for values in ("fp32", "fp16", "int8", "int4")]
CASES += [(values, "rows") for values in ("int8", "int4")]


def encode(values, relation):
    base, new = arrays_of(relation)
    reference = None if relation in ("none", "layers") else Reference(base)
    return Codec(values).encode(new, reference=reference), reference, new


def digest(arrays):
    """A hash of decoded arrays, little endian."""
    state = hashlib.sha256()
    for name, array in arrays.items():
        state.update(f"{name} {array.dtype.name} {array.shape}".encode())
        state.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return state.hexdigest()


def committed(version):
    """Return a version's payloads by their names."""
    return {file.stem: file.read_bytes() for file in sorted(FOLDERS[version].glob("*.bin"))}


@pytest.mark.parametrize(("values", "relation"), CASES)
def test_bytes_are_those_committed(values, relation):
    payload, _, _ = encode(values, relation)
    version = payload_info(payload).version
    assert payload == committed(version)[f"{values}-{relation}"]
    assert version == max(v for v in FOLDERS if f"{values}-{relation}" in committed(v))


@pytest.mark.parametrize(("version", "name"), [(v, name) for v in FOLDERS for name in committed(v)])
def test_committed_bytes_decode_to_the_same_arrays(version, name):
    _, reference, new = encode(*name.split("-"))
    payload = committed(version)[name]
    assert payload_info(payload).version == version
    wanted = json.loads((FOLDERS[version] / "decoded.json").read_text())
    assert digest(decode(payload, like=new, reference=reference)) == wanted[name]


def test_the_second_version_has_every_mode_of_its_own():
    sections = unseal(committed(2)["int8-layers"]).sections
    assert sections["positions"][1] == support.APART
    assert layered.MARK in bytes(sections["values"][:12])  # behind the step codes
    for values in ("fp32", "fp16", "int4"):
        assert payload_info(committed(2)[f"{values}-layers"]).version == 2


def test_the_third_version_has_the_contexts_of_rows_and_columns():
    for name in ("int8-rows", "int4-rows"):
        sections = unseal(committed(3)[name]).sections
        for section, step_codes in (("values", (1, 2)), ("dense", (2, 3))):
            assert any(sections[section][at] in rank_one.MARKS.values() for at in step_codes)


def test_the_first_version_refuses_modes_of_the_second():
    _, _, new = encode("int8", "layers")
    forged = bytearray(committed(2)["int8-layers"])
    forged[3] = 1
    forged[4:8] = checksum(forged)
    with pytest.raises(PayloadError, match="unknown mode 4"):
        decode(bytes(forged), like=new)


if __name__ == "__main__":
    FOLDERS[VERSION].mkdir(exist_ok=True)
    digests = {}
    for values, relation in CASES:
        payload, reference, new = encode(values, relation)
        if payload_info(payload).version == VERSION:
            (FOLDERS[VERSION] / f"{values}-{relation}.bin").write_bytes(payload)
            digests[f"{values}-{relation}"] = digest(decode(payload, like=new, reference=reference))
    (FOLDERS[VERSION] / "decoded.json").write_text(json.dumps(digests, indent=1) + "\n")
