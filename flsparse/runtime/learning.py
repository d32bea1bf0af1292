"""What a run learns, as its server needs it: the KPI of the strategy, and the scores of having learned nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from flsparse.configs import lookup
from flsparse.nets.weights import load_weights, weights_file
from flsparse.runs.health import Guess
from flsparse.strategies import FedAvg, RoundLoop, SplitMS
from flsparse.strategies.core.frozen import FrozenBase
from flsparse.strategies.core.gossip import Gossip
from flsparse.strategies.parts.control import ServerControl
from flsparse.strategies.pooled import Pooled
from flsparse.tasks import Data, Task
from flsparse.tasks.objectives import Classification
from flsparse.wire.messages import AGREED, BY_NODE


def start_of(cfg: Mapping[str, Any], task: Task) -> nn.Module:
    """Return the plain model that a run starts from: a fresh one, or with the arrays of a file in it.

    Parameters
    ----------
    cfg : Mapping[str, Any]
        ``model.weights`` is a file of weights, ``init`` the folder of an earlier run; ``model.fresh`` are patterns of
        arrays that start anew. A resumed run has its own weights.
    task : Task

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        Its arrays are not the model's, or both are given, or ``init`` with frozen arrays.
    """
    model, settings = task.model(), cfg["model"]
    file, earlier = settings.get("weights"), cfg.get("init")
    if task.frozen and earlier:
        raise ValueError(
            f"init={earlier} does not go with frozen arrays, which nodes read by themselves where they can: use "
            f"model.weights={earlier}/model.safetensors"
        )
    if task.frozen and file:
        weights_file(file)  # on a node it may be missing, here not
    if task.frozen or cfg.get("resume"):
        return model
    if file and earlier:
        raise ValueError(f"model.weights={file} and init={earlier} are both to start from: give one of them")
    if earlier and not (Path(earlier) / "model.safetensors").is_file():
        raise FileNotFoundError(f"init={earlier}: there is no model.safetensors, which a run leaves when it ends")
    if source := file or (earlier and Path(earlier) / "model.safetensors"):
        load_weights(model, source, settings.get("fresh") or (), task.local)
    return model


def go_by(cfg: Mapping[str, Any], strategy: RoundLoop, task: Task, data: Data) -> None:
    """Let a strategy measure what its task does, and say to its nodes what they have agreed on.

    Raises
    ------
    ValueError
        It cannot do so: split learning knows the cross-entropy of classes alone, without augmentation, and does not let
        nodes evaluate; control variates and the top of a split step as plain SGD does; nodes have arrays of their own.
    """
    evaluation = cfg.get("evaluate") or {}
    strategy.by_node = strategy.by_node or bool(evaluation.get("by_node"))
    if task.agreement is not None:
        strategy.roster.says[AGREED] = json.dumps(task.agreement.plain())
    if strategy.by_node:
        strategy.roster.says[BY_NODE] = True
    if task.frozen:
        strategy.roster.base = FrozenBase(task.frozen_arrays)
    if task.local and isinstance(strategy, SplitMS | Gossip):
        raise ValueError(
            f"local={lookup(cfg, 'model.local')} does not go with strategy={strategy.name}, whose server looks at the "
            "nodes' whole models: choose an averaging strategy, or leave it out"
        )
    if task.local and isinstance(strategy, Pooled):
        raise ValueError(
            f"local={lookup(cfg, 'model.local')} does not go with strategy=pooled, where one node trains for all: "
            "leave it out"
        )
    if task.local and not getattr(strategy, "fraction_evaluate", 0.0):
        raise ValueError(
            "strategy.fraction_evaluate=0 does not go with local=, whose arrays nodes alone can evaluate: leave it out"
        )
    if strategy.central and evaluates_on_nodes(task, data) and not getattr(strategy, "fraction_evaluate", 0.0):
        raise ValueError(
            f"strategy={strategy.name} evaluates on the server, which has no data: partition.server_root=DIR names some"
        )
    controlled = any(isinstance(part, ServerControl) for part in strategy.parts)
    if cfg["client"].get("optimizer") == "adamw" and (isinstance(strategy, SplitMS) or controlled):
        what = "control variates" if controlled else "strategy=split_ms"
        raise ValueError(f"client=adamw does not go with {what}, whose other side steps as SGD does: use client=sgd")
    for key in ("augment", "model.freeze", "model.lora"):
        if isinstance(strategy, SplitMS) and (value := lookup(cfg, key)):
            raise ValueError(f"{key}={value} does not go with strategy=split_ms: leave it out")
    if isinstance(strategy, SplitMS) and strategy.by_node:
        raise ValueError(
            "evaluate.by_node=true does not go with strategy=split_ms, whose nodes never have the whole model to "
            "measure: leave it out"
        )
    if isinstance(strategy, SplitMS) and task.objective != Classification():
        raise ValueError(
            f"objective={task.objective.name} with its settings does not go with strategy=split_ms, which knows the "
            f"plain cross-entropy of classes alone: choose another strategy"
        )
    if isinstance(strategy, Gossip):
        strategy.kpi = task.kpi
    if isinstance(strategy, FedAvg):
        strategy.meter, strategy.kpi = task.meter, task.kpi
        strategy.evaluate_every = int(evaluation.get("every") or 1)


def evaluates_on_nodes(task: Task, data: Data) -> bool:
    """Whether nodes evaluate the model on their own test parts: the server has none, or only a part of each model."""
    return bool(task.local) or (task.agreement is not None and not len(data))


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
