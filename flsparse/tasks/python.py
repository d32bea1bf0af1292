"""Data sets of a function of the user's own: ``dataset=python dataset.factory=mypackage.data:load``."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from flsparse.tasks.arrays import source_of
from flsparse.tasks.data import Source
from flsparse.tasks.factories import called
from flsparse.tasks.lazy import lazily

_RESULT = "a Source, or a mapping with train and test (Datasets of torch), or with the names of dataset=arrays"


def python_source(
    settings: Mapping[str, Any],
    objective: str | None = None,
    ignore_label: int | None = None,
    *,
    partial: bool = False,
) -> Source:
    """Call a function, and return the data set that it makes.

    Parameters
    ----------
    settings : Mapping
        ``factory``, its dotted name, and its arguments; ``root`` is a device's ``dataset-root``. ``classes`` are the
        names of all classes, to which those of the function are put in order; it may take them.
    objective : str, optional
        What the targets are for.
    ignore_label : int, optional
        A target without a label.
    partial : bool
        Other nodes hold other samples, and perhaps other classes.

    Returns
    -------
    Source
        As the function returns it, or of its mapping: arrays by the names of :func:`flsparse.tasks.arrays.arrays`; or
        ``train`` and ``test``, sequences of (input, target) such as torch's Datasets, read when a batch asks for them,
        with ``train_groups`` and ``test_groups`` where samples have a natural node. ``classes`` may name the classes.

    Raises
    ------
    ValueError
        The function is not there, or returns something else.
    """
    name = str(settings.get("factory"))
    given = dict(settings)
    declared = given.pop("classes", None)
    made = called(given, {"objective": objective, "classes": declared}, "dataset")
    if isinstance(made, Source):
        return made
    if not isinstance(made, Mapping):
        raise ValueError(f"dataset.factory={name} returns {type(made).__name__}, not {_RESULT}")
    given = dict(made)
    classes = given.pop("classes", None) or declared
    for part in ("train", "test"):
        if part in given:
            given[f"{part}_inputs"], given[f"{part}_targets"] = _taken_apart(given.pop(part), f"{name}: {part}")
    if declared is not None and classes != declared:
        for key in ("targets", "train_targets", "test_targets"):
            if key in given:
                given[key] = _renumbered(np.asarray(given[key]), classes, declared, f"{name}: {key}", ignore_label)
    return source_of(
        given,
        f"dataset.factory={name}",
        classes=declared or classes,
        objective=objective,
        ignore_label=ignore_label,
        partial=partial,
    )


def _renumbered(
    targets: np.ndarray, classes: Sequence[str], declared: Sequence[str], where: str, ignore_label: int | None
) -> np.ndarray:
    """Return targets that count a function's classes, any shape, so that they count all that are declared."""
    if targets.dtype.kind not in "iu":
        return targets  # they are names
    if unknown := [each for each in classes if each not in declared]:
        raise ValueError(
            f"{where} has the class {unknown[0]!r}, none of {', '.join(declared)}: add it to dataset.classes"
        )
    places, known = np.array([declared.index(each) for each in classes]), targets != ignore_label
    if known.any() and not 0 <= targets[known].min() <= targets[known].max() < len(classes):
        raise ValueError(f"{where} are not from 0 to {len(classes) - 1}, as there are {len(classes)} classes: name all")
    return np.where(known, places[np.where(known, targets, 0)], targets)


def _taken_apart(samples: Any, where: str) -> tuple[Tensor, np.ndarray]:
    """Return the inputs of a sequence of samples, unread, and its targets, for which each sample is read once."""
    if not isinstance(samples, Dataset) and not hasattr(samples, "__getitem__"):
        raise ValueError(f"{where} is {type(samples).__name__}: it is a sequence of (input, target), such as a Dataset")
    if not len(samples):
        raise ValueError(f"{where} is empty: it holds a sample at least")
    try:
        first = torch.as_tensor(samples[0][0])
        targets = np.stack([np.asarray(samples[position][1]) for position in range(len(samples))])
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise ValueError(
            f"{where}: a sample is (input, target), two arrays or numbers of equal shapes ({error})"
        ) from error

    def read(positions: Tensor) -> Tensor:
        return torch.stack([torch.as_tensor(samples[position][0]) for position in positions.tolist()])

    return lazily(read, len(samples), tuple(first.shape), first.dtype), targets
