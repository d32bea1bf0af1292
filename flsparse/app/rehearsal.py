"""The check before the start: what the nodes will run is run once, small, and thrown away.

The real strategy leads one round over the real wire with the smallest and the largest node, one training step on each,
after one evaluation: what would fail on a node in round 1 fails here, before anything has started.
"""

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.clientapp import ClientApp

from flsparse.app.settings import SettingsError
from flsparse.app.terminal import in_one_line
from flsparse.configs import AUTO
from flsparse.nets.arrays import Arrays, load_arrays, state_arrays
from flsparse.runs.folder import read_checkpoint
from flsparse.runs.target import Target
from flsparse.runtime.apps import client_app
from flsparse.runtime.inprocess import InProcessGrid
from flsparse.runtime.launcher import node_files
from flsparse.runtime.making import make_strategy, prepare
from flsparse.runtime.rate_search import RATES, train_config, with_rate
from flsparse.sparsity import prunable_names
from flsparse.tasks import Data, Task, build_task
from flsparse.wire.messages import to_numpy, to_record

# Arguments that ask for more nodes, or more work, than one step of two nodes.
_LEFT_OUT = ("min_replies", "min_available_nodes", "min_train_nodes", "min_evaluate_nodes", "qsr")


@dataclass(frozen=True)
class Rehearsed:
    """A run that can start.

    Attributes
    ----------
    task : Task
        While it is kept, the run that follows need not load the data again.
    sizes : list of int
        Training samples of each node, by partition id.
    evaluated : int
        Samples that the server, or with data of their own the nodes, will evaluate on.
    parameters : int
        Of the model.
    """

    task: Task
    sizes: list[int]
    evaluated: int
    parameters: int


def rehearse(cfg: Mapping[str, Any], tell: Callable[[str], object] = lambda _: None) -> Rehearsed:
    """Build every node's data, and run a round of one step with the smallest node and the largest.

    Random generators, the environment and the folder of the run are left as they were; no model outlives it.

    Parameters
    ----------
    cfg : Mapping[str, Any]
        The composed configuration.
    tell : Callable[[str], object]
        Is told what is done next.

    Raises
    ------
    SettingsError
        The round failed, by whatever type of error; the message is its first line, and names the node.
    Exception
        The data or the model cannot be made.
    """
    tell(f"reading {cfg['dataset']['name']}, and dividing it among the nodes")
    task = build_task(cfg)
    sizes = [len(task.train_data(node)) for node in range(task.num_nodes)]
    evaluated = task.validation_data() if cfg["evaluate"]["on"] == "validation" else task.test_data()
    if (target := cfg["evaluate"].get("target")) is not None:
        Target(target, task.kpi)
    tell(f"making the model {cfg['model']['name']}")
    parameters = sum(each.numel() for each in task.model().parameters())
    largest, smallest = int(np.argmax(sizes)), int(np.argmin(sizes))
    alike = sizes[smallest] >= int(cfg["client"]["batch_size"])  # their first batches are of one size
    nodes = _Nodes(client_app(dict(cfg)), [largest] if alike else [smallest, largest])
    tell(f"trying one training step, node {' and node '.join(map(str, nodes.partitions))}")
    try:
        with _left_as_it_was():
            _one_round(cfg, task, nodes, evaluated)
    except Exception as error:
        if (node := nodes.busy) is None:
            raise SettingsError(in_one_line(error)) from error
        few = "; a lower num_clients gives it more" if sizes[node] == 1 else ""
        raise SettingsError(
            f"node {node} fails in round 1, of {sizes[node]} training sample{'s' * (sizes[node] != 1)}: "
            f"{in_one_line(error)}{few}"
        ) from error
    tested = [task.local_test_data(node) or () for node in range(task.num_nodes)]
    return Rehearsed(task, sizes, len(evaluated) or sum(map(len, tested)), parameters)


def _one_round(cfg: Mapping[str, Any], task: Task, nodes: "_Nodes", evaluated: Data) -> None:
    """Lead one round of one step; the last round of a run of one, with all that a strategy does there."""
    arguments = {key: value for key, value in cfg["strategy"].items() if key not in _LEFT_OUT}
    arguments |= {key: 1 for key in ("steps_per_round",) if key in arguments}
    small = {
        **cfg,
        "strategy": arguments,
        "fraction_train": 1.0,
        "num_rounds": 1,
        "client": {**cfg["client"], "local_steps": 1},
    }
    strategy, model = prepare(small, task, evaluated)
    strategy.wire.clock = strategy.in_flight = None  # whatever their links: nobody is late
    strategy.wire.downlink.initial = None  # nodes are sent the whole model: the most that they will ever be
    arrays = _saved_arrays(cfg, task) or state_arrays(model)
    batch = Data(
        evaluated.all_inputs,
        evaluated.all_targets,
        evaluated.index[: int(cfg["client"]["batch_size"])],
        evaluated.prepare,
    )

    def evaluate(server_round: int, trained: ArrayRecord) -> MetricRecord | None:
        if server_round == 0 and len(evaluated):  # first, since it is the quickest to fail
            load_arrays(model, to_numpy(trained))
            task.evaluate(model, batch)
        return None

    strategy.start(
        grid=InProcessGrid(nodes, len(nodes.partitions), on_error="raise"),
        initial_arrays=to_record(arrays),
        num_rounds=1,
        train_config=train_config(with_rate(small, min(RATES)) if cfg["client"]["lr"] == AUTO else small),
        evaluate_fn=evaluate,
    )


def _saved_arrays(cfg: Mapping[str, Any], task: Task) -> Arrays | None:
    """Return the model that a resumed run goes on from, None for a new one; its strategy must take the saved state."""
    if not cfg.get("resume"):
        return None
    saved, plain = read_checkpoint(cfg["resume"]), task.model()
    strategy = make_strategy(cfg, prunable_names(plain))
    strategy.prepare(plain)
    strategy.load_state_dict(saved["strategy"])
    arrays: Arrays = saved["arrays"]
    return arrays


class _Nodes(ClientApp):
    """The device application on a few nodes of a federation: a grid's own, in its order, are the given partitions."""

    def __init__(self, app: ClientApp, partitions: list[int]) -> None:
        super().__init__()
        self.partitions = partitions
        self.busy: int | None = None  # the partition that computes, or failed to
        self._app = app

    def __call__(self, message: Message, context: Context) -> Message:
        self.busy = self.partitions[int(context.node_config["partition-id"])]
        context.node_config["partition-id"] = self.busy
        reply = self._app(message, context)
        self.busy = None
        return reply


@contextmanager
def _left_as_it_was() -> Iterator[None]:
    """Restore the random generators, and keep logs and the nodes' files out of the run's, for as long as it lasts."""
    states, disabled = (random.getstate(), np.random.get_state()), logging.root.manager.disable  # noqa: NPY002
    logging.disable(logging.CRITICAL)
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())), node_files(None):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        logging.disable(disabled)
