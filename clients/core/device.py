"""The device application: one ClientApp that carries every method.

The server's message names the method and brings its hyper-parameters; the device knows the data and the model, keeps
its owner's limits, and answers the hello.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from flsparse.clients.core.compress import CompressMod, Limits
from flsparse.clients.core.frozen import frozen_digest, take_frozen
from flsparse.clients.core.method import METHODS, Kind, TaskLike, Visit, asked_method, partition_id, test_data_of
from flsparse.clients.core.state import NodeState
from flsparse.codec.wire import VERSION
from flsparse.nets.arrays import Arrays, state_arrays
from flsparse.wire.messages import (
    AGREED,
    BY_NODE,
    CLASS_COUNTS,
    FROZEN,
    HOLDINGS,
    RECORD,
    SURVEY,
    opaque_payload,
    record_of,
)

_UNNAMED = {Kind.SPLIT: "split_ms"}  # its messages within a round name no method


class _OpenMod(CompressMod):
    """The mod before an app that reads our record, keeps state beside ours, and builds the initial model by itself."""

    def __init__(self, load_task: Callable[[Context], TaskLike], limits: Limits) -> None:
        super().__init__(limits=limits)
        self._load_task = load_task

    def initial(self, asked: ConfigRecord, context: Context) -> Arrays:
        """Return the task's fresh model as the method trains it."""
        method = asked_method(asked, "fedavg")
        return state_arrays(method.prepare(self._load_task(context).model()))

    @contextmanager
    def hidden(self, content: RecordDict, context: Context) -> Iterator[None]:
        yield


def device_app(
    load_task: Callable[[Context], TaskLike], limits: Limits | None = None, *, tells_class_counts: bool = False
) -> ClientApp:
    """Return the ClientApp that trains, evaluates and answers the hello.

    Asked to evaluate the model that it received, a device with data of its own reports ``loss`` and ``accuracy`` on its
    test part, and so do others that are asked to measure by node. Else they have training data alone, and report
    ``train-loss`` and ``train-accuracy``: the server measures test accuracy, or an app of one's own does.

    Parameters
    ----------
    load_task : Callable[[Context], TaskLike]
        Gives the node's task; called once a message, so it should cache.
    limits : Limits, optional
        Bounds set by the device's owner, which no server can exceed.
    tells_class_counts : bool (default: False)
        Tell a server that measures by node how many training samples of each class there are.
    """
    limits = limits or Limits()
    app = ClientApp(mods=[_OpenMod(load_task, limits)])  # holds bytes; the passes over the data are held below

    def answering(kind: Kind) -> ClientAppCallable:
        def answer(message: Message, context: Context) -> Message:
            state = NodeState(context, limits.max_state_bytes)
            visit = Visit(message.content, load_task(context), partition_id(context), state, limits)
            method = asked_method(visit.asked, _UNNAMED.get(kind, "fedavg"))
            limits.check("max_local_epochs", method.passes(kind, visit))
            return Message(method.answer(kind, visit), reply_to=message)

        return answer

    register = {"train": app.train, "evaluate": app.evaluate, "query": app.query}
    for kind in Kind:
        category, _, action = kind.partition(".")
        register[category](*([action] if action else []))(answering(kind))

    @app.query()
    def hello(message: Message, context: Context) -> Message:
        state, asked = NodeState(context, limits.max_state_bytes), record_of(message.content)
        if isinstance(agreed := asked.get(AGREED), str):
            state.values[AGREED] = agreed
        task, by_node = load_task(context), bool(asked.get(BY_NODE))
        if opaque_payload(message.content) is not None:
            return Message(take_frozen(message.content, getattr(task, "frozen_arrays", {}), state), reply_to=message)
        record = ConfigRecord(
            {
                "partition-id": partition_id(context),
                "num-examples": len(task.train_data(partition_id(context))),
                "methods": sorted(METHODS),
                "codec-version": VERSION,
                "held": state.held,
            }
        )
        if (tested := test_data_of(task, partition_id(context), by_node=by_node)) is not None:
            record["num-test-examples"] = len(tested)
        if by_node and tells_class_counts and (counts := getattr(task, "class_counts", None)) is not None:
            record[CLASS_COUNTS] = counts(partition_id(context))
        if asked.get(SURVEY) and hasattr(task, "holdings"):
            record[HOLDINGS] = json.dumps(task.holdings())
        elif frozen := frozen_digest(getattr(task, "frozen_digest", ""), state):
            record[FROZEN] = frozen
        return Message(RecordDict({RECORD: record}), reply_to=message)

    return app
