"""Tables: one row a sample, columns by name, numbers standardized and texts one-hot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flsparse.tasks.arrays import unchanged
from flsparse.tasks.columns import (
    Column,
    Encoder,
    Missing,
    categories_of,
    check_numbers,
    chosen,
    missing_notes,
    moments_of,
)
from flsparse.tasks.data import Source
from flsparse.tasks.moments import Moments
from flsparse.tasks.rows import Rows, read_rows
from flsparse.tasks.targets import NUMBERS, Targets, as_targets


def table(
    *,
    file: str,
    root: str | None = None,
    target: str | Sequence[str],
    features: Sequence[str] | None = None,
    group: str | None = None,
    time: str | None = None,
    test_file: str | None = None,
    test_fraction: float = 0.2,
    classes: Sequence[str] | None = None,
    categories: Mapping[str, Sequence[str]] | None = None,
    statistics: Mapping[str, Sequence[float]] | None = None,
    missing: Missing = "mean",
    decimal: str = ".",
    objective: str | None = None,
    partial: bool = False,
) -> Source:
    """Read a table of samples.

    Parameters
    ----------
    file : str
        ``.csv``, ``.tsv`` or ``.parquet``.
    root : str, optional
        Folder of the files; on a device its ``dataset-root``.
    target : str or list of str
        Column to predict, or several columns of numbers. Texts and whole numbers are classes, other numbers, and with
        ``objective=regression`` whole ones, are predicted as such, in standard deviations from their mean.
    features : list of str, optional
        Columns to predict from; by default all others.
    group : str, optional
        Column that says whose a row is, for ``partition.kind=natural``.
    time : str, optional
        Column of times or numbers that orders the rows of a group: the last ones are the test part.
    test_file : str, optional
        Table of rows to test on; without, `test_fraction` of the rows of each group are.
    test_fraction : float
        In (0, 1).
    classes : list of str, optional
        All classes, for a file that lacks some.
    categories : mapping, optional
        All texts of each column of texts, likewise.
    statistics : mapping, optional
        Mean and standard deviation of each column of numbers; by default those of the rows to train on.
    missing : {"mean", "refuse"}
        A missing number is the mean of its column, a missing text none of its texts; or it is refused.
    decimal : str
        Decimal point of a text file.
    objective : str, optional
        What the target is for.
    partial : bool
        Other nodes hold other rows: classes may lack.

    Returns
    -------
    Source
        Inputs float32 (samples, numbers).

    Raises
    ------
    FileNotFoundError, ModuleNotFoundError
        A file, or pyarrow, is missing.
    ValueError
        A column is missing or holds what cannot be learned from; the message names file, column and row.
    """
    rows = read_rows(
        file, root, group=group, time=time, test_file=test_file, test_fraction=test_fraction, decimal=decimal
    )
    names = feature_names(rows, features, listed(target), (group, time))
    encoded = encoded_features(rows, names, categories, statistics, missing)
    made = targets_of(
        rows, target, encoded, classes=classes, statistics=statistics, objective=objective, partial=partial
    )
    groups = rows.codes
    return Source(
        torch.from_numpy(encoded.matrix[rows.train]),
        made.targets.train,
        torch.from_numpy(encoded.matrix[rows.test]),
        made.targets.test,
        made.targets.num_classes,
        unchanged,
        train_groups=None if groups is None else groups[rows.train],
        test_groups=None if groups is None else groups[rows.test],
        in_time=time is not None,
        labels=made.targets.labels,
        objective=made.targets.objective,
        notes=(*encoded.notes, *made.notes),
        holds=made.holds,
    )


def listed(target: str | Sequence[str]) -> list[str]:
    """Return the names of one column or several as a list."""
    return [target] if isinstance(target, str) else list(target)


def feature_names(
    rows: Rows, features: Sequence[str] | None, targets: Sequence[str], keys: Sequence[str | None]
) -> list[str]:
    """Return the columns to predict from: those that are asked for, or all but the targets and the keys."""
    for name in targets:
        chosen(rows.columns, name, "dataset.target", rows.path)
    if features is None:
        names = [name for name in rows.columns if name not in targets and name not in keys]
    else:
        names = list(features)
        for name in names:
            chosen(rows.columns, name, "dataset.features", rows.path)
            if name in targets:
                raise ValueError(f"dataset.features names {name!r}, which is the target: leave it out")
    if not names:
        raise ValueError(f"{rows.path} has no columns beside target, group and time: there is nothing to predict from")
    return names


@dataclass(frozen=True)
class Encoded:
    """Features as numbers.

    Attributes
    ----------
    matrix : np.ndarray
        float32 (rows, numbers).
    features : list of str
        Columns they are from.
    categories, moments : dict
        Texts and moments of the columns, of the rows to train on.
    notes : list of str
        What was filled in.
    """

    matrix: np.ndarray
    features: list[str]
    categories: dict[str, list[str]]
    moments: dict[str, Moments]
    notes: list[str]


def encoded_features(
    rows: Rows,
    names: Sequence[str],
    categories: Mapping[str, Sequence[str]] | None,
    statistics: Mapping[str, Sequence[float]] | None,
    missing: Missing,
) -> Encoded:
    """Turn columns into numbers, by what is given and what the rows to train on hold."""
    columns = {name: rows.columns[name] for name in names}
    notes = missing_notes(columns, missing, rows.path)
    texts = (
        categories_of(columns, rows.path)
        if categories is None
        else {name: list(each) for name, each in categories.items() if name in columns}
    )
    moments = moments_of(
        {name: each.take(rows.train) for name, each in columns.items() if name not in texts}, rows.path
    )
    known = _statistics(moments, statistics)
    matrix = Encoder(texts, known).encode(columns, rows.path)
    return Encoded(matrix, list(names), texts, moments, notes)


def _statistics(
    moments: Mapping[str, Moments], given: Mapping[str, Sequence[float]] | None
) -> dict[str, tuple[float, float]]:
    known = {}
    for name, each in moments.items():
        mean, std = (given or {}).get(name, (each.mean, each.std))
        if not std > 0:
            raise ValueError(f"dataset.statistics gives {name!r} the standard deviation {std}: it is above 0")
        known[name] = float(mean), float(std)
    return known


@dataclass(frozen=True)
class Target:
    """The target of a table.

    Attributes
    ----------
    targets : Targets
        Of both parts.
    notes : list of str
        In which unit numbers are.
    holds : dict
        What nodes have to agree on: classes, features, categories, moments.
    """

    targets: Targets
    notes: list[str]
    holds: dict[str, Any]


def targets_of(
    rows: Rows,
    target: str | Sequence[str],
    encoded: Encoded,
    *,
    classes: Sequence[str] | None,
    statistics: Mapping[str, Sequence[float]] | None,
    objective: str | None,
    partial: bool,
) -> Target:
    """Turn the column of the target, or several, into targets, and say what nodes have to agree on."""
    names = listed(target)
    columns = {name: rows.columns[name] for name in names}
    where = f"{rows.path}: column {names[0]!r}"
    parts = (rows.train, rows.test)
    holds: dict[str, Any] = {"features": encoded.features, "categories": encoded.categories}
    notes: list[str] = []
    moments = dict(encoded.moments)
    first = columns[names[0]]
    numbers = (first.rows[rows.train].tolist(), first.rows[rows.test].tolist())
    counts = len(names) > 1 and objective not in NUMBERS and all(_is_flag(each) for each in columns.values())
    if objective in NUMBERS or (objective is None and (first.kind == "number" or len(names) > 1) and not counts):
        for name, column in columns.items():
            check_numbers(name, column, rows.path)
            if place := column.first(column.missing):
                raise ValueError(
                    f"{rows.path}: column {name!r} (dataset.target) is empty in {place}: leave such rows out"
                )
        moments |= moments_of({name: column.take(rows.train) for name, column in columns.items()}, rows.path)
        known = _statistics({name: moments[name] for name in names}, statistics)
        scaled = np.stack([(columns[name].values - known[name][0]) / known[name][1] for name in names], axis=1)
        notes += [f"{name!r} is predicted in standard deviations of {known[name][1]:.6g}" for name in names]
        stored = [scaled[part, 0] if len(names) == 1 else scaled[part] for part in parts]
        made = as_targets(stored[0], stored[1], where, objective=objective, rows=numbers)
    elif len(names) > 1:
        flags = np.stack([each.values for each in columns.values()], axis=1)
        made = as_targets(
            flags[rows.train].astype(int), flags[rows.test].astype(int), where, classes=names, rows=numbers
        )
    else:
        if first.kind == "number" and (told := first.first_value(np.mod(first.values, 1) > 0)):
            raise ValueError(f"{where} is {told}, no class; objective=regression predicts numbers")
        values = first.texts
        made = as_targets(
            values[rows.train], values[rows.test], where, classes=classes, rows=numbers, named=True, partial=partial
        )
        holds["classes"] = list(made.labels or ())
    return Target(made, notes, holds | {"moments": {name: each.written() for name, each in moments.items()}})


def _is_flag(column: Column) -> bool:
    return column.kind == "whole" and bool(np.isin(column.values, (0, 1)).all())
