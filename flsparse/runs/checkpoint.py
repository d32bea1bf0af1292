"""State on disk: a nested dict of arrays and plain values, in one file, written whole or not at all.

The file is a safetensors file: the arrays are its tensors, named by number, and everything else is one JSON text in its
header, in which an array stands as ``{"__array__": number}``. A digest of both in the header finds damage. Nothing in
the file is ever executed.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

FORMAT_VERSION = 2
_ARRAY, _BYTES = "__array__", "__bytes__"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read."""


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state; an older file at ``path`` is replaced in one step, once the new one is on disk.

    Parameters
    ----------
    path : Path
        The file; its folder is made when missing.
    state : mapping
        Dicts with string keys, lists and tuples, NumPy arrays of any shape, bytes, numbers, strings, booleans and None,
        nested. Tuples come back as lists, NumPy scalars as Python numbers.

    Raises
    ------
    CheckpointError
        The disk is full, or the folder cannot be written to.
    TypeError
        The state holds something else.
    """
    arrays: list[np.ndarray] = []
    text = json.dumps(_take_apart(dict(state), "", arrays))
    header = {"format_version": str(FORMAT_VERSION), "state": text, "digest": _digest(text, arrays)}
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({str(number): array for number, array in enumerate(arrays)}, partial, metadata=header)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        size = sum(array.nbytes for array in arrays)
        raise CheckpointError(f"cannot write {path} ({size / 1e6:.1f} MB): {error}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a state that :func:`save_checkpoint` wrote.

    Raises
    ------
    CheckpointError
        There is no such file, it is damaged, or another version wrote it.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            if (written := header.get("format_version")) != str(FORMAT_VERSION):
                raise CheckpointError(f"{path} has format {written}; this version reads {FORMAT_VERSION} alone")
            arrays = [file.get_tensor(str(number)) for number in range(len(file.keys()))]
        if header.get("digest") != _digest(header.get("state", ""), arrays):
            raise CheckpointError(f"the checkpoint {path} is damaged: its digest does not match")
    except CheckpointError:
        raise
    except Exception as error:  # damage takes any form
        raise CheckpointError(f"cannot read the checkpoint {path}: {error}") from error
    state: dict[str, Any] = _put_together(json.loads(header["state"]), arrays)
    return state


def _digest(text: str, arrays: Sequence[np.ndarray]) -> str:
    """Return a digest of the text and of each array's dtype, shape and content; the arrays are contiguous."""
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _take_apart(value: Any, name: str, arrays: list[np.ndarray]) -> Any:
    """Return the value with its arrays moved into ``arrays`` and their numbers in their place."""
    if isinstance(value, np.ndarray):
        arrays.append(np.array(value, order="C"))  # not ascontiguousarray: that makes 0-d arrays 1-d
        return {_ARRAY: len(arrays) - 1}
    if isinstance(value, bytes):
        arrays.append(np.frombuffer(value, np.uint8))
        return {_BYTES: len(arrays) - 1}
    if isinstance(value, Mapping):
        if bad := [key for key in value if not isinstance(key, str) or key in (_ARRAY, _BYTES)]:
            raise TypeError(f"the key {bad[0]!r} below {name!r} is reserved, or not a string")
        return {key: _take_apart(each, f"{name}/{key}", arrays) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_take_apart(each, f"{name}/{place}", arrays) for place, each in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{name!r} is a {type(value).__name__}; a checkpoint holds arrays and plain values")


def _put_together(value: Any, arrays: Sequence[np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_put_together(each, arrays) for each in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {_ARRAY}:
        return arrays[value[_ARRAY]]
    if set(value) == {_BYTES}:
        return arrays[value[_BYTES]].tobytes()
    return {key: _put_together(each, arrays) for key, each in value.items()}
