"""Format version 1, frozen: the same arrays give the committed bytes, and the committed bytes give the same arrays.

A change of these bytes is a new format version. After raising it on purpose,
``python tests/golden/test_golden_payloads.py`` writes the payloads anew.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from processors import cubed, pseudo

from flsparse.codec import Codec, Reference, decode, payload_info
from flsparse.codec.wire import VERSION

FOLDER = Path(__file__).parent / f"payloads_v{VERSION}"
RELATIONS = ("none", "same", "subset", "outside")


def arrays_of(relation):
    """A small model in a relation to the reference's support; of integers and products, alike on every processor."""
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


CASES = [(values, relation) for values in ("raw", "fp32", "fp16", "int8", "int4") for relation in RELATIONS]


def encode(values, relation):
    base, new = arrays_of(relation)
    reference = None if relation == "none" else Reference(base)
    return Codec(values).encode(new, reference=reference), reference, new


def digest(arrays):
    """A hash of decoded arrays, little endian."""
    state = hashlib.sha256()
    for name, array in arrays.items():
        state.update(f"{name} {array.dtype.name} {array.shape}".encode())
        state.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return state.hexdigest()


@pytest.mark.parametrize(("values", "relation"), CASES)
def test_bytes_are_those_committed(values, relation):
    payload, _, _ = encode(values, relation)
    assert payload == (FOLDER / f"{values}-{relation}.bin").read_bytes()
    assert payload_info(payload).version == VERSION


@pytest.mark.parametrize(("values", "relation"), CASES)
def test_committed_bytes_decode_to_the_same_arrays(values, relation):
    _, reference, new = encode(values, relation)
    payload = (FOLDER / f"{values}-{relation}.bin").read_bytes()
    wanted = json.loads((FOLDER / "decoded.json").read_text())
    assert digest(decode(payload, like=new, reference=reference)) == wanted[f"{values}-{relation}"]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    digests = {}
    for values, relation in CASES:
        payload, reference, new = encode(values, relation)
        (FOLDER / f"{values}-{relation}.bin").write_bytes(payload)
        digests[f"{values}-{relation}"] = digest(decode(payload, like=new, reference=reference))
    (FOLDER / "decoded.json").write_text(json.dumps(digests, indent=1) + "\n")
