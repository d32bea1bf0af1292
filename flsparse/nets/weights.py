"""Weights to start from: a file's arrays into a model, each named where it does not fit."""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

_NAMED = 3  # arrays in a line


def weights_file(file: Path | str) -> Path:
    """Return the path of a file of weights; FileNotFoundError where there is none."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights {file} (looked in {path.resolve().parent})")
    return path


def read_weights(file: Path | str) -> dict[str, Tensor]:
    """Read a state dict from a file: safetensors, or what ``torch.save`` wrote (tensors alone are read).

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It holds something else.
    """
    path = weights_file(file)
    try:
        found: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{file} holds no weights ({first}): torch.save(model.state_dict(), FILE) does") from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):  # of a training framework's checkpoint
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{file} holds no state dict: save one, torch.save(model.state_dict(), FILE)")
    return found


def load_weights(
    model: nn.Module, file: Path | str, fresh: Sequence[str] = (), elsewhere: Collection[str] = ()
) -> None:
    """Load a file's arrays into a model, by state-dict key.

    Parameters
    ----------
    model : nn.Module
        Takes the arrays.
    file : Path or str
        As for :func:`read_weights`.
    fresh : sequence of str
        Patterns (``fc.*``) of arrays that are left as they are, whether the file has them or not.
    elsewhere : collection of str
        Names of arrays that the file may have, and the model has not: personal ones.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        An array is missing, unexpected or of another shape; or a pattern names none.
    """
    own, found = model.state_dict(), read_weights(file)
    for pattern in fresh:
        if not any(fnmatchcase(name, pattern) for name in own):
            raise ValueError(f"model.fresh: {pattern!r} names no array of the model, such as {next(iter(own))}")
    wanted = {name: value for name, value in own.items() if not _named(name, fresh) and isinstance(value, Tensor)}
    given = {name: value for name, value in found.items() if not _named(name, fresh) and name not in elsewhere}
    odd = [
        f"{name} ({_shape(given[name])}, not {_shape(value)})"
        for name, value in wanted.items()
        if name in given and given[name].shape != value.shape
    ]
    problems = (
        ("lacks", [name for name in wanted if name not in given]),
        ("has beside the model's", [name for name in given if name not in wanted]),
        ("has of another shape", odd),
    )
    said = [f"{what} {_listed(names)}" for what, names in problems if names]
    if said:
        raise ValueError(
            f"{file} is not of this model: it {', and '.join(said)}; model.fresh=[PATTERNS] names what is to start anew"
        )
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(given[name])


def _named(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
