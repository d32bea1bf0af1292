"""Tables by column: a file of rows becomes named columns, and columns become the numbers that a model takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from flsparse.configs import did_you_mean
from flsparse.tasks.moments import Moments

Kind = Literal["number", "whole", "text", "time"]
Missing = Literal["mean", "refuse"]
_MOST_CATEGORIES = 100
_LARGEST = 1e30  # of a number: float32 must hold it
_MOSTLY = 0.5  # of the texts of a column are numbers: the others are mistakes, not categories
_SEPARATORS = {".tsv": "\t", ".tab": "\t"}


@dataclass(frozen=True)
class Column:
    """One column of a file.

    Attributes
    ----------
    kind : {"number", "whole", "text", "time"}
        What the file holds; booleans are whole numbers.
    values : np.ndarray
        float64 (rows,), NaN where there is none; times in seconds. Of texts object (rows,), empty where there is none.
    rows : np.ndarray
        object (rows,), the place of each value in the file, for errors: ``row 1`` is the first below the header.
    """

    kind: Kind
    values: npt.NDArray[Any]
    rows: npt.NDArray[Any]

    @property
    def missing(self) -> npt.NDArray[np.bool_]:
        """bool (rows,), True where the column has no value."""
        found: npt.NDArray[np.bool_] = self.values == "" if self.kind == "text" else np.isnan(self.values)
        return found

    @property
    def texts(self) -> npt.NDArray[Any]:
        """object (rows,), the values as texts, empty where there is none."""
        if self.kind == "text":
            return self.values
        return np.array(["" if np.isnan(each) else f"{each:.15g}" for each in self.values], dtype=object)

    def take(self, rows: npt.NDArray[np.int64]) -> "Column":
        """Return some of the rows."""
        return Column(self.kind, self.values[rows], self.rows[rows])

    def first(self, wrong: npt.NDArray[np.bool_]) -> str | None:
        """Return the place in the file where a condition, bool (rows,), first holds; None where it nowhere does."""
        return min(self.rows[wrong], key=lambda row: int(str(row).split()[1]), default=None)

    def first_value(self, wrong: npt.NDArray[np.bool_]) -> str | None:
        """Return the value before its place, as ``'abc' in row 3``, where a condition first holds, or None."""
        place = self.first(wrong)
        return None if place is None else f"{self.values[self.rows == place][0]!s} in {place}"


def read_columns(path: Path, decimal: str = ".") -> dict[str, Column]:
    """Read a table.

    Parameters
    ----------
    path : Path
        ``.csv`` (with commas, semicolons or tabs), ``.tsv`` or ``.parquet``, the first two also as ``.gz``.
    decimal : str
        Sign between the whole and the fraction of a number in a text file.

    Raises
    ------
    ModuleNotFoundError
        pyarrow is not installed.
    ValueError
        The file cannot be read, or two columns have one name.
    """
    try:
        from pyarrow import csv, parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("tables need pyarrow: pip install pyarrow") from error
    suffix = path.suffix if path.suffix != ".gz" else path.with_suffix("").suffix
    try:
        if suffix in (".parquet", ".pq"):
            table = parquet.read_table(path)
        elif suffix in (".csv", ".txt", *_SEPARATORS):
            separator = _SEPARATORS.get(suffix) or _separator(path)
            table = csv.read_csv(
                path,
                parse_options=csv.ParseOptions(delimiter=separator),
                convert_options=csv.ConvertOptions(decimal_point=decimal),
            )
        else:
            raise ValueError(f"its name ends in {path.suffix!r}, not in .csv, .tsv or .parquet")
    except (ValueError, OSError, UnicodeError) as error:  # of pyarrow, too
        raise ValueError(f"{path} cannot be read as a table: {str(error).splitlines()[0]}") from error
    names = [str(name).strip() for name in table.column_names]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{path} has two columns named {twice[0]!r}: rename one")
    if not table.num_rows:
        raise ValueError(f"{path} has no rows below its header: put some in")
    rows = np.array([f"row {number}" for number in range(1, table.num_rows + 1)], dtype=object)
    return {name: Column(*_values(table.column(number), name, path), rows) for number, name in enumerate(names)}


def _separator(path: Path) -> str:
    import gzip

    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        header = file.readline()
    return max((",", ";", "\t"), key=lambda each: header.count(each.encode()))


def _values(stored: Any, name: str, path: Path) -> tuple[Kind, npt.NDArray[Any]]:
    from pyarrow import types

    kind = stored.type
    if types.is_dictionary(kind):
        stored, kind = stored.cast(kind.value_type), kind.value_type
    if types.is_string(kind) or types.is_large_string(kind):
        return "text", np.array([(each or "").strip() for each in stored.to_pylist()], dtype=object)
    if types.is_timestamp(kind) or types.is_date(kind):
        seconds = stored.cast("timestamp[ns]").cast("int64").to_numpy(zero_copy_only=False) / 1e9
        return "time", seconds.astype(np.float64)
    if types.is_boolean(kind):
        stored, kind = stored.cast("int8"), "int8"
    if kind == "int8" or types.is_integer(kind):
        return "whole", stored.to_numpy(zero_copy_only=False).astype(np.float64)
    if types.is_floating(kind) or types.is_decimal(kind):
        return "number", stored.cast("float64").to_numpy(zero_copy_only=False)
    if types.is_null(kind):
        return "number", np.full(len(stored), np.nan)
    raise ValueError(
        f"{path}: column {name!r} holds {kind}, neither numbers nor texts nor times: leave it out of the file"
    )


def chosen(columns: Mapping[str, Column], name: str, key: str, path: Path) -> Column:
    """Return a column that a setting names; ValueError where the file lacks it."""
    if name not in columns:
        raise ValueError(
            f"{path} has no column {name!r} ({key}), only {', '.join(columns)}{did_you_mean(name, columns)}"
        )
    return columns[name]


def categories_of(columns: Mapping[str, Column], path: Path) -> dict[str, list[str]]:
    """Return the different texts of each column of texts, sorted.

    Raises
    ------
    ValueError
        A column has more than 100, or is one of numbers with a mistake in it.
    """
    found = {}
    for name, column in columns.items():
        if column.kind != "text":
            continue
        distinct = sorted(set(column.values[~column.missing]))
        words = [text for text in distinct if not _is_number(text)]
        if distinct and np.isin(column.values, words).sum() < _MOSTLY * (~column.missing).sum():
            raise ValueError(text_among_numbers(column, name, path))
        if len(distinct) > _MOST_CATEGORIES:
            raise ValueError(
                f"{path}: column {name!r} has {len(distinct)} different texts in {len(column.values)} rows, and "
                f"{_MOST_CATEGORIES} at most are told apart: leave it out by dataset.features=[...]"
            )
        found[name] = distinct
    return found


def text_among_numbers(column: Column, name: str, path: Path) -> str:
    """Return what is wrong with a column of numbers in which some are texts."""
    told = column.first_value(np.array([bool(text) and not _is_number(text) for text in column.values]))
    comma = " (dataset.decimal=',' reads 3,14)" if told and "," in told else ""
    return f"{path}: column {name!r} is {told}, no number: mend it, or leave it empty{comma}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Encoder:
    """Rule from columns to a model's numbers.

    Attributes
    ----------
    categories : dict[str, list[str]]
        The texts of each column of texts: one 0 or 1 each.
    statistics : dict[str, tuple[float, float]]
        Mean and standard deviation of each column of numbers: ``(x - mean) / std``, 0 where there is no value.
    """

    categories: Mapping[str, Sequence[str]]
    statistics: Mapping[str, Sequence[float]]

    def encode(self, columns: Mapping[str, Column], path: Path) -> npt.NDArray[np.float32]:
        """Return float32 (rows, numbers), the columns in their order.

        Raises
        ------
        ValueError
            A column has a text that is no category, or is one of texts where numbers are wanted.
        """
        made = []
        for name, column in columns.items():
            if name in self.categories:
                made.append(self._one_hot(name, column, path))
                continue
            check_numbers(name, column, path)
            mean, std = self.statistics[name]
            scaled = (column.values - mean) / std
            made.append(np.where(np.isnan(scaled), 0.0, scaled)[:, None])
        return np.concatenate(made, axis=1).astype(np.float32)

    def _one_hot(self, name: str, column: Column, path: Path) -> npt.NDArray[np.float64]:
        known = {text: number for number, text in enumerate(self.categories[name])}
        texts = column.texts
        if told := column.first_value(np.array([bool(text) and text not in known for text in texts])):
            raise ValueError(
                f"{path}: column {name!r} is {told}, none of {', '.join(list(known)[:8])} (dataset.categories)"
            )
        return np.stack([texts == text for text in known], axis=1).astype(np.float64)


def check_numbers(name: str, column: Column, path: Path) -> None:
    """Refuse a column that holds something else than finite numbers; ValueError names the row."""
    if column.kind == "text":
        raise ValueError(text_among_numbers(column, name, path))
    if column.kind == "time":
        raise ValueError(
            f"{path}: column {name!r} holds times: name it by dataset.time, or leave it out by dataset.features=[...]"
        )
    if told := column.first_value(np.abs(column.values) > _LARGEST):
        raise ValueError(f"{path}: column {name!r} is {told}: mend it, or leave it empty")


def moments_of(columns: Mapping[str, Column], path: Path) -> dict[str, Moments]:
    """Return the moments of columns of numbers, without the values that are missing."""
    found = {}
    for name, column in columns.items():
        check_numbers(name, column, path)
        found[name] = Moments.of(column.values[~column.missing])
    return found


def missing_notes(columns: Mapping[str, Column], rule: Missing, path: Path) -> list[str]:
    """Return a line for each column with missing values, with what is put in their place.

    Raises
    ------
    ValueError
        The rule is to refuse them.
    """
    notes = []
    for name, column in columns.items():
        count = int(column.missing.sum())
        if count and rule == "refuse":
            raise ValueError(
                f"{path}: column {name!r} is empty in {column.first(column.missing)} and {count - 1} more: fill it in, "
                "or let dataset.missing=mean do so"
            )
        if count:
            put = "none of its texts" if column.kind == "text" else "the mean"
            notes.append(f"{path}: {count} of {len(column.values)} values of {name!r} are missing and count as {put}")
    return notes
