"""Measurements of a model by a node, on data that stay where they are.

``evaluate.statistics``   batch-norm statistics of the model received       (flsparse.nets.batch_norm)
``evaluate.valley``       losses along the ray from the average to a worker (flsparse.nets.valley)

A valley takes one message a worker: the first brings the average, which the node keeps, each further one a worker.
"""

from collections.abc import Callable, Mapping

import numpy as np
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from torch import Tensor, nn

from flsparse.clients.core.state import NodeState
from flsparse.nets.arrays import parameter_arrays
from flsparse.nets.batch_norm import batch_norm_statistics
from flsparse.nets.losses import summed_class_loss
from flsparse.nets.valley import Loss, line, loss_on
from flsparse.wire.messages import Entries, to_record

STATISTICS, VALLEY = "statistics", "valley"
NUM_EXAMPLES = "num-examples"  # weight of an answer
METRICS = "metrics"
RECEIVED, TRAINED = "received", "trained"  # prefixes of what a node measures of the model before and after its training
SUMS = "sums."  # prefix of sums that are exact over nodes, among the metrics
_AVERAGE = "valley-average"
MAX_VALLEY_STEPS = 200
Batches = list[tuple[Tensor, Tensor]]
Summed = Callable[[Tensor, Tensor], Tensor]


def _examples(batches: Batches) -> float:
    return float(sum(len(targets) for _, targets in batches))


def answer_statistics(model: nn.Module, batches: Batches) -> RecordDict:
    """Return the statistics, and how many examples they come from."""
    found = batch_norm_statistics(model, (inputs for inputs, _ in batches))
    return RecordDict({STATISTICS: to_record(found), METRICS: MetricRecord({NUM_EXAMPLES: _examples(batches)})})


def answer_valley(
    model: nn.Module, batches: Batches, asked: ConfigRecord, state: NodeState, summed: Summed = summed_class_loss
) -> RecordDict:
    """Return the loss at the average, or at ``steps`` points ``step`` apart on the ray to the worker received.

    Parameters
    ----------
    model : nn.Module
        With the average, or the worker, loaded.
    batches : list[tuple[Tensor, Tensor]]
        The node's sample, the same for every point.
    asked : ConfigRecord
        ``point`` ("average" or "worker"), ``step`` (above 0), ``steps`` (1 to 200), ``names`` (list[str]; empty: all).
    state : NodeState
        Keeps the average from one message to the next.
    summed : callable
        Sum of the loss over a batch, from outputs and targets; by default cross-entropy.

    Raises
    ------
    ValueError
        A worker came before the average, or ``steps`` is out of bounds.
    """
    received, told = parameter_arrays(model), Entries(asked, "a question")
    loss = loss_on(model, batches, summed)
    if told.text("point") == "average":
        state.put(_AVERAGE, received)
        losses = [loss(received)]
    else:
        average, steps = state.get(_AVERAGE), told.integer("steps")
        if average is None:
            raise ValueError("a worker to measure the valley along came before the average")
        if not 1 <= steps <= MAX_VALLEY_STEPS:
            raise ValueError(f"steps={steps} is not in 1..{MAX_VALLEY_STEPS}")
        losses = _losses_along(loss, average, received, told, steps)
    metrics = MetricRecord({"losses": losses, NUM_EXAMPLES: _examples(batches)})
    return RecordDict({METRICS: metrics})


def _losses_along(
    loss: Loss, average: Mapping[str, np.ndarray], worker: Mapping[str, np.ndarray], told: Entries, steps: int
) -> list[float]:
    ray = line(average, worker, [str(name) for name in told.values("names")] or None)
    if ray is None:
        return []
    return [loss(ray.point(count * told.number("step"))) for count in range(1, steps + 1)]
