"""Exchanges: two open at a time, and replies that come late."""

from typing import Any

import numpy as np
from federation_kit import TRAINING, digits, initial_arrays

from flsparse.clients import device_app
from flsparse.codec import Layer
from flsparse.runtime import InProcessGrid
from flsparse.strategies import FedAvg
from flsparse.strategies.core.exchange import Exchange, Reply
from flsparse.wire.messages import to_numpy, to_record


class Federation:
    """Four nodes of the digits, and a server that opens its exchanges by hand."""

    def __init__(self) -> None:
        self.task = digits()
        self.strategy = FedAvg(values="int8", hello=True)
        self.grid = InProcessGrid(device_app(lambda _: self.task), self.task.num_nodes)
        self.arrays = initial_arrays(self.strategy, self.task)
        self.strategy.greet(self.grid, 1, 60.0)
        self.strategy._exchange_s = 60.0

    def ask(self, server_round: int, arrays: Any) -> Exchange:
        self.strategy._next_round = server_round
        messages = self.strategy.configure_train(server_round, arrays, TRAINING, self.grid)
        return self.strategy.exchange(self.grid, messages)

    def other_model(self) -> Any:
        return to_record({name: array * np.float32(0.5) for name, array in to_numpy(self.arrays).items()})

    def decoded(self, reply: Reply) -> dict[str, bytes]:
        layers = self.strategy.wire.update(reply)
        assert layers is not None
        return {layer.name: self.bytes_of(layer) for layer in layers}

    def bytes_of(self, layer: Layer) -> bytes:
        return layer.dense(self.strategy.wire.specs[layer.name]).tobytes()


def test_a_late_reply_is_decoded_against_the_broadcast_that_it_answers() -> None:
    on_time = Federation()
    expected = {reply.node.partition: on_time.decoded(reply) for reply in on_time.ask(1, on_time.arrays)}
    late = Federation()
    first = late.ask(1, late.arrays)
    early = list(first.arrived())  # in process, one node runs a look
    assert len(early) == 1
    assert len(first.pending) == 3
    second = list(late.ask(2, late.other_model()))
    assert [reply.node.partition for reply in second] == [0, 1, 2, 3]
    found = {reply.node.partition: reply for reply in early}
    while first.pending:
        found |= {reply.node.partition: reply for reply in first.arrived()}
    assert {reply.server_round for reply in found.values()} == {1}
    broadcasts = {reply.broadcast.reference.id for reply in found.values() if reply.broadcast}
    assert len(broadcasts) == 1
    assert broadcasts.isdisjoint(reply.broadcast.reference.id for reply in second if reply.broadcast)
    assert {partition: late.decoded(reply) for partition, reply in found.items()} == expected
    assert late.strategy.wire.counts["failures"] == late.strategy.wire.counts["rejected_payloads"] == 0


def test_bytes_of_a_late_reply_are_counted_under_its_own_round() -> None:
    federation = Federation()
    first = federation.ask(1, federation.arrays)
    list(federation.ask(2, federation.other_model()))
    before = federation.strategy.ledger.of_round("uplink", 1).messages
    while first.pending:
        list(first.arrived())
    assert (before, federation.strategy.ledger.of_round("uplink", 1).messages) == (0, 4)


def test_what_is_canceled_never_runs() -> None:
    federation = Federation()
    exchange = federation.ask(1, federation.arrays)
    list(exchange.arrived())
    exchange.cancel()
    assert not exchange.pending
    assert list(exchange.arrived()) == []
    assert federation.strategy.ledger.of_round("uplink", 1).messages == 1


def test_an_error_is_dropped_and_counted_once() -> None:
    federation = Federation()
    task, calls = federation.task, []

    def fails_once(_: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("a node of ours")
        return task

    federation.grid._client_app = device_app(fails_once)
    replies = list(federation.ask(1, federation.arrays))
    assert [reply.node.partition for reply in replies] in ([1, 2, 3], [0, 1, 2], [0, 2, 3], [0, 1, 3])
    assert federation.strategy.wire.counts["failures"] == 1
    assert "a node of ours" in federation.strategy.wire.problems[0]
