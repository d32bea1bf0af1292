"""The rows of a table: sorted by group and time, and divided into those to train on and those to test on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flsparse.tasks.arrays import located
from flsparse.tasks.columns import Column, chosen, read_columns
from flsparse.tasks.splits import held_out


@dataclass(frozen=True)
class Rows:
    """The rows of a table, or of a file to train on and one to test on.

    Attributes
    ----------
    path : Path
        The file, for errors.
    columns : dict[str, Column]
        All of them, sorted by group and time where there are such columns.
    train, test : np.ndarray
        int64 indices of rows.
    groups : np.ndarray, optional
        str (rows,), the group of each row.
    """

    path: Path
    columns: dict[str, Column]
    train: np.ndarray
    test: np.ndarray
    groups: np.ndarray | None

    @property
    def codes(self) -> np.ndarray | None:
        """int64 (rows,), each row's group by its place among the sorted names; None without groups."""
        if self.groups is None:
            return None
        known = np.unique(self.groups[self.train])
        strange = np.setdiff1d(self.groups[self.test], known)
        if len(strange):
            raise ValueError(
                f"{self.path}: rows to test on have the group {strange[0]!r}, and none to train on has: take them out"
            )
        return np.searchsorted(known, self.groups).astype(np.int64)


def read_rows(
    file: str,
    root: str | None,
    *,
    group: str | None,
    time: str | None,
    test_file: str | None,
    test_fraction: float,
    decimal: str,
    in_order: bool = False,
) -> Rows:
    """Read a table, sort it by group and time, and say which rows are to train and to test on.

    Parameters
    ----------
    file, root, group, time, test_file, test_fraction, decimal
        As for :func:`flsparse.tasks.table.table`.
    in_order : bool
        Rows stand in order of time without a column that says so: the last ones of each group are the test part.
    """
    path = located(file, root)
    columns = read_columns(path, decimal)
    is_test = np.zeros(len(next(iter(columns.values())).values), dtype=bool)
    if test_file is not None:
        other = located(test_file, root)
        further = read_columns(other, decimal)
        columns = {name: _joined(name, column, further, other) for name, column in columns.items()}
        is_test = np.arange(len(next(iter(columns.values())).values)) >= len(is_test)
    order = np.arange(len(is_test))
    if time is not None:
        clock = chosen(columns, time, "dataset.time", path)
        _check_clock(clock, time, path)
        order = np.argsort(clock.values, kind="stable")
    groups = None
    if group is not None:
        column = chosen(columns, group, "dataset.group", path)
        if place := column.first(column.missing):
            raise ValueError(f"{path}: column {group!r} (dataset.group) is empty in {place}: say whose each row is")
        groups = column.texts.astype(str)
        order = order[np.argsort(groups[order], kind="stable")]
    columns = {name: column.take(order) for name, column in columns.items()}
    groups, is_test = None if groups is None else groups[order], is_test[order]
    if test_file is None:
        train, test = held_out(len(order), test_fraction, groups, where=str(path), in_time=in_order or time is not None)
    else:
        train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    return Rows(path, columns, train, test, groups)


def _joined(name: str, first: Column, further: dict[str, Column], path: Path) -> Column:
    second = chosen(further, name, "as the other file has", path)
    kinds = {first.kind, second.kind}
    if len(kinds) > 1 and kinds != {"whole", "number"}:
        raise ValueError(
            f"{path}: column {name!r} holds {second.kind}s where the other file holds {first.kind}s: make them alike"
        )
    rows = np.array([f"{row} of {path.name}" for row in second.rows], dtype=object)
    return Column(
        "number" if len(kinds) > 1 else first.kind,
        np.concatenate([first.values, second.values]),
        np.concatenate([first.rows, rows]),
    )


def _check_clock(column: Column, name: str, path: Path) -> None:
    if column.kind == "text":
        raise ValueError(
            f"{path}: column {name!r} (dataset.time) is {column.values[0]!r} in {column.rows[0]}, neither a number nor "
            "a time such as 2026-01-31 12:00:00"
        )
    if place := column.first(column.missing):
        raise ValueError(f"{path}: column {name!r} (dataset.time) is empty in {place}: leave such rows out")
