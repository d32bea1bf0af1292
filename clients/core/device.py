"""The device application: one ClientApp that carries every method.

The server's message names the method and brings its hyper-parameters; the device knows the data and the model, keeps
its owner's limits, and answers the hello.
"""

from collections.abc import Callable, Mapping

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from flsparse.clients.core.compress import CompressMod, Limits
from flsparse.clients.core.method import (
    METHODS,
    ConversingMethod,
    Fit,
    LocalMethod,
    Scalar,
    TaskLike,
    Visit,
    asked_method,
    partition_id,
)
from flsparse.clients.core.split_device import split_function
from flsparse.clients.core.state import NodeState
from flsparse.clients.parts.questions import METRICS, STATISTICS, VALLEY, answer_statistics, answer_valley
from flsparse.codec.wire import VERSION
from flsparse.nets.arrays import Arrays, load_arrays
from flsparse.schedules import batches_of_a_pass
from flsparse.wire.messages import (
    CONTROL,
    RECORD,
    Blueprint,
    arrayrecord_key,
    config_of,
    opaque_payload,
    record_of,
    to_numpy,
    to_record,
)


def device_app(load_task: Callable[[Context], TaskLike], limits: Limits | None = None) -> ClientApp:
    """Return the ClientApp that trains, evaluates and answers the hello.

    A device has training data alone: asked to evaluate, it reports ``train-loss`` and ``train-accuracy`` of the model
    it received. The server measures test accuracy, or an app of one's own does.

    Parameters
    ----------
    load_task : Callable[[Context], TaskLike]
        Gives the node's task; called once a message, so it should cache.
    limits : Limits, optional
        Bounds set by the device's owner, which no server can exceed.
    """
    limits = limits or Limits()
    app = ClientApp(mods=[CompressMod(limits=limits)])

    def conversation(message: Message, context: Context, task: TaskLike) -> Visit | None:
        asked = record_of(message.content)
        method = asked_method(asked)
        if not isinstance(method, ConversingMethod):
            return None
        limits.check("max_payload_bytes", len(opaque_payload(message.content) or b""))
        config = _plain(config_of(message.content))
        state = NodeState(context, limits.max_state_bytes)
        return Visit(message.content, method, asked, config, task, partition_id(context), state, limits)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        task, node = load_task(context), partition_id(context)
        config = _plain(config_of(message.content))
        data = task.train_data(node)
        limits.check("max_local_epochs", _epochs(config, len(data)))
        if (visit := conversation(message, context, task)) is not None:
            return Message(visit.method.on_train(visit), reply_to=message)
        method, model, received = _prepared(message, task)
        state = NodeState(context, limits.max_state_bytes)
        asked = record_of(message.content)
        fit = Fit(
            model=model,
            optimizer=task.optimizer(model, config),
            received=received,
            server_round=int(config["server-round"]),
            num_rounds=int(config.get("num-rounds", config["server-round"])),  # Flower's own strategies do not say
            node=node,
            seed=int(asked["seed"]),  # type: ignore[arg-type]
            config=config,
            state=state,
            prunable=_prunable(state),
        )
        arrays = task.fit(fit, method, data)
        metrics = MetricRecord(dict(fit.metrics))
        return Message(
            RecordDict({arrayrecord_key(message.content): to_record(arrays), METRICS: metrics}), reply_to=message
        )

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        task = load_task(context)
        if (visit := conversation(message, context, task)) is not None:
            return Message(visit.method.on_evaluate(visit), reply_to=message)
        _, model, _ = _prepared(message, task)
        found = task.evaluate(model, task.train_data(partition_id(context)))
        measured = {f"train-{key}": found.pop(key) for key in ("loss", "accuracy")}  # a device has no other data
        return Message(RecordDict({METRICS: MetricRecord({**measured, **found})}), reply_to=message)

    @app.evaluate(STATISTICS)
    def statistics(message: Message, context: Context) -> Message:
        task = load_task(context)
        _, model, _ = _prepared(message, task)
        return Message(answer_statistics(model, _sample(message, context, task)), reply_to=message)

    @app.evaluate(VALLEY)
    def valley(message: Message, context: Context) -> Message:
        task, state = load_task(context), NodeState(context, limits.max_state_bytes)
        _, model, _ = _prepared(message, task)
        asked = config_of(message.content)
        return Message(answer_valley(model, _sample(message, context, task), asked, state), reply_to=message)

    @app.query()
    def hello(message: Message, context: Context) -> Message:
        record = ConfigRecord(
            {
                "partition-id": partition_id(context),
                "num-examples": len(load_task(context).train_data(partition_id(context))),
                "methods": sorted(METHODS),
                "codec-version": VERSION,
                "held": NodeState(context, limits.max_state_bytes).held,
            }
        )
        return Message(RecordDict({RECORD: record}), reply_to=message)

    app.query("split")(split_function(load_task, partition_id, limits))
    return app


def _epochs(config: Mapping[str, Scalar], examples: int) -> float:
    """Return the passes over the local data that a message asks for, in epochs or in steps, read as training does."""
    if (steps := int(config.get("local-steps", 0))) > 0:
        return steps / batches_of_a_pass(examples, max(1, int(config.get("batch-size", 1))))
    return int(config.get("local-epochs", 1))


def _sample(message: Message, context: Context, task: TaskLike) -> list[tuple[Tensor, Tensor]]:
    """Return the sample of the node's data that a message asks to measure on."""
    samples = config_of(message.content).get("samples", 0)
    return task.sample(task.train_data(partition_id(context)), int(samples))  # type: ignore[arg-type]


def _prepared(message: Message, task: TaskLike) -> tuple[LocalMethod, nn.Module, Arrays]:
    """Return the method the message asks for and the task's model, prepared for it, with the received arrays."""
    method = asked_method(record_of(message.content))
    model = method.prepare(task.model())
    received = to_numpy(message.content.array_records[arrayrecord_key(message.content)])
    load_arrays(model, {name: array for name, array in received.items() if not name.startswith(CONTROL)})
    return method, model, received


def _prunable(state: NodeState) -> list[str]:
    blueprint = state.values.get("blueprint")
    return Blueprint.from_bytes(blueprint).prunable if isinstance(blueprint, bytes) else []


def _plain(record: ConfigRecord) -> dict[str, Scalar]:
    return {key: value for key, value in record.items() if isinstance(value, int | float | str)}
