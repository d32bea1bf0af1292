"""Run a federation in one process: a Flower ``Grid`` that calls the ClientApp itself.

Messages take the way they take in Flower, minus the sockets: each is taken apart into Flower's objects when it is
pushed, and built again from their bytes where it arrives, in both directions; a node's state is bytes between two
messages. Nodes run one after the other, in the order in which their messages were pushed, and only when a reply is
asked for, so memory does not grow with the number of nodes.
"""

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from flsparse import _flwr
from flsparse.rng import derive

log = logging.getLogger(__name__)


class InProcessGrid(Grid):
    """A Flower ``Grid`` with nodes in this process.

    Hand it to any strategy's ``start(grid, ...)``, or to a ServerApp's main function.

    Parameters
    ----------
    client_app : ClientApp
        Runs every node.
    num_nodes : int
        Nodes, at least 1. Node ids are fixed 63-bit numbers, as unlike partition ids as on a SuperLink.
    run_config : mapping, optional
        ``context.run_config`` on every node.
    node_config : mapping, optional
        Added to every node's ``context.node_config``, which holds ``partition-id`` and ``num-partitions`` anyway.
    on_error : {"reply", "raise"}
        Reaction to a failing client: ``"reply"`` sends Flower's error reply, as every runtime does; ``"raise"`` lets
        the exception through, for a debugger.

    Notes
    -----
    A timeout of :meth:`send_and_receive` is checked between nodes: a node that runs is never cut off, and nodes
    whose turn had not come get no message at all.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_nodes: int,
        *,
        run_config: Mapping[str, UserConfigValue] | None = None,
        node_config: Mapping[str, UserConfigValue] | None = None,
        on_error: Literal["reply", "raise"] = "reply",
    ) -> None:
        if num_nodes < 1:
            raise ValueError(f"num_nodes is {num_nodes}; a federation needs at least 1")
        self._client_app = client_app
        self._run_config = dict(run_config or {})
        self._node_config = dict(node_config or {})
        self._on_error = on_error
        self._partitions = {derive(0, 0, partition, "node-id"): partition for partition in range(num_nodes)}
        self._run = _flwr.Run.create_empty(run_id=derive(time.time_ns(), 0, -1, "run-id"))
        self._states: dict[int, bytes] = {}  # by partition; a node without state has no entry
        self._pending: dict[str, dict[str, bytes]] = {}  # message id -> its objects, in push order
        self._shared: dict[str, bytes] = {}  # objects of pending messages: a broadcast is held once
        self._traceback_shown = False
        _flwr.set_identity(self._run.run_id)

    runs_on_pull = True  # nodes run when replies are asked for, so that time is the virtual clock's

    # The Grid interface

    def set_run(self, run: _flwr.Run) -> None:
        """Set the run that messages belong to."""
        self._run = run
        _flwr.set_identity(run.run_id)

    @property
    def run(self) -> _flwr.Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message (Flower's older way; ``Message(...)`` does the same)."""
        _flwr.set_identity(self._run.run_id)
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return all node ids, ascending: an order that says nothing about partitions."""
        # Strategies ask for nodes before they build messages, so two grids can take turns.
        _flwr.set_identity(self._run.run_id)
        return sorted(self._partitions)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages in; their nodes run when replies are pulled. Later changes to a message have no effect."""
        message_ids = []
        for message in messages:
            message.metadata.__dict__["_run_id"] = self._run.run_id
            message_id, contents = _flwr.deflate(message)
            _flwr.set_message_id(message, message_id)
            self._pending[message_id] = {key: self._shared.setdefault(key, data) for key, data in contents.items()}
            message_ids.append(message_id)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Run the node of the first of these messages that still waits, and return its reply: one or none a call."""
        wanted = set(message_ids)
        message_id = next((each for each in self._pending if each in wanted), None)
        if message_id is None:
            return []
        message = _flwr.inflate(message_id, self._pending.pop(message_id))
        if not self._pending:
            self._shared.clear()
        return [self._answer(message)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push messages and return their replies; after ``timeout`` seconds, the replies so far."""
        end = None if timeout is None else time.monotonic() + timeout
        waiting = self.push_messages(messages)
        replies: list[Message] = []
        while len(replies) < len(waiting) and (end is None or time.monotonic() < end):
            replies += self.pull_messages(waiting)
        self.drop_messages(waiting)
        return replies

    def drop_messages(self, message_ids: Iterable[str]) -> None:
        """Forget messages whose nodes have not run, as when a round's deadline has passed."""
        for message_id in message_ids:
            self._pending.pop(message_id, None)
        if not self._pending:
            self._shared.clear()

    # One node

    def _answer(self, message: Message) -> Message:
        """Return the node's reply, or the error reply that Flower would send in its place."""
        partition = self._partitions.get(message.metadata.dst_node_id)
        if partition is None:
            return self._error(message, _flwr.ErrorCode.NODE_UNAVAILABLE, "no such node")
        if message.metadata.created_at + message.metadata.ttl < time.time():
            return self._error(message, _flwr.ErrorCode.MESSAGE_UNAVAILABLE, "the message's ttl has passed")
        try:
            reply, state = self._call(message, partition)
            reply = _flwr.through_wire(reply)  # a reply that cannot be serialized is the client's failure
        except Exception as error:
            if self._on_error == "raise":
                raise
            log.error("Node of partition %d failed: %r", partition, error, exc_info=not self._traceback_shown)
            self._traceback_shown = True
            reason = f"{type(error).__name__}: {error}"
            return self._error(message, _flwr.ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
        except SystemExit as error:  # on a real node, the end of the client's process and no more
            return self._error(message, _flwr.ErrorCode.CLIENT_APP_CRASHED, f"the client exited ({error.code})")
        if reply.metadata.created_at + reply.metadata.ttl < time.time():
            return self._error(message, _flwr.ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "the reply's ttl has passed")
        if state is None:
            self._states.pop(partition, None)
        else:
            self._states[partition] = state
        return reply

    def _call(self, message: Message, partition: int) -> tuple[Message, bytes | None]:
        """Call the ClientApp with the node's context; return the reply and the node's new state."""
        stored = self._states.get(partition)
        node_config: UserConfig = {"partition-id": partition, "num-partitions": len(self._partitions)}
        context = Context(
            run_id=self._run.run_id,
            node_id=message.metadata.dst_node_id,
            node_config=self._node_config | node_config,
            state=RecordDict() if stored is None else _flwr.unpack_records(stored),
            run_config=dict(self._run_config),
        )
        reply = self._client_app(message, context)
        if not isinstance(reply, Message):
            raise TypeError(f"the ClientApp returned {type(reply).__name__}, not a Message")
        if reply.metadata.reply_to_message_id != message.metadata.message_id:
            raise ValueError("the ClientApp returned a Message that is no reply: build it with reply_to=message")
        return reply, _flwr.pack_records(context.state) if context.state else None

    def _error(self, message: Message, code: int, reason: str) -> Message:
        # An explicit ttl: the rest of the instruction's may be spent, and the server must still hear of it.
        return Message(Error(code=code, reason=reason), reply_to=message, ttl=1e-3)

    # State that outlives a round

    def state_dict(self) -> dict[str, Any]:
        """Return the run id and the state of every node that has any (``uint8`` arrays by partition id)."""
        states = {str(partition): np.frombuffer(data, np.uint8) for partition, data in sorted(self._states.items())}
        return {"run_id": self._run.run_id, "nodes": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; the number of nodes must be the same or larger."""
        states = {int(partition): bytes(data) for partition, data in state["nodes"].items()}
        if states and max(states) >= len(self._partitions):
            raise ValueError(f"saved state of partition {max(states)}, but there are {len(self._partitions)} nodes")
        self._states = states
        self.set_run(_flwr.Run.create_empty(run_id=int(state["run_id"])))
