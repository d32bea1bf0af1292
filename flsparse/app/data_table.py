"""What each node holds, before anything runs: sizes, classes, and what is odd about them."""

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from flsparse.tasks import Task

_NODES, _CLASSES = 20, 12  # rows and columns that are shown


def data_table(task: Task) -> Table:
    """Return a table of the nodes' data, at most 20 nodes and 12 classes of it, with what is odd below.

    Parameters
    ----------
    task : Task
        With all nodes' data on this machine.
    """
    parts = [task.train_data(node) for node in range(task.num_nodes)]
    tested = [task.local_test_data(node) for node in range(task.num_nodes)]
    classes = 0 if task.source.is_text else task.source.num_classes  # characters are no kinds of samples
    counts = np.array([part.class_counts(classes) for part in parts]) if classes else None
    names = list(task.source.labels or map(str, range(classes)))
    table = Table(title="what the nodes hold", caption="\n".join(odd(counts, names, list(map(len, parts)))) or None)
    table.add_column("node")
    shown = names if counts is not None and classes <= _CLASSES else []
    for column in ("to train on", *(["to test on"] if tested[0] is not None else []), *shown):
        table.add_column(column, justify="right")
    for node, part in enumerate(parts[:_NODES]):
        cells = [len(part), *([len(tested[node] or ())] if tested[0] is not None else [])]
        table.add_row(str(node), *map(str, [*cells, *(counts[node] if shown and counts is not None else ())]))
    if len(parts) > _NODES:
        table.add_row(f"and {len(parts) - _NODES} more")
    return table


def odd(counts: np.ndarray | None, names: Sequence[str], sizes: Sequence[int]) -> list[str]:
    """Return a line for each thing about the nodes' data that may surprise their owner.

    Parameters
    ----------
    counts : np.ndarray, optional
        int64 (nodes, classes), samples to train on.
    names : sequence of str
        Of the classes.
    sizes : sequence of int
        Samples to train on of each node.

    Examples
    --------
    >>> odd(np.array([[5, 0, 0], [4, 4, 0]]), ["ok", "torn", "bent"], [5, 8])
    ['no node has an example of bent', 'node 0 has one class only']
    """
    lines = []
    if counts is not None:
        if absent := [names[int(place)] for place in np.flatnonzero(counts.sum(axis=0) == 0)]:
            lines.append(f"no node has an example of {', '.join(absent[:_CLASSES])}")
        if alone := [str(node) for node in np.flatnonzero((counts > 0).sum(axis=1) == 1)]:
            few = f"{', '.join(alone[:_NODES])}{' and more' * (len(alone) > _NODES)}"
            lines.append(f"node{'s' * (len(alone) > 1)} {few} {'have' if len(alone) > 1 else 'has'} one class only")
    if max(sizes) > 10 * min(sizes):
        lines.append(f"the largest node has {max(sizes)} samples, the smallest {min(sizes)}")
    return lines
