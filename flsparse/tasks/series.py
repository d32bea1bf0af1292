"""Series: windows over the rows of a table, in order of time, for classes, numbers or the values that follow."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from flsparse.tasks.arrays import unchanged
from flsparse.tasks.columns import Missing
from flsparse.tasks.data import Source
from flsparse.tasks.lazy import lazily
from flsparse.tasks.rows import Rows, read_rows
from flsparse.tasks.table import encoded_features, feature_names, listed, targets_of


def series(
    *,
    file: str,
    root: str | None = None,
    target: str | Sequence[str],
    window: int,
    stride: int = 1,
    horizon: int = 0,
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
    """Cut the series of a table into windows; none reaches over two groups, nor from training into the test part.

    Parameters
    ----------
    window : int
        Rows of a sample, at least 1.
    stride : int
        Rows from the start of a window to that of the next, at least 1.
    horizon : int
        Rows after a window whose targets are forecast, and from which the target is a feature, too; 0 takes the target
        in the window's last row.
    file, root, target, features, group, time, test_file, test_fraction
        As for :func:`flsparse.tasks.table.table`. Without a time, rows stand in order; the test part is the end of each
        group.
    classes, categories, statistics, missing, decimal, objective, partial
        As for :func:`flsparse.tasks.table.table`.

    Returns
    -------
    Source
        Inputs float32 (samples, numbers, window); targets as of a table, or float32 (samples, horizon x targets).

    Raises
    ------
    FileNotFoundError, ModuleNotFoundError, ValueError
        As for :func:`flsparse.tasks.table.table`; or a group is shorter than a window.
    """
    for name, value, least in (("window", window, 1), ("stride", stride, 1), ("horizon", horizon, 0)):
        if value < least:
            raise ValueError(f"dataset.{name}={value} must be at least {least}: it counts rows")
    rows = read_rows(
        file,
        root,
        group=group,
        time=time,
        test_file=test_file,
        test_fraction=test_fraction,
        decimal=decimal,
        in_order=True,
    )
    names = feature_names(rows, features, () if horizon else listed(target), (group, time))
    encoded = encoded_features(rows, names, categories, statistics, missing)
    made = targets_of(
        rows,
        target,
        encoded,
        classes=classes,
        statistics=statistics,
        objective=objective or ("regression" if horizon else None),
        partial=partial,
    )
    numbers = torch.from_numpy(encoded.matrix)
    starts = [_starts(rows, part, window, horizon, stride) for part in (rows.train, rows.test)]
    everyone = torch.zeros((len(numbers), *made.targets.train.shape[1:]), dtype=made.targets.train.dtype)
    everyone[rows.train], everyone[rows.test] = made.targets.train, made.targets.test
    targets = [_targets(everyone, first, window, horizon) for first in starts]
    codes = rows.codes
    return Source(
        _windows(numbers, starts[0], window),
        targets[0],
        _windows(numbers, starts[1], window),
        targets[1],
        made.targets.num_classes,
        unchanged,
        train_groups=None if codes is None else codes[starts[0]],
        test_groups=None if codes is None else codes[starts[1]],
        in_time=True,
        labels=made.targets.labels,
        objective=made.targets.objective,
        notes=(*encoded.notes, *made.notes),
        holds=made.holds,
    )


def _starts(rows: Rows, part: np.ndarray, window: int, horizon: int, stride: int) -> np.ndarray:
    """Return the first row of each window in a part, int64 (windows,)."""
    groups = np.zeros(len(part), np.int64) if rows.groups is None else rows.groups[part]
    found = []
    for each in np.split(part, np.flatnonzero(groups[1:] != groups[:-1]) + 1):
        if len(each) < window + horizon:
            what = "" if rows.groups is None else f"group {str(rows.groups[each[0]])!r} has "
            use = "train" if part is rows.train else "test"
            wanted = f"dataset.window={window}" + f" and dataset.horizon={horizon}" * bool(horizon)
            raise ValueError(
                f"{rows.path}: {what}{len(each)} rows to {use} on, fewer than {wanted}: shorten that, or take them out"
            )
        found.append(np.arange(each[0], each[-1] + 2 - window - horizon, stride))
    return np.concatenate(found)


def _windows(numbers: Tensor, starts: np.ndarray, window: int) -> Tensor:
    first, steps = torch.from_numpy(starts), torch.arange(window)

    def read(positions: Tensor) -> Tensor:
        return numbers[first[positions][:, None] + steps].transpose(1, 2).contiguous()

    return lazily(read, len(starts), (numbers.shape[1], window), numbers.dtype)


def _targets(everyone: Tensor, starts: np.ndarray, window: int, horizon: int) -> Tensor:
    first = torch.from_numpy(starts) + window
    if not horizon:
        return everyone[first - 1]
    return everyone[first[:, None] + torch.arange(horizon)].flatten(1)
