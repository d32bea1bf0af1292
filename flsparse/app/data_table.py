"""What each node holds, before anything runs: sizes, classes, and what is odd about them."""

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from flsparse.tasks import Data, Task
from flsparse.tasks.duplicates import tested_and_trained

_NODES, _CLASSES = 20, 12  # rows and columns that are shown


def data_table(task: Task, *, by_node: bool = False) -> Table:
    """Return a table of the nodes' data, at most 20 nodes and 12 classes of it, with what is odd below.

    Parameters
    ----------
    task : Task
        With all nodes' data on this machine; they are read, to find samples that are trained and tested on.
    by_node : bool
        Each node tests on its share of the test set, where it has no test part of its own.
    """
    parts = [task.train_data(node) for node in range(task.num_nodes)]
    own = [task.local_test_data(node) for node in range(task.num_nodes)]
    tested = [task.test_share(node) if part is None and by_node else part for node, part in enumerate(own)]
    held = [part for part in tested if part is not None]
    tests = [part for part in own if part is not None] or [task.test_data()]
    classes = 0 if task.source.is_text else task.source.num_classes  # characters are no kinds of samples
    counts = np.array([part.class_counts(classes) for part in parts]) if classes else None
    names = list(task.source.labels or map(str, range(classes)))
    lines = odd(counts, names, list(map(len, parts)))
    if counts is not None:
        lines += odd_labels(counts, parts, tests, names)
    if held and (without := [str(node) for node, part in enumerate(held) if not len(part)]):
        lines.append(f"{_nodes(without)} nothing to test on")
    if twice := tested_and_trained(parts, tests):
        lines.append(
            f"{twice} of {sum(map(len, tests)):,} samples to test on are among those to train on, byte by byte"
        )
    table = Table(title="what the nodes hold", caption="\n".join(lines) or None)
    table.add_column("node")
    shown = names if counts is not None and classes <= _CLASSES else []
    for column in ("to train on", *(["to test on"] if held else []), *shown):
        table.add_column(column, justify="right")
    for node, part in enumerate(parts[:_NODES]):
        cells = [len(part), *([len(held[node])] if held else [])]
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
            lines.append(f"{_nodes(alone)} one class only")
    if max(sizes) > 10 * min(sizes):
        lines.append(f"the largest node has {max(sizes)} samples, the smallest {min(sizes)}")
    return lines


def odd_labels(counts: np.ndarray, parts: Sequence[Data], tests: Sequence[Data], names: Sequence[str]) -> list[str]:
    """Return a line for classes that are trained on and not tested, and for samples without a label.

    Parameters
    ----------
    counts : np.ndarray
        int64 (nodes, classes), targets to train on.
    parts, tests : sequence of Data
        To train on and to test on.
    names : sequence of str
        Of the classes.
    """
    lines = []
    seen = np.sum([part.class_counts(len(names)) for part in tests], axis=0)
    if untested := [names[int(place)] for place in np.flatnonzero((counts.sum(axis=0) > 0) & (seen == 0))]:
        lines.append(f"nothing to test on is {', '.join(untested[:_CLASSES])}")
    targets = sum(part.targets.numel() for part in parts)
    if unknown := targets - int(counts.sum()):
        lines.append(f"{unknown:,} of {targets:,} targets to train on have no label, and are not learned from")
    return lines


def _nodes(names: Sequence[str]) -> str:
    """Return nodes as the subject of a sentence, 20 of them at most, with its verb.

    >>> _nodes(["3"]), _nodes(["3", "5"])
    ('node 3 has', 'nodes 3, 5 have')
    """
    few = f"{', '.join(names[:_NODES])}{' and more' * (len(names) > _NODES)}"
    return f"nodes {few} have" if len(names) > 1 else f"node {few} has"
