"""Grids around grids: one that can be stopped, and one that counts messages."""

import threading
from collections.abc import Iterable

from flwr.app import Message
from flwr.serverapp import Grid

from flsparse import _flwr
from flsparse.wire.grids import WrappedGrid


class StoppableGrid(WrappedGrid):
    """A grid that can be stopped from another thread: its next use raises KeyboardInterrupt."""

    def __init__(self, grid: Grid, stop: threading.Event) -> None:
        super().__init__(grid)
        self._stop = stop

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the connected nodes."""
        self._check()
        return super().get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; return their ids."""
        self._check()
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there."""
        self._check()
        return super().pull_messages(message_ids)

    def _check(self) -> None:
        if self._stop.is_set():
            raise KeyboardInterrupt


class CountingGrid(WrappedGrid):
    """A grid that counts messages and their bytes, for strategies that keep no ledger, such as Flower's own.

    Attributes
    ----------
    uplink_wire_bytes, downlink_wire_bytes : int
        Bytes of Flower's objects, payload and framing, from and to the nodes.
    uplink_messages, downlink_messages : int
        Messages.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self.uplink_wire_bytes = self.downlink_wire_bytes = 0
        self.uplink_messages = self.downlink_messages = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; return their ids."""
        return super().push_messages(self._down(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there."""
        return [self._up(reply) for reply in super().pull_messages(message_ids)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and wait for their replies."""
        return [self._up(reply) for reply in super().send_and_receive(self._down(messages), timeout=timeout)]

    def _down(self, messages: Iterable[Message]) -> list[Message]:
        messages = list(messages)
        self.downlink_messages += len(messages)
        self.downlink_wire_bytes += sum(map(_flwr.wire_size, messages))
        return messages

    def _up(self, reply: Message) -> Message:
        self.uplink_messages += 1
        self.uplink_wire_bytes += _flwr.wire_size(reply)
        return reply
