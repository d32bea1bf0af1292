"""Targets as a loss takes them, from what a file holds: classes by number or name, numbers, several labels, masks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flsparse.configs import did_you_mean

Stats = float | Sequence[float]
NUMBERS = ("regression", "forecasting", "reconstruction")  # objectives whose targets stay numbers
_SHOWN = 8


@dataclass(frozen=True)
class Targets:
    """Targets of both parts.

    Attributes
    ----------
    train, test : Tensor
        int64 (samples,) or uint8 (samples, height, width) classes; float32 (samples,) or (samples, outputs) numbers;
        uint8 (samples, labels) of 0 and 1.
    num_classes : int
        0 where they are no classes.
    labels : tuple of str, optional
        Names of the classes.
    objective : str
        What they suggest.
    """

    train: Tensor
    test: Tensor
    num_classes: int
    labels: tuple[str, ...] | None
    objective: str


def as_targets(
    train: np.ndarray,
    test: np.ndarray,
    where: str,
    *,
    classes: Sequence[str] | None = None,
    objective: str | None = None,
    rows: tuple[Sequence[str], Sequence[str]] | None = None,
    named: bool = False,
    partial: bool = False,
) -> Targets:
    """Turn stored targets into those of a loss.

    Parameters
    ----------
    train, test : np.ndarray
        (samples, ...): whole numbers, booleans or texts are classes, floating numbers are numbers.
    where : str
        What holds them, such as ``"plant.csv: column 'state'"``, for errors.
    classes : sequence of str, optional
        Names of all classes; by default those that there are.
    objective : str, optional
        What they are for, where whole numbers may be both.
    rows : pair of sequences of str, optional
        The place of each sample in the file, for errors; by default its place in its part, from 1.
    named : bool
        Whole numbers are names of classes, as texts are; else they count the classes from 0.
    partial : bool
        Other nodes may hold other classes: one is enough, and one to test on alone is, too.

    Raises
    ------
    ValueError
        A target is missing, no class or a class that is not trained on, or there is one class only.
    """
    numbers = rows or (_places(len(train)), _places(len(test)))
    parts = (np.asarray(train), np.asarray(test))
    if objective in NUMBERS or (objective is None and parts[0].dtype.kind == "f"):
        return _numbers(parts, where, numbers, objective or "regression")
    if parts[0].dtype.kind == "f" and objective is not None:
        parts = (_whole(parts[0], where, numbers[0]), _whole(parts[1], where, numbers[1]))
    if parts[0].ndim == 2 and parts[0].dtype.kind in "buif" and max(_largest(each) for each in parts) <= 1:
        return Targets(*_tensors(parts, np.uint8), 0, None if classes is None else tuple(classes), "multi_label")
    if parts[0].ndim > 1:
        _check_counted(parts, where, classes)
        count = len(classes) if classes else 1 + int(max(_largest(each) for each in parts))
        kind = "segmentation" if parts[0].ndim == 3 else "classification"
        return Targets(
            *_tensors(parts, np.uint8 if count <= 256 else np.int64),
            count,
            None if classes is None else tuple(classes),
            kind,
        )
    if named or parts[0].dtype.kind in "UOb":
        return _named(parts, where, classes, numbers, partial)
    return _counted(parts, where, classes, numbers, partial)


def _places(samples: int) -> list[str]:
    return [f"row {row}" for row in range(1, samples + 1)]


def _tensors(parts: tuple[np.ndarray, np.ndarray], dtype: npt.DTypeLike) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(parts[0].astype(dtype)), torch.from_numpy(parts[1].astype(dtype))


def _numbers(
    parts: tuple[np.ndarray, np.ndarray], where: str, rows: tuple[Sequence[str], Sequence[str]], objective: str
) -> Targets:
    for each, at in zip(parts, rows, strict=True):
        if each.dtype.kind not in "buif":
            raise ValueError(
                f"{where} holds {str(each.flat[0])!r} in {at[0]}, no number; objective=classification takes texts"
            )
        bad = np.flatnonzero(~np.isfinite(each.reshape(len(each), -1).astype(np.float64)).all(axis=1))
        if len(bad):
            raise ValueError(f"{where} is {each[bad[0]]} in {at[bad[0]]}, no number to learn: leave such rows out")
    return Targets(*_tensors(parts, np.float32), 0, None, objective)


def _whole(values: np.ndarray, where: str, rows: Sequence[str]) -> np.ndarray:
    bad = np.flatnonzero((values != np.floor(values)).reshape(len(values), -1).any(axis=1))
    if len(bad):
        raise ValueError(
            f"{where} is {values[bad[0]]} in {rows[bad[0]]}, no class: leave such rows out, or set objective=regression"
        )
    return values.astype(np.int64)


def _largest(values: np.ndarray) -> float:
    return float(values.max()) if values.size else 0.0


def _check_counted(parts: tuple[np.ndarray, np.ndarray], where: str, classes: Sequence[str] | None) -> None:
    for each in parts:
        low, high = (int(each.min()), int(each.max())) if each.size else (0, 0)
        if low < 0 or (classes is not None and high >= len(classes)):
            wrong = low if low < 0 else high
            limit = (
                "0 on" if classes is None else f"0 to {len(classes) - 1}, as dataset.classes has {len(classes)} names"
            )
            raise ValueError(f"{where} holds {wrong}: classes are whole numbers from {limit}")


def _counted(
    parts: tuple[np.ndarray, np.ndarray],
    where: str,
    classes: Sequence[str] | None,
    rows: tuple[Sequence[str], Sequence[str]],
    partial: bool,
) -> Targets:
    _check_counted(parts, where, classes)
    seen = np.unique(np.concatenate(parts) if partial else parts[0])
    if classes is None and not partial:
        if len(seen) and seen[0] == 1 and len(seen) == seen[-1] > 1:
            raise ValueError(
                f"{where} are from 1 to {seen[-1]}: classes count from 0; subtract 1, or name all by dataset.classes"
            )
        _check_seen(parts[1], seen, where, rows[1])
        _check_several([str(each) for each in seen], where)
    count = len(classes) if classes is not None else int(seen[-1]) + 1
    return Targets(*_tensors(parts, np.int64), count, None if classes is None else tuple(classes), "classification")


def _named(
    parts: tuple[np.ndarray, np.ndarray],
    where: str,
    classes: Sequence[str] | None,
    rows: tuple[Sequence[str], Sequence[str]],
    partial: bool,
) -> Targets:
    texts = [np.array([_text(each) for each in part], dtype=object) for part in parts]
    for part, at in zip(texts, rows, strict=True):
        if (empty := next((row for row, each in enumerate(part) if each in ("", "None", "nan")), None)) is not None:
            raise ValueError(f"{where} is empty in {at[empty]}: leave such rows out, or fill them in")
    if classes is None and partial:
        names = sorted({*texts[0], *texts[1]}, key=by_size)
    elif classes is None:
        names = sorted(set(texts[0]), key=by_size)
        _check_seen(texts[1], np.array(names, dtype=object), where, rows[1])
        _check_several(names, where)
    else:
        names = list(classes)
        for part, at in zip(texts, rows, strict=True):
            known = set(names)
            if (wrong := next((row for row, each in enumerate(part) if each not in known), None)) is not None:
                raise ValueError(
                    f"{where} is {part[wrong]!r} in {at[wrong]}, none of the classes {', '.join(names[:_SHOWN])}"
                    f"{did_you_mean(part[wrong], names)}"
                )
    numbers = {name: number for number, name in enumerate(names)}
    coded = [np.array([numbers[each] for each in part], np.int64) for part in texts]
    return Targets(*_tensors((coded[0], coded[1]), np.int64), len(names), tuple(names), "classification")


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def by_size(name: str) -> tuple[bool, float, str]:
    """Sort key of names: numbers by their size, before all texts."""
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name


def _check_seen(test: np.ndarray, known: np.ndarray, where: str, rows: Sequence[str]) -> None:
    trained = set(known)
    if (row := next((row for row, each in enumerate(test) if each not in trained), None)) is not None:
        raise ValueError(
            f"{where} is {test[row]!s} in {rows[row]} to test on, a class that nobody trains on: leave such rows out, "
            "or name all classes by dataset.classes"
        )


def _check_several(names: Sequence[str], where: str) -> None:
    if len(names) < 2:
        raise ValueError(
            f"{where} has one class only, {', '.join(names) or 'none'}: nothing can be told apart; name all classes by "
            "dataset.classes where other nodes hold the others"
        )
