"""Partitions of a data set among nodes.

All functions return one sorted int64 index array per node; together they are disjoint and no node is empty.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from flsparse import rng

Partition = list[np.ndarray]
KINDS = ("dirichlet_equal", "dirichlet", "iid", "natural")


def make_partition(
    config: Mapping[str, Any],
    labels: np.ndarray | None,
    groups: np.ndarray | None,
    samples: int,
    nodes: int | None,
    seed: int,
) -> Partition:
    """Split samples among nodes as configured.

    Parameters
    ----------
    config : mapping
        ``kind``, one of :data:`KINDS`, and ``alpha`` (above 0; ``inf`` is IID) for the Dirichlet kinds.
    labels : np.ndarray, optional
        int64 (samples,), each sample's class; None where there is none (text).
    groups : np.ndarray, optional
        int64 (samples,), each sample's natural node; None where there is none.
    samples : int
        Number of samples.
    nodes : int, optional
        Number of nodes; for ``natural`` at most the number of groups, and None takes them all.
    seed : int
        The run's seed.

    Returns
    -------
    list of np.ndarray

    Raises
    ------
    ValueError
        When the configuration cannot be met.
    """
    kind = config.get("kind", "dirichlet_equal")
    if kind not in KINDS:
        raise ValueError(f"partition.kind={kind!r} is none of {', '.join(KINDS)}")
    stream = rng.stream(seed, 0, -1, "partition")
    if kind == "natural":
        if groups is None:
            raise ValueError("partition.kind=natural needs a data set with natural nodes; use dirichlet_equal or iid")
        return natural(groups, nodes, stream)
    if nodes is None or nodes < 1:
        raise ValueError(f"num_clients={nodes} must be at least 1")
    if nodes > samples:
        raise ValueError(f"num_clients={nodes} is more than the {samples} training samples; lower num_clients")
    if kind == "iid":
        return iid(samples, nodes, stream)
    alpha = float(config.get("alpha", 1.0))
    if not alpha > 0:
        raise ValueError(f"partition.alpha={alpha} must be above 0 (inf is IID)")
    if np.isinf(alpha):
        return iid(samples, nodes, stream)
    if labels is None:
        raise ValueError(f"partition.kind={kind} needs one label a sample; use iid or natural for text")
    if kind == "dirichlet_equal":
        return dirichlet_equal(labels, nodes, alpha, stream)
    return dirichlet(labels, nodes, alpha, stream)


def iid(samples: int, nodes: int, stream: np.random.Generator) -> Partition:
    """Deal shuffled samples out evenly; sizes differ by one at most."""
    return [np.sort(part) for part in np.array_split(stream.permutation(samples), nodes)]


def natural(groups: np.ndarray, nodes: int | None, stream: np.random.Generator) -> Partition:
    """Make one node of each group; of more groups than nodes, pick at random."""
    order = np.argsort(groups, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    if nodes is None:
        return parts
    if not 1 <= nodes <= len(parts):
        raise ValueError(f"num_clients={nodes} must be from 1 to the {len(parts)} natural nodes of this data set")
    return [parts[i] for i in np.sort(stream.choice(len(parts), nodes, replace=False))]


def likewise(parts: Partition, labels: np.ndarray, others: np.ndarray, stream: np.random.Generator) -> Partition:
    """Divide other samples as a partition divides the first: each class in proportion to what each part has of it.

    Parameters
    ----------
    parts : list of np.ndarray
        int64 positions among ``labels``.
    labels, others : np.ndarray
        int64 (samples,), classes; of the samples that are divided, and of those to divide. Classes that no part has
        stay undivided.
    stream : np.random.Generator

    Returns
    -------
    list of np.ndarray
        Disjoint; the shares of small parts may be empty.

    Examples
    --------
    >>> parts, labels, others = [np.array([0, 1]), np.array([2, 3])], np.array([0, 0, 0, 1]), np.repeat([0, 1], 30)
    >>> shares = likewise(parts, labels, others, rng.stream(0, 0, -1, "shares"))
    >>> [np.bincount(others[share]).tolist() for share in shares]
    [[20], [10, 30]]
    """
    shares: list[list[np.ndarray]] = [[] for _ in parts]
    for label in np.unique(others):
        counts = np.array([np.count_nonzero(labels[part] == label) for part in parts])
        if counts.any():
            dealt = stream.permutation(np.flatnonzero(others == label))
            ends = np.rint(np.cumsum(counts) / counts.sum() * len(dealt)).astype(np.int64)
            for share, piece in zip(shares, np.split(dealt, ends[:-1]), strict=True):
                share.append(piece)
    none = np.zeros(0, np.int64)
    return [np.sort(np.concatenate([none, *share])) for share in shares]


def dirichlet_equal(labels: np.ndarray, nodes: int, alpha: float, stream: np.random.Generator) -> Partition:
    """Give each node a Dirichlet label mix and (but for one sample) the same number of samples.

    Every node draws its mix ``p ~ Dir(alpha)`` and orders that many samples of each class. A class ordered more often
    than it has samples is shared out by lot among the nodes that ordered it and closed; the orders left open are drawn
    again from the classes that remain. It takes at most as many turns as classes, uses every sample, and no node comes
    first.

    Parameters
    ----------
    labels : np.ndarray
        int64 (samples,).
    nodes : int
        At most the number of samples.
    alpha : float
        Concentration per class, above 0. Small is skewed.
    stream : np.random.Generator

    Returns
    -------
    list of np.ndarray
    """
    classes, inverse = np.unique(labels, return_inverse=True)
    supply: np.ndarray = np.bincount(inverse, minlength=len(classes))
    wanted: np.ndarray = np.full(nodes, len(labels) // nodes)
    wanted[stream.permutation(nodes)[: len(labels) % nodes]] += 1
    mixes = stream.dirichlet(np.full(len(classes), alpha), size=nodes)
    counts = np.zeros((nodes, len(classes)), dtype=np.int64)
    while wanted.any():
        # The tiny share of every open class keeps a mix whose classes are all closed from being 0/0.
        chances = np.where(supply > 0, mixes + 1e-9 * supply / supply.sum(), 0.0)
        orders = stream.multinomial(wanted, chances / chances.sum(axis=1, keepdims=True))
        for column in np.flatnonzero(orders.sum(axis=0) > supply):
            orders[:, column] = stream.multivariate_hypergeometric(
                orders[:, column], supply[column], method="marginals"
            )
        counts += orders
        wanted = wanted - orders.sum(axis=1)
        supply = supply - orders.sum(axis=0)
    parts: list[list[np.ndarray]] = [[] for _ in range(nodes)]
    for label in range(len(classes)):
        shuffled = stream.permutation(np.flatnonzero(inverse == label))
        for part, piece in zip(parts, np.split(shuffled, np.cumsum(counts[:-1, label])), strict=True):
            part.append(piece)
    return [np.sort(np.concatenate(part)) for part in parts]


def dirichlet(labels: np.ndarray, nodes: int, alpha: float, stream: np.random.Generator) -> Partition:
    """Split every class among the nodes by Dirichlet shares, with flwr-datasets' partitioner; sizes differ freely.

    Raises
    ------
    ModuleNotFoundError
        When flwr-datasets is not installed.
    ValueError
        When no draw leaves every node a sample.
    """
    try:
        from datasets import Dataset
        from flwr_datasets.partitioner import DirichletPartitioner
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "partition.kind=dirichlet needs flwr-datasets (pip install flwr-datasets); dirichlet_equal and iid do not"
        ) from error
    partitioner = DirichletPartitioner(
        num_partitions=nodes,
        partition_by="label",
        alpha=alpha,
        min_partition_size=1,
        seed=int(stream.integers(2**32)),
    )
    partitioner.dataset = Dataset.from_dict({"label": labels, "index": np.arange(len(labels))})
    try:
        with warnings.catch_warnings():  # it warns, at length, about each draw that left a node empty and was repeated
            warnings.simplefilter("ignore")
            _ = partitioner.num_partitions
        return [np.sort(np.asarray(partitioner.load_partition(node)["index"])) for node in range(nodes)]
    except ValueError as error:
        raise ValueError(
            f"partition.kind=dirichlet found no split of {len(labels)} samples that gives each of {nodes} nodes one at "
            f"alpha={alpha}: lower num_clients, raise partition.alpha or use partition.kind=dirichlet_equal"
        ) from error
