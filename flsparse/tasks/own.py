"""Data of the nodes' own: a node's task over its root, and the server's, which needs no data."""

from collections.abc import Mapping
from typing import Any

from flsparse.tasks.agreement import SETTINGS, Agreement, agree, holdings
from flsparse.tasks.task import Task, load


def is_own(config: Mapping[str, Any]) -> bool:
    """Whether each node holds data of its own, ``partition.kind=own``."""
    return bool((config.get("partition") or {}).get("kind") == "own")


def own_task(config: Mapping[str, Any], root: str, agreement: Agreement | None) -> Task:
    """Return a node's task over the data that its root holds.

    Parameters
    ----------
    config : Mapping
        As for :func:`flsparse.tasks.build_task`.
    root : str
        The node's folder.
    agreement : Agreement, optional
        What all nodes share; without, the task is there to say what it holds.

    Raises
    ------
    FileNotFoundError, ValueError
        The data cannot be read, or are not as agreed.
    """
    dataset = {**config["dataset"], "root": root}
    for key in SETTINGS:
        if agreement is not None and dataset.get(key) is None and key in agreement.settings:
            dataset[key] = agreement.settings[key]
    task = Task(config, load({**config, "dataset": dataset}, partial=True))
    if agreement is not None:
        agreement.check(task.source)
    return task


def server_task(config: Mapping[str, Any], agreement: Agreement) -> Task:
    """Return the server's task: with the test part of ``partition.server_root``, or without samples."""
    root = (config.get("partition") or {}).get("server_root")
    if root:
        task = own_task(config, str(root), agreement)
        return Task(config, task.source, agreement)
    return Task(config, agreement.source(), agreement)


def task_here(config: Mapping[str, Any]) -> Task:
    """Return the server's task of nodes whose folders, ``partition.roots``, are all on this machine.

    Raises
    ------
    FileNotFoundError, ValueError
        A node's data cannot be read, or they cannot be united; the message names the node.
    """
    roots = [str(root) for root in config["partition"].get("roots") or ()]
    if config.get("num_clients") not in (None, len(roots)):
        raise ValueError(
            f"num_clients={config['num_clients']} is not the number of folders in partition.roots, {len(roots)}: "
            "num_clients=null follows them"
        )
    held = {node: holdings(task.source) for node, task in enumerate(_each(config, roots, None))}
    agreement, left_out = agree(held, config["dataset"])
    for node, reason in left_out.items():
        raise ValueError(f"node {node}, {roots[node]}, {reason}")
    task = server_task(config, agreement)
    task.nodes = _each(config, roots, agreement)
    return task


def _each(config: Mapping[str, Any], roots: list[str], agreement: Agreement | None) -> list[Task]:
    tasks = []
    for node, root in enumerate(roots):
        try:
            tasks.append(own_task(config, root, agreement))
        except (OSError, ValueError) as error:
            raise ValueError(f"node {node}: {error}") from error
    return tasks
