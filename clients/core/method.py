"""The device's seam: a method's answers to messages, and its hooks around local training.

Every message comes to :meth:`LocalMethod.answer`, with its :class:`Kind`. A training loop calls, in this order::

    model = method.prepare(model)            # once, before the weights are loaded
    method.before_fit(fit)
    for each batch:
        loss.backward();  method.after_backward(fit)
        optimizer.step(); method.after_step(fit)
    arrays = method.after_fit(fit)           # arrays of the update

Our own loop is ``flsparse.tasks.training``; a user's own loop can call the same five hooks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar, Protocol

import torch
from flwr.app import ConfigRecord, Context, MessageType, MetricRecord, RecordDict
from torch import nn

from flsparse.clients.core.compress import Limits
from flsparse.clients.core.fit import Fit
from flsparse.clients.core.frozen import frozen_digest, load_frozen
from flsparse.clients.core.part import Part, asked_parts
from flsparse.clients.core.state import NodeState
from flsparse.clients.parts import questions
from flsparse.configs import build
from flsparse.nets.arrays import Arrays, load_arrays, state_arrays
from flsparse.nets.hidden import hidden_arrays, load_hidden
from flsparse.nets.losses import summed_class_loss
from flsparse.schedules import batches_of_a_pass
from flsparse.wire import bundle
from flsparse.wire.messages import (
    BY_NODE,
    CONTROL,
    FROZEN,
    Blueprint,
    Entries,
    Scalar,
    arrayrecord_key,
    config_of,
    record_of,
    to_numpy,
    to_record,
)

_PERSONAL = "personal"  # name of the arrays in a node's state
_NO_SCORES = (questions.NUM_EXAMPLES, "prediction-share")  # of an evaluation


class Kind(StrEnum):
    """A message's type on the wire: the question that a method answers."""

    TRAIN = MessageType.TRAIN
    EVALUATE = MessageType.EVALUATE
    STATISTICS = f"{MessageType.EVALUATE}.{questions.STATISTICS}"
    VALLEY = f"{MessageType.EVALUATE}.{questions.VALLEY}"
    SPLIT = bundle.MESSAGE_TYPE


@dataclass(kw_only=True)
class LocalMethod:
    """A method's half on the device. Subclasses are data classes; their fields are the hyper-parameters."""

    name: ClassVar[str]

    def answer(self, kind: Kind, visit: "Visit") -> RecordDict:
        """Answer one message; the owner's limits hold already.

        By default TRAIN trains the received weights and returns the update's arrays, EVALUATE measures them on the
        node's test part, or without one on its training data, STATISTICS and VALLEY are
        :mod:`flsparse.clients.parts.questions`. A method with messages of its own overrides this, and answers TRAIN,
        EVALUATE or a kind of its own.

        Parameters
        ----------
        kind : Kind
            The message's type.
        visit : Visit
            The message and the node.

        Returns
        -------
        RecordDict
            The reply's content. :class:`flsparse.clients.CompressMod` codes the arrays of a training reply.

        Raises
        ------
        ValueError
            The method does not answer this kind, or the message does not fit the model.
        """
        match kind:
            case Kind.TRAIN:
                return _trained(self, visit)
            case Kind.EVALUATE:
                model, _ = _loaded(self, visit)
                return evaluated(visit, model)
            case Kind.STATISTICS:
                model, _ = _loaded(self, visit)
                return questions.answer_statistics(model, visit.sample)
            case Kind.VALLEY:
                model, _ = _loaded(self, visit)
                summed = getattr(visit.task, "summed_loss", summed_class_loss)
                return questions.answer_valley(model, visit.sample, config_of(visit.content), visit.state, summed)
        raise unanswered(self, kind)

    def passes(self, kind: Kind, visit: "Visit") -> float:
        """Return the passes over the node's data that a message comes to, at least 0; 0 where it does not train."""
        if kind is not Kind.TRAIN:
            return 0
        if (steps := int(visit.config.get("local-steps", 0))) > 0:
            return steps / batches_of_a_pass(len(self.data(visit)), max(1, int(visit.config.get("batch-size", 1))))
        return int(visit.config.get("local-epochs", 1))

    def data(self, visit: "Visit") -> Any:
        """Return the data to train on."""
        return visit.data

    def fit(self, fit: Fit, visit: "Visit") -> Arrays:
        """Train with the hooks of the method and of the message's parts; return the arrays of the update.

        Where the message asks for it, ``fit.metrics`` tells the loss and metrics of the model before and after.
        """
        before = visit.measured(fit.model, questions.RECEIVED)
        arrays = visit.task.fit(fit, WithParts(self, asked_parts(visit.asked)), self.data(visit))
        fit.metrics |= before | visit.measured(fit.model, questions.TRAINED)
        return arrays

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


class Hooks(Protocol):
    """Hooks around the steps of a fit, as a training loop calls them."""

    def before_fit(self, fit: Fit) -> None: ...
    def after_backward(self, fit: Fit) -> None: ...
    def after_step(self, fit: Fit) -> None: ...
    def after_fit(self, fit: Fit) -> Arrays: ...


@dataclass(frozen=True)
class WithParts:
    """A method's hooks, and its parts' hooks after them."""

    method: LocalMethod
    parts: list[Part]

    def before_fit(self, fit: Fit) -> None:
        self.method.before_fit(fit)
        for part in self.parts:
            part.before_fit(fit)

    def after_backward(self, fit: Fit) -> None:
        self.method.after_backward(fit)
        for part in self.parts:
            part.after_backward(fit)

    def after_step(self, fit: Fit) -> None:
        self.method.after_step(fit)
        for part in self.parts:
            part.after_step(fit)

    def after_fit(self, fit: Fit) -> Arrays:
        arrays = self.method.after_fit(fit)
        for part in self.parts:
            arrays = part.after_fit(fit, arrays)
        return arrays


class TaskLike(Protocol):
    """Interface of a task to the device application; ``flsparse.tasks.Task`` is one."""

    def model(self) -> nn.Module: ...
    def train_data(self, node: int) -> Any: ...
    def optimizer(self, model: nn.Module, config: Mapping[str, Scalar]) -> torch.optim.Optimizer: ...
    def fit(self, fit: Fit, method: Hooks, data: Any) -> Arrays: ...
    def evaluate(self, model: nn.Module, data: Any) -> dict[str, Any]: ...
    def sample(self, data: Any, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]: ...


@dataclass(frozen=True)
class Visit:
    """One message at a node, for the method that it asks for.

    Attributes
    ----------
    content : RecordDict
        The message's, decoded where it was packed.
    task : TaskLike
        Model, data and training loop of the node.
    node : int
        Partition id.
    state : NodeState
        Arrays and values that the node keeps from message to message.
    limits : Limits
        The owner's; payload bytes and epochs have been checked.
    """

    content: RecordDict
    task: TaskLike
    node: int
    state: NodeState
    limits: Limits

    @property
    def asked(self) -> ConfigRecord:
        """The ``flsparse`` record of the message."""
        return record_of(self.content)

    @property
    def config(self) -> dict[str, Scalar]:
        """The training configuration (``lr``, ``batch-size``, ``server-round``, ...): its plain values."""
        return {key: value for key, value in config_of(self.content).items() if isinstance(value, int | float | str)}

    @property
    def data(self) -> Any:
        """The node's training data, as its task holds them."""
        return self.task.train_data(self.node)

    @property
    def test_data(self) -> Any:
        """The node's test part: of its own data, or where the message asks for that, its share of all; else None."""
        return test_data_of(self.task, self.node, by_node=bool(self.asked.get(BY_NODE)))

    def measured(self, model: nn.Module, which: str) -> dict[str, float]:
        """Return a model's loss and metrics on the test part, ``which-loss`` and so on; none where nobody asks."""
        held = self.test_data if self.asked.get(BY_NODE) else None
        if held is None or not len(held):
            return {}
        found = self.task.evaluate(model, held).items()
        return {f"{which}-{key}": value for key, value in found if isinstance(value, float) and key not in _NO_SCORES}

    @property
    def sample(self) -> questions.Batches:
        """The sample of the node's data that the message asks to measure on."""
        return self.task.sample(self.data, int(self.config.get("samples", 0)))

    def model(self) -> nn.Module:
        """Return the task's fresh model with what this node alone has: frozen arrays that it was sent, its own ones."""
        model = self.task.model()
        if getattr(self.task, "frozen", ()):
            load_frozen(model, self.state)
        if local_names(self.task):
            load_hidden(model, self.state.get(_PERSONAL) or {})
        return model

    def fit(self, model: nn.Module, received: Arrays, server_round: int, prunable: list[str]) -> Fit:
        """Return a local training of a model with the weights loaded, its optimizer new.

        Raises
        ------
        ValueError
            The message names other frozen arrays than the model has.
        """
        config, own = self.config, getattr(self.task, "frozen_digest", "")
        if (asked := config.get(FROZEN)) is not None and asked != (own := frozen_digest(own, self.state)):
            raise ValueError(
                f"the frozen arrays of this node are others than the server's ({own or 'none'}, not {asked}): give "
                "both the same model.weights file, or start the node anew: it is then sent them"
            )
        return Fit(
            model=model,
            optimizer=self.task.optimizer(model, config),
            received=received,
            server_round=server_round,
            num_rounds=int(config.get("num-rounds", server_round)),  # Flower's own strategies do not say
            node=self.node,
            seed=Entries(self.asked, "a message").integer("seed"),
            config=config,
            state=self.state,
            prunable=prunable,
        )


def test_data_of(task: TaskLike, node: int, *, by_node: bool) -> Any:
    """Return the test part of a node's own data, with ``by_node`` else its share of all; None where there is none."""
    for name in ("local_test_data", "test_share")[: 1 + by_node]:
        find = getattr(task, name, None)
        if find is not None and (found := find(node)) is not None:
            return found
    return None


def evaluated(visit: Visit, model: nn.Module) -> RecordDict:
    """Return a model's metrics on the node's test part; without one, on its training data, and named so."""
    if (held := visit.test_data) is not None:
        scores = visit.task.evaluate(model, held) if len(held) else {questions.NUM_EXAMPLES: 0.0}
    else:
        scores = {
            key if key in _NO_SCORES or key.startswith(questions.SUMS) else f"train-{key}": value
            for key, value in visit.task.evaluate(model, visit.data).items()
        }
    return RecordDict({questions.METRICS: MetricRecord(dict(scores))})


def local_names(task: TaskLike) -> list[str]:
    """Return the arrays of a task's model that stay on the node (:mod:`flsparse.nets.personal`)."""
    return list(getattr(task, "local", ()))


def unanswered(method: LocalMethod, kind: Kind) -> ValueError:
    """Return the error of a kind that a method does not answer."""
    return ValueError(f"method {method.name!r} does not answer {kind!s}: send that to a method that does")


def _loaded(method: LocalMethod, visit: Visit) -> tuple[nn.Module, Arrays]:
    """Return the node's model, prepared for the method, with the received arrays loaded, and these."""
    model = method.prepare(visit.model())
    received = to_numpy(visit.content.array_records[arrayrecord_key(visit.content)])
    load_arrays(model, {name: array for name, array in received.items() if not name.startswith(CONTROL)})
    return model, received


def _trained(method: LocalMethod, visit: Visit) -> RecordDict:
    """Train the received weights; return the arrays to send, under the record name they came by, and metrics."""
    model, received = _loaded(method, visit)
    blueprint = visit.state.values.get("blueprint")
    prunable = Blueprint.from_bytes(blueprint).prunable if isinstance(blueprint, bytes) else []
    fit = visit.fit(model, received, int(visit.config["server-round"]), prunable)
    arrays = method.fit(fit, visit)
    if names := local_names(visit.task):
        visit.state.put(_PERSONAL, hidden_arrays(model, names))
    metrics = MetricRecord(dict(fit.metrics))
    return RecordDict({arrayrecord_key(visit.content): to_record(arrays), questions.METRICS: metrics})


METHODS: dict[str, type[LocalMethod]] = {}


def register(method: type[LocalMethod]) -> type[LocalMethod]:
    """Add a method to the names that a message may ask for (class decorator)."""
    METHODS[method.name] = method
    return method


def make_method(name: str, hyperparameters: Mapping[str, Any]) -> LocalMethod:
    """Build a registered method from a message's values.

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


def asked_method(asked: ConfigRecord, unnamed: str = "fedavg") -> LocalMethod:
    """Build the method that a message's ``flsparse`` record asks for; ``unnamed`` where it names none."""
    prefix = "method."
    hyperparameters = {key.removeprefix(prefix): v for key, v in asked.items() if key.startswith(prefix)}
    return make_method(str(asked.get("method", unnamed)), hyperparameters)
