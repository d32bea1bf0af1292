"""What a run learns, as its server needs it: the KPI of the strategy, and the scores of having learned nothing."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from flsparse.runs.health import Guess
from flsparse.strategies import FedAvg, RoundLoop, SplitMS
from flsparse.strategies.core.gossip import Gossip
from flsparse.tasks import Data, Task
from flsparse.tasks.objectives import Classification
from flsparse.wire.messages import AGREED


def go_by(strategy: RoundLoop, task: Task, data: Data) -> None:
    """Let a strategy measure what its task does, and say to its nodes what they have agreed on.

    Raises
    ------
    ValueError
        The strategy cannot: split learning knows the cross-entropy of classes alone, and does not let nodes evaluate.
    """
    if task.agreement is not None:
        strategy.roster.says = {AGREED: json.dumps(task.agreement.plain())}
    if evaluates_on_nodes(task, data) and not getattr(strategy, "fraction_evaluate", 0.0):
        raise ValueError(
            f"strategy={strategy.name} evaluates on the server, which has no data: partition.server_root=DIR names some"
        )
    if isinstance(strategy, SplitMS) and task.objective != Classification():
        raise ValueError(
            f"objective={task.objective.name} with its settings does not go with strategy=split_ms, which knows the "
            f"plain cross-entropy of classes alone: choose another strategy"
        )
    if isinstance(strategy, Gossip):
        strategy.kpi = task.kpi
    if isinstance(strategy, FedAvg):
        strategy.meter = task.meter


def evaluates_on_nodes(task: Task, data: Data) -> bool:
    """Whether nodes evaluate the model on their own test parts, since the server has none."""
    return task.agreement is not None and not len(data)


def told(metrics: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Return a round's metrics with each confusion matrix, which a message carries flat, as rows: one a truth."""
    return {
        key: task.meter().matrix(value) if key.endswith("confusion_matrix") else value for key, value in metrics.items()
    }


def guess_of(task: Task, data: Data) -> Guess | float | None:
    """Return how a model does that knows the targets' frequencies, or their mean, and nothing else."""
    objective = task.objective
    if not len(data):  # nodes evaluate on theirs
        agreed = task.agreement.counts if task.agreement else []
        return Guess.of(np.repeat(np.arange(len(agreed)), agreed), len(agreed)) if sum(agreed) else None
    if isinstance(objective, Classification):
        labels = objective.known(data.targets).numpy()
        return Guess.of(labels, task.source.num_classes) if labels.size else None
    targets = objective.target(data.targets, data.targets)
    blind = objective.blind(targets)
    return None if blind is None else float(objective.loss(blind, targets))
