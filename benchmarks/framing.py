"""What travels beside the payload: Flower's own framing, and that of messages as records and folded.

    python benchmarks/framing.py

A round of SparsyFed on the digits is led in process; the sizes are of real messages, of Flower's objects and without
HTTP. "As records" is the same message before it is folded (:mod:`flsparse.wire.folded`).
"""

from flwr.app import ConfigRecord, Message, RecordDict
from sweep import markdown

from flsparse._flwr import set_identity, wire_size
from flsparse.clients import device_app, state_arrays
from flsparse.runtime import InProcessGrid
from flsparse.strategies import SparsyFed
from flsparse.tasks import build_task
from flsparse.wire.folded import fold, unfold
from flsparse.wire.grids import WrappedGrid
from flsparse.wire.messages import payload_size, to_record

TRAINING = {
    "lr": 0.3, "lr-final": 0.006, "lr-schedule": "geometric", "batch-size": 16, "local-epochs": 1, "local-steps": 0,
    "momentum": 0.0, "weight-decay": 0.001, "clip-grad": 0.0,
}  # fmt: skip


class Watching(WrappedGrid):
    """A grid that keeps the last message of each kind that passes."""

    def __init__(self, grid):
        super().__init__(grid)
        self.seen: dict[str, Message] = {}

    def push_messages(self, messages):
        """Keep and pass on."""
        messages = list(messages)
        self.seen |= {f"to the node, {message.metadata.message_type}": message for message in messages}
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        """Pass on and keep, a copy of the content: the wire unfolds it in place."""
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            copy = Message(RecordDict(dict(reply.content.items())), 1, reply.metadata.message_type)
            self.seen[f"from the node, {reply.metadata.message_type}"] = copy
        return replies


def size(content: RecordDict) -> int:
    """Return the bytes of a message of this content."""
    return wire_size(Message(content, 1, "train"))


def main() -> None:
    """Print both tables."""
    set_identity(1)
    nothing, one = RecordDict({}), RecordDict({"flsparse": ConfigRecord({"1": b""})})
    print(f"Flower's own: a message of no record {size(nothing)} B, of one record that is empty {size(one)} B\n")
    task = build_task({"dataset": {"name": "digits"}, "model": {"name": "cnn"}, "num_clients": 4, "seed": 0})
    strategy = SparsyFed(sparsity=0.95, ramp=False, hello=True)
    grid = Watching(InProcessGrid(device_app(lambda _: task), 4))
    strategy.start(grid, to_record(state_arrays(strategy.prepare(task.model()))), 8, 60, ConfigRecord(TRAINING))
    rows = []
    for kind, message in grid.seen.items():
        content = unfold(message.content)
        assert size(fold(content)) == size(message.content)
        payload, before, now = payload_size(content), size(content), size(message.content)
        rows.append([kind, f"{payload:,}", f"{before:,}", f"{now:,}", f"{1 - now / before:.0%}"])
    print(markdown(["message", "payload, B", "as records, B", "folded, B", "saved"], rows))


if __name__ == "__main__":
    main()
