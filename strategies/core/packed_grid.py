"""A grid that packs: for a strategy with a ``start`` of its own, which sends and receives by itself."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from flwr.app import Error, Message
from flwr.serverapp import Grid

from flsparse import _flwr
from flsparse.strategies.core.exchange import Exchange, Reply
from flsparse.wire.grids import WrappedGrid
from flsparse.wire.messages import config_of

if TYPE_CHECKING:
    from flsparse.strategies.core.loop import RoundLoop

_REFUSED = 1  # code of an error reply; the reason says the rest


class PackedGrid(WrappedGrid):
    """A grid whose messages are packed and whose replies are dense; a refused one comes back as an error reply.

    Parameters
    ----------
    grid : Grid
        Carries the packed messages.
    loop : RoundLoop
        Its wire packs and counts, its roster knows the nodes' references.
    opened : Callable[[Reply], bool]
        Makes a reply dense in place; None where it is refused.
    timeout_s : float
        Seconds to wait for replies where the strategy does not say.
    """

    def __init__(self, grid: Grid, loop: "RoundLoop", opened: Callable[[Reply], object], timeout_s: float) -> None:
        super().__init__(grid)
        self._loop, self._opened, self._timeout_s = loop, opened, timeout_s
        self._round = 0
        self._asked: dict[str, tuple[Exchange, Message]] = {}  # by message id, as the strategy knows it

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and wait for their replies."""
        messages = list(messages)
        exchange = self._exchange(messages, timeout)
        return [reply.message for reply in exchange if self._opened(reply) is not None]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; return their ids."""
        ids = []
        self._forget()
        for message in messages:
            exchange = self._exchange([message], None)
            for message_id in exchange.message_ids:
                _flwr.set_message_id(message, message_id)
                self._asked[message_id] = exchange, message
                ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there."""
        replies = []
        for message_id in message_ids:
            if message_id not in self._asked:
                continue
            exchange, message = self._asked[message_id]
            came = [reply.message for reply in exchange.arrived() if self._opened(reply) is not None]
            if not exchange.pending:
                del self._asked[message_id]
                reason = (self._loop.wire.problems or ["its reply was dropped"])[-1]
                replies += came or [Message(Error(_REFUSED, reason), reply_to=message)]
                _flwr.set_reply_to(replies[-1], message_id)  # the full model, sent again, has another id
        return replies

    def _forget(self) -> None:
        """Give up on the nodes that are overdue: each would hold its round's model for ever."""
        for message_id, (exchange, _) in list(self._asked.items()):
            if exchange.overdue:
                exchange.cancel()
                del self._asked[message_id]

    def _exchange(self, messages: list[Message], timeout: float | None) -> Exchange:
        loop, timeout_s = self._loop, self._timeout_s if timeout is None else timeout
        rounds = [config_of(message.content).get("server-round") for message in messages]
        self._round = max([self._round, *(number for number in rounds if isinstance(number, int))])
        loop.wire.problems = []
        loop.greet(self._grid, self._round, timeout_s)
        return loop.wire.exchange(
            self._grid, messages, loop.nodes, lambda node: loop.asks(node, self._round), self._round, timeout_s
        )
