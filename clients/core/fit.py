"""One local training, as a method's and its parts' hooks see it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from flsparse.clients.core.state import NodeState
from flsparse.nets.arrays import Arrays
from flsparse.wire.messages import Scalar


@dataclass
class Fit:
    """One local training, as the hooks see it.

    Attributes
    ----------
    model : nn.Module
        The model in training, the received weights loaded.
    optimizer : torch.optim.Optimizer
        The local optimizer.
    received : dict[str, np.ndarray]
        The broadcast as this node decoded it, by state-dict key.
    server_round, num_rounds : int
        This round, from 1, and the last one.
    node : int
        Partition id.
    seed : int
        The run's seed, for :func:`flsparse.rng.derive`.
    config : Mapping[str, int | float | str | bool]
        The training configuration of the message (``lr``, ``batch-size``, ...).
    state : NodeState
        State of this node across rounds.
    prunable : list[str]
        Names of the arrays that may be pruned.
    step : int
        Local steps done so far.
    metrics : dict[str, float]
        Metrics of the reply; hooks may add to them.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    received: Arrays
    server_round: int
    num_rounds: int
    node: int
    seed: int
    config: Mapping[str, Scalar]
    state: NodeState
    prunable: list[str] = field(default_factory=list)
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
