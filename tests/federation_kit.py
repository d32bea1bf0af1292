"""What several test modules need: a small real federation on the embedded digits, and a grid that misbehaves."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Error, Message
from flwr.serverapp import Grid

from flsparse import _flwr
from flsparse.clients import device_app, state_arrays
from flsparse.runtime import InProcessGrid
from flsparse.strategies import RoundLoop, RoundReport
from flsparse.tasks import Task, build_task
from flsparse.wire.folded import is_folded, unfold
from flsparse.wire.messages import packed_payload, to_record

TRAINING = ConfigRecord({"lr": 0.1, "batch-size": 32, "local-epochs": 1, "momentum": 0.0, "weight-decay": 0.0})


def digits(
    num_nodes: int = 4,
    seed: int = 0,
    *,
    model: Mapping[str, Any] | None = None,
    partition: Mapping[str, Any] | None = None,
    **dataset: Any,
) -> Task:
    """Return the digits task: a small CNN and equal Dirichlet shares of 400 samples, if nothing else is said."""
    return build_task(
        {
            "dataset": {"name": "digits", "train_samples": 400, **dataset},
            "model": model or {"name": "cnn"},
            "partition": partition or {"kind": "dirichlet_equal", "alpha": 1.0},
            "num_clients": num_nodes,
            "seed": seed,
        }
    )


def grid_of(task: Task) -> InProcessGrid:
    """Return a grid of all the task's nodes, in process."""
    return InProcessGrid(device_app(lambda _: task), task.num_nodes)


def run(
    strategy: RoundLoop,
    task: Task,
    *,
    rounds: int = 3,
    grid: Grid | None = None,
    arrays: ArrayRecord | None = None,
    config: ConfigRecord = TRAINING,
    **start: Any,
) -> list[RoundReport]:
    """Run a federation, of all the task's nodes if no grid is given, and return its reports."""
    reports: list[RoundReport] = []
    strategy.callbacks.append(reports.append)
    arrays = initial_arrays(strategy, task) if arrays is None else arrays
    strategy.start(grid or grid_of(task), arrays, num_rounds=rounds, train_config=config, **start)
    return reports


def initial_arrays(strategy: RoundLoop, task: Task) -> ArrayRecord:
    """Return the arrays a run starts from."""
    return to_record(state_arrays(strategy.prepare(task.model())))


class TamperedGrid(Grid):
    """Passes everything on to a grid, and replies through a function that may change, drop or double them."""

    def __init__(self, inner: InProcessGrid, tamper: Callable[[Message], list[Message]]) -> None:
        self.inner, self.tamper = inner, tamper

    def set_run(self, run: Any) -> None:
        self.inner.set_run(run)

    @property
    def run(self) -> Any:
        return self.inner.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return self.inner.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        return self.inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self.inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [out for reply in self.inner.pull_messages(message_ids) for out in self.tamper(unfolded(reply))]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.inner.send_and_receive(messages, timeout=timeout)


def tampered(task: Task, tamper: Callable[[Message], list[Message]]) -> TamperedGrid:
    """Return a grid of all the task's nodes whose replies pass through a function."""
    return TamperedGrid(grid_of(task), tamper)


def copy(message: Message) -> Message:
    """Return a copy of a message as a second delivery would give it."""
    return _flwr.through_wire(message)


def unfolded(message: Message) -> Message:
    """Return a message as it was before it was folded, which its receiver takes as well."""
    if message.has_content() and is_folded(message.content):
        message.content = unfold(message.content)
    return message


def payload_of(message: Message) -> bytes:
    """Return the payload of a packed message."""
    payload = packed_payload(message.content)
    assert payload is not None
    return payload


def failed(reply: Message) -> Message:
    """Return the reply that a node would have sent had its app raised."""
    error = Error(2, "the battery is empty")
    return cast(Message, cast(Any, Message)(error=error, metadata=reply.metadata))  # an overload that Flower hides
