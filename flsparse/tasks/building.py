"""Tasks from configurations."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from flsparse.tasks.own import is_own, task_here
from flsparse.tasks.task import Task

_TASK_KEYS = (
    "dataset",
    "model",
    "objective",
    "metric",
    "metrics",
    "augment",
    "partition",
    "num_clients",
    "seed",
    "device",
)


def build_task(config: Mapping[str, Any]) -> Task:
    """Return the task of a configuration; the same configuration gives the same object while it is in use.

    Parameters
    ----------
    config : Mapping
        Plain values. ``dataset``: ``name``, the loader's own arguments, ``validation_fraction`` (default 0.1) and
        ``train_samples`` (default all); ``model``: ``name`` and the model's own arguments; ``objective``: ``name`` and
        its arguments (default: what the data set suggests); ``metric``, the KPI (default: the objective's), and
        ``metrics``, further ones; ``augment``, transforms of training images; ``partition``: ``kind`` and
        ``alpha``; ``num_clients``; ``seed``; ``device`` (default ``cpu``; ``auto`` takes a GPU where there is one).
        Other keys are ignored.

    Raises
    ------
    ValueError
        If a value is impossible or a name unknown; the message names the possible ones.
    FileNotFoundError
        If the data set's files are missing; the message names the paths.
    """
    return _build_task(json.dumps({key: config[key] for key in _TASK_KEYS if key in config}, sort_keys=True))


@lru_cache(maxsize=2)  # devices ask once a message; two, since a data set may be large
def _build_task(text: str) -> Task:
    config = json.loads(text)
    return task_here(config) if is_own(config) else Task(config)
