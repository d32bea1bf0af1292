"""A virtual clock: when each reply is back, by the bytes of the messages and the work between them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flsparse.metering.network import Network, Place


class Back(NamedTuple):
    """When an exchange with a node is over, in seconds, and whether its reply was sent, and heard in time."""

    at_s: float
    sent: bool = True
    heard: bool = True


@dataclass
class VirtualClock:
    """Follows the messages of a run over a network.

    A message leaves at the server's time, or at a later one. Whoever waits for a reply sets the time on.

    Attributes
    ----------
    network : Network
        Of the nodes.
    now_s : float
        The server's time, in seconds since the run's start.
    cost : float
        Price of all bytes so far.
    timeout_s : float
        Seconds after which a message without reply is given up.
    """

    network: Network
    now_s: float = 0.0
    cost: float = 0.0
    timeout_s: float = math.inf
    _lap: tuple[float, float] = (0.0, 0.0)
    _sent: dict[str, tuple[float, int]] = field(default_factory=dict)  # departure and bytes, by message id
    _places: dict[int, Place] = field(default_factory=dict)  # by partition

    def place(self, partition: int) -> Place:
        """Return a node's class and speed."""
        if partition not in self._places:
            self._places[partition] = self.network.place(partition)
        return self._places[partition]

    def send(self, message_id: str, num_bytes: int, at_s: float = 0.0) -> None:
        """Note a message of so many bytes that leaves now, or at a later time."""
        self._sent[message_id] = (max(self.now_s, at_s), num_bytes)

    def receive(self, message_id: str, partition: int, server_round: int, num_bytes: int, flops: float) -> Back:
        """Take the reply to a message, which a node that drops out while it trains never sends.

        Parameters
        ----------
        message_id : str
            Of the message that it answers.
        partition : int
            Of its node.
        server_round : int
            That it was asked in.
        num_bytes : int
            Its size.
        flops : float
            Floating-point operations that it took the node.
        """
        departure_s, down_bytes = self._sent.pop(message_id, (self.now_s, 0))
        place, given_up_s = self.place(partition), departure_s + self.timeout_s
        self.cost += place.link.cost(down_bytes)
        if flops and self.network.drops_out(partition, server_round, place):
            return Back(given_up_s, sent=False, heard=False)
        self.cost += place.link.cost(num_bytes)
        back_s = place.returns(departure_s, down_bytes, flops, num_bytes)
        return Back(back_s) if back_s <= given_up_s else Back(given_up_s, heard=False)

    def lose(self, message_id: str, partition: int) -> None:
        """Note that no reply to a message will be taken; its bytes are paid for."""
        _, down_bytes = self._sent.pop(message_id, (0.0, 0))
        self.cost += self.place(partition).link.cost(down_bytes)

    def lap(self) -> dict[str, float]:
        """Return the seconds and the cost since the last lap, as a row of ``metrics.jsonl`` has them."""
        seconds, cost = self.now_s - self._lap[0], self.cost - self._lap[1]
        self._lap = (self.now_s, self.cost)
        return {"modelled_seconds": seconds, "modelled_cost": cost}

    def go_on(self, row: Mapping[str, Any]) -> None:
        """Take the time and the cost of a round of the run before this one goes on."""
        self.now_s += row.get("modelled_seconds") or 0.0
        self.cost += row.get("modelled_cost") or 0.0
        self._lap = (self.now_s, self.cost)
