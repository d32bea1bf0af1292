"""The validation set: a part of the training data that no node holds."""

import numpy as np

from flsparse import rng
from flsparse.tasks.data import Source


def hold_out(source: Source, fraction: float, limit: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide the training set into the nodes' part and the validation set.

    Parameters
    ----------
    source : Source
    fraction : float
        Share kept for validation, in [0, 1).
    limit : int, optional
        Number of training samples to use in all, drawn at random.
    seed : int
        The run's seed.

    Returns
    -------
    train, validation : np.ndarray
        Sorted int64 indices, disjoint. Of a data set in time order each group's validation samples are its last ones.

    Raises
    ------
    ValueError
        If fraction or limit is out of range.
    """
    total = len(source.train_inputs)
    if not 0 <= fraction < 1:
        raise ValueError(f"dataset.validation_fraction={fraction} must be in [0, 1)")
    if limit is not None and not 1 <= limit <= total:
        raise ValueError(f"dataset.train_samples={limit} must be from 1 to the {total} training samples there are")
    stream = rng.stream(seed, 0, -1, "validation")
    chosen = np.arange(total) if limit is None else np.sort(stream.choice(total, limit, replace=False))
    if source.in_time:
        groups = np.zeros(len(chosen)) if source.train_groups is None else source.train_groups[chosen]
        _, start, size = np.unique(groups, return_index=True, return_counts=True)
        # Samples of a group are contiguous: count each one's distance to its group's end.
        left = np.repeat(start + size, size) - np.arange(len(chosen))
        held = left <= np.repeat(np.floor(fraction * size), size)
    else:
        held = np.zeros(len(chosen), dtype=bool)
        held[stream.permutation(len(chosen))[: int(fraction * len(chosen))]] = True
    return chosen[~held], chosen[held]
