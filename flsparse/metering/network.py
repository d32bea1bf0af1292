"""Links and devices: how long a message takes to a node, and what it costs.

A node is of one class of links and devices, drawn from the seed; so is the speed of its device, which differs within a
class. Everything is arithmetic on bytes and floating-point operations: nothing waits.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flsparse import rng
from flsparse.configs import build
from flsparse.ranges import within

_DAY_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Link:
    """A class of nodes: their line to the server, and their device.

    Attributes
    ----------
    up_bps, down_bps : float
        Bandwidth from and to the node, in bits per second, above 0.
    latency_s : float
        Seconds that a message is on its way, beside its bytes; each way.
    loss : float
        Fraction of the bytes that have to be sent again, in [0, 1).
    message_s : float
        Seconds that an exchange with the node takes beside transfer and training: polls, the start of a process.
    cost_per_mb : float
        Price of a million bytes, either way, in any currency.
    hours : sequence of float or None
        Two hours of the day, in [0, 24], between which the node can be reached, the first included; over midnight where
        the second is the smaller one. None: always. A run starts at midnight.
    flops_per_s : float
        Speed of the device in training, in floating-point operations per second, above 0.
    dropout : float
        Fraction of the exchanges that a node does not finish, in [0, 1): it is switched off, or out of reach.
    spread : float
        Standard deviation of the natural logarithm of the devices' speeds within the class.
    share : float
        Weight of the class in the draw of a node's class, 0 or more.
    """

    up_bps: float
    down_bps: float
    flops_per_s: float
    latency_s: float = 0.0
    loss: float = 0.0
    message_s: float = 0.0
    cost_per_mb: float = 0.0
    hours: Sequence[float] | None = None
    dropout: float = 0.0
    spread: float = 0.0
    share: float = 1.0

    def __post_init__(self) -> None:
        within("(0, inf)", up_bps=self.up_bps, down_bps=self.down_bps, flops_per_s=self.flops_per_s)
        within("[0, inf)", latency_s=self.latency_s, message_s=self.message_s, cost_per_mb=self.cost_per_mb)
        within("[0, inf)", spread=self.spread, share=self.share)
        within("[0, 1)", "the fraction of the bytes that is sent again", loss=self.loss)
        within("[0, 1)", "the fraction of the exchanges that is not finished", dropout=self.dropout)
        if self.hours is not None and (
            len(self.hours) != 2 or not all(0 <= each <= 24 for each in self.hours) or self.hours[0] == self.hours[1]
        ):
            raise ValueError(f"hours={list(self.hours)} are not two different hours from 0 to 24, such as [22, 6]")

    def opens(self, time_s: float) -> float:
        """Return the first time, in seconds since midnight of the first day, from ``time_s`` on in :attr:`hours`.

        >>> Link(up_bps=1, down_bps=1, flops_per_s=1, hours=(22, 6)).opens(7 * 3600) / 3600
        22.0
        """
        if self.hours is None:
            return time_s
        start, end = (3600.0 * each for each in self.hours)
        since = (time_s - start) % _DAY_S
        return time_s if since < (end - start) % _DAY_S or (end - start) == _DAY_S else time_s + _DAY_S - since

    def cost(self, num_bytes: float) -> float:
        """Return the price of bytes, those sent again included."""
        return self.cost_per_mb * num_bytes / (1 - self.loss) / 1e6


@dataclass(frozen=True)
class Place:
    """A node on its link.

    Attributes
    ----------
    name : str
        Its class.
    link : Link
    speed : float
        Speed of its device, as a multiple of the class's.
    """

    name: str
    link: Link
    speed: float = 1.0

    def returns(self, departure_s: float, down_bytes: float, flops: float, up_bytes: float) -> float:
        """Return when the reply to a message is back, in seconds, as the departure is.

        Parameters
        ----------
        departure_s : float
            When the server sends the message.
        down_bytes, up_bytes : float
            Sizes of message and reply.
        flops : float
            Floating-point operations between them.
        """
        link, sent = self.link, 8 / (1 - self.link.loss)
        there = link.opens(departure_s) + link.message_s + link.latency_s + down_bytes * sent / link.down_bps
        done = there + flops / (link.flops_per_s * self.speed)
        return link.opens(done) + link.latency_s + up_bytes * sent / link.up_bps


@dataclass(frozen=True)
class Network:
    """All nodes on their links.

    Attributes
    ----------
    classes : dict[str, Link]
        By name.
    seed : int
        Of the draws.
    """

    classes: dict[str, Link]
    seed: int

    def place(self, partition: int) -> Place:
        """Return a node's class and speed, the same whenever it is asked for."""
        drawn = rng.stream(self.seed, 0, partition, "link")
        shares = [each.share for each in self.classes.values()]
        name = list(self.classes)[int(drawn.choice(len(shares), p=[each / sum(shares) for each in shares]))]
        link = self.classes[name]
        return Place(name, link, math.exp(link.spread * drawn.standard_normal()))

    def drops_out(self, partition: int, server_round: int, place: Place) -> bool:
        """Tell whether a node does not finish what it was asked in a round."""
        if not place.link.dropout:
            return False
        return bool(rng.stream(self.seed, server_round, partition, "dropout").random() < place.link.dropout)


def network_of(settings: Mapping[str, Any] | None, seed: int) -> Network | None:
    """Return the network of the configuration's ``link``; None where it is null.

    Parameters
    ----------
    settings : mapping, optional
        ``name``, and ``classes``: the arguments of :class:`Link` by class.
    seed : int
        Of the draws.

    Raises
    ------
    ValueError
        A setting is unknown, missing or out of range, or no class has a share.
    """
    if not settings:
        return None
    classes = settings.get("classes")
    if not isinstance(classes, Mapping) or not classes:
        raise ValueError("link.classes is empty: give a class, with its up_bps, down_bps and flops_per_s")
    links = {}
    for name, given in classes.items():
        if not isinstance(given, Mapping):
            raise ValueError(f"link.classes.{name}={given!r} is no class: give its up_bps, down_bps and flops_per_s")
        links[str(name)] = build({"a link": Link}, "a link", given, what=f"link.classes.{name}")
    if not sum(link.share for link in links.values()):
        raise ValueError("link.classes: every share is 0, so no node can be of any of them")
    return Network(links, seed)
