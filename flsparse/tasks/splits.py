"""The test part of data that come in one piece: a share of every group, at random or its end in time."""

from collections.abc import Sequence

import numpy as np

from flsparse import rng


def held_out(
    samples: int,
    fraction: float,
    groups: np.ndarray | Sequence[str] | None = None,
    *,
    where: str,
    in_time: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Divide samples into those to train on and a test part, group by group.

    What is drawn from a group depends on its size alone: a node that holds one group of many draws the same.

    Parameters
    ----------
    samples : int
        Number of samples.
    fraction : float
        Share of each group that is held out, rounded, one sample at least, in (0, 1).
    groups : np.ndarray, optional
        (samples,), the group of each sample; all one group without.
    where : str
        What holds the samples, for errors.
    in_time : bool
        Samples of a group stand in order of time: its last ones are held out.

    Returns
    -------
    train, test : np.ndarray
        Sorted int64 indices, disjoint, together all.

    Raises
    ------
    ValueError
        The fraction is out of range, or a group has one sample, or none.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"dataset.test_fraction={fraction} must be in (0, 1)")
    if not samples:
        raise ValueError(f"{where} holds no samples: put some in")
    names, codes = np.unique(np.zeros(samples) if groups is None else groups, return_inverse=True)
    held = np.zeros(samples, dtype=bool)
    order = np.argsort(codes, kind="stable")
    for name, rows in zip(names, np.split(order, np.flatnonzero(np.diff(codes[order])) + 1), strict=True):
        if len(rows) < 2:
            what = "it" if groups is None else f"group {str(name)!r}"
            raise ValueError(
                f"{where}: {what} has 1 sample, which cannot be both trained and tested on: leave it out, or name data "
                "to test on"
            )
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        chosen = np.arange(len(rows) - count, len(rows)) if in_time else _drawn(len(rows), count)
        held[rows[chosen]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _drawn(size: int, count: int) -> np.ndarray:
    return rng.stream(0, 0, -1, "test").permutation(size)[:count]
