"""The device's seam: what a method does around local training.

A training loop calls, in this order::

    model = method.prepare(model)            # once, before the weights are loaded
    method.before_fit(fit)
    for each batch:
        loss.backward();  method.after_backward(fit)
        optimizer.step(); method.after_step(fit)
    arrays = method.after_fit(fit)           # what is sent

Our own loop is ``flsparse.tasks.training``; a user's own loop can call the same five hooks.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol

import torch
from flwr.app import ConfigRecord, Context, RecordDict
from torch import nn

from flsparse.clients.core.compress import Limits
from flsparse.clients.core.state import NodeState
from flsparse.configs import build
from flsparse.nets.arrays import Arrays, state_arrays

Scalar = int | float | str | bool


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
        What this node keeps from round to round.
    prunable : list[str]
        Names of the arrays that may be pruned.
    step : int
        Local steps done so far.
    metrics : dict[str, float]
        What the node reports; hooks may add to it.
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


@dataclass(kw_only=True)
class LocalMethod:
    """What a method does on the device. Subclasses are data classes whose fields are the hyper-parameters."""

    name: ClassVar[str]

    def prepare(self, model: nn.Module) -> nn.Module:
        """Turn a plain model into the one this method trains; the server does the same with its own copy."""
        return model

    def before_fit(self, fit: Fit) -> None:
        """Run before the first step, the received weights loaded."""

    def after_backward(self, fit: Fit) -> None:
        """Run after the gradients are there, before the optimizer's step."""

    def after_step(self, fit: Fit) -> None:
        """Run after the optimizer's step."""

    def after_fit(self, fit: Fit) -> Arrays:
        """Return the arrays to send, by state-dict key, in state-dict order."""
        return state_arrays(fit.model)

    def hyperparameters(self) -> dict[str, Scalar]:
        """Return the fields as plain values, as a message carries them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class TaskLike(Protocol):
    """What the device application needs of a task; ``flsparse.tasks.Task`` is one."""

    def model(self) -> nn.Module: ...
    def train_data(self, node: int) -> Any: ...
    def optimizer(self, model: nn.Module, config: Mapping[str, Scalar]) -> torch.optim.Optimizer: ...
    def fit(self, fit: Fit, method: LocalMethod, data: Any) -> Arrays: ...
    def evaluate(self, model: nn.Module, data: Any) -> dict[str, float]: ...
    def sample(self, data: Any, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]: ...


@dataclass(frozen=True)
class Visit:
    """One message to a method that reads and answers messages itself.

    Attributes
    ----------
    content : RecordDict
        Of the message.
    method : ConversingMethod
        What the message asks for.
    asked : ConfigRecord
        The ``flsparse`` record of the message.
    config : Mapping[str, int | float | str | bool]
        The training configuration.
    task : TaskLike
        Model, data and training loop of the node.
    node : int
        Partition id.
    state : NodeState
        What this node keeps.
    limits : Limits
        The owner's; payload and epochs have been checked.
    """

    content: RecordDict
    method: "ConversingMethod"
    asked: ConfigRecord
    config: Mapping[str, Scalar]
    task: TaskLike
    node: int
    state: NodeState
    limits: Limits


@dataclass(kw_only=True)
class ConversingMethod(LocalMethod):
    """A method whose messages are no broadcast and no update: it reads and answers them itself.

    Its payloads travel as one array of type :data:`flsparse.wire.messages.OPAQUE`, counted, but opened by nobody
    else.
    """

    @abstractmethod
    def on_train(self, visit: Visit) -> RecordDict:
        """Answer a training message."""

    @abstractmethod
    def on_evaluate(self, visit: Visit) -> RecordDict:
        """Answer an evaluation message."""


METHODS: dict[str, type[LocalMethod]] = {}


def register(method: type[LocalMethod]) -> type[LocalMethod]:
    """Add a method to the names that a message may ask for (class decorator)."""
    METHODS[method.name] = method
    return method


def make_method(name: str, hyperparameters: Mapping[str, Any]) -> LocalMethod:
    """Build a registered method from what a message says.

    Parameters
    ----------
    name : str
        A key of ``METHODS``; nothing else is ever instantiated.
    hyperparameters : Mapping[str, Any]
        Plain values by field name.

    Raises
    ------
    ValueError
        The name is not registered, a key is not a field of the method, or a value has the wrong type or range.
    """
    return build(METHODS, name, hyperparameters, what="method")


def partition_id(context: Context) -> int:
    """Return the node's partition id from its ``node_config``.

    Raises
    ------
    ValueError
        The node has none.
    """
    if "partition-id" not in context.node_config:
        raise ValueError('this node has no partition id: start it with --node-config "partition-id=0 num-partitions=2"')
    return int(context.node_config["partition-id"])


def written(method: LocalMethod) -> dict[str, Scalar]:
    """Return the entries of a message's ``flsparse`` record that ask for a method."""
    return {"method": method.name, **{f"method.{key}": value for key, value in method.hyperparameters().items()}}


def asked_method(asked: ConfigRecord) -> LocalMethod:
    """Build the method that a message's ``flsparse`` record asks for."""
    prefix = "method."
    hyperparameters = {key.removeprefix(prefix): v for key, v in asked.items() if key.startswith(prefix)}
    return make_method(str(asked.get("method", "fedavg")), hyperparameters)
