"""State on disk: a nested dict of arrays and plain values, in one file, written whole or not at all.

The file is a safetensors file: the arrays are its tensors, and everything else is one JSON text in its header, in which
an array stands as ``{"__array__": name}``. Nothing in it is ever executed.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

FORMAT_VERSION = 1
_ARRAY, _BYTES = "__array__", "__bytes__"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read."""


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state; what was at ``path`` is replaced in one step, once the new file is safely on disk.

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
    arrays: dict[str, np.ndarray] = {}
    header = {"format_version": str(FORMAT_VERSION), "state": json.dumps(_take_apart(dict(state), "", arrays))}
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, partial, metadata=header)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        size = sum(array.nbytes for array in arrays.values())
        raise CheckpointError(f"cannot write {path} ({size / 1e6:.1f} MB): {error}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote.

    Raises
    ------
    CheckpointError
        There is no such file, it is damaged, or a newer version wrote it.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error}") from error
    if header.get("format_version") != str(FORMAT_VERSION):
        raise CheckpointError(f"{path} has format {header.get('format_version')}; this version reads {FORMAT_VERSION}")
    state: dict[str, Any] = _put_together(json.loads(header["state"]), arrays)
    return state


def _take_apart(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """Return the value with its arrays moved into ``arrays`` and names in their place."""
    if isinstance(value, np.ndarray):
        arrays[name] = np.array(value, order="C")  # not ascontiguousarray: that makes 0-d arrays 1-d
        return {_ARRAY: name}
    if isinstance(value, bytes):
        arrays[name] = np.frombuffer(value, np.uint8)
        return {_BYTES: name}
    if isinstance(value, Mapping):
        if bad := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"the key {bad[0]!r} below {name!r} is not a string")
        return {key: _take_apart(each, f"{name}/{key}", arrays) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_take_apart(each, f"{name}/{place}", arrays) for place, each in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{name!r} is a {type(value).__name__}; a checkpoint holds arrays and plain values")


def _put_together(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_put_together(each, arrays) for each in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {_ARRAY}:
        return arrays[value[_ARRAY]]
    if set(value) == {_BYTES}:
        return arrays[value[_BYTES]].tobytes()
    return {key: _put_together(each, arrays) for key, each in value.items()}
