"""What each pace would make of a run's links: models, hours, waste and staleness for as much work of the nodes."""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass

from rich.table import Table

from flsparse import rng
from flsparse.report.tables import human_seconds
from flsparse.strategies.core.exchange import Node
from flsparse.strategies.core.pace import PACES, Pace, taken
from flsparse.strategies.core.roster import draw

Returns = Callable[[int, float], float]  # when a node's reply to a message of some time is back


@dataclass(frozen=True)
class Foretold:
    """A run at a pace, before it runs.

    Attributes
    ----------
    models : int
        Rounds.
    seconds : float
        Until the last model.
    wasted : int
        Replies that no model took, or were in flight at the end.
    staleness : float
        Mean over the replies that were taken.
    """

    models: int
    seconds: float
    wasted: int
    staleness: float


def foretell(pace: Pace, returns: Returns, nodes: int, asked: int, replies: int, seed: int) -> Foretold:
    """Play a run at a pace: who is asked when, and whose reply each model takes.

    Parameters
    ----------
    pace : Pace
    returns : Callable[[int, float], float]
        When the reply of a node, by partition, is back to a message of some time, in seconds.
    nodes, asked : int
        Nodes there are, and nodes of a round.
    replies : int
        Replies that models are to take in all.
    seed : int
        Of the sampling, as the run's.
    """
    roster = [Node(partition, partition) for partition in range(nodes)]
    flight: list[tuple[float, int, int]] = []  # when, partition, round
    now, number, wasted = 0.0, 0, 0
    staleness: list[int] = []

    def following(until: float) -> tuple[float, tuple[float, int, int]] | None:
        return (flight[0][0], heapq.heappop(flight)) if flight and flight[0][0] <= until else None

    def age(reply: tuple[float, int, int]) -> int:
        return number - reply[2]

    wanted = max(1, math.ceil(pace.replies * asked))
    while len(staleness) < replies:
        number += 1
        busy = {partition for _, partition, _ in flight}
        idle = [node for node in roster if node.partition not in busy]
        size = min(len(idle), asked - (len(busy) if pace.refill else 0))
        for node in draw(idle, max(0, size), rng.stream(seed, number, -1, "sampling")):
            heapq.heappush(flight, (returns(node.partition, now), node.partition, number))
        took, late, until = taken(pace, wanted, now, following, age)
        now = max([now, *(when for when, _, _ in (*took, *late))])
        if flight and until < math.inf:
            now = max(now, until)
        wasted += len(late)
        staleness += map(age, took)
    return Foretold(number, now, wasted + len(flight), sum(staleness) / len(staleness))


def pace_table(returns: Returns, nodes: int, asked: int, rounds: int, seed: int, own: Pace) -> Table:
    """Return the paces side by side, the run's own as it is set: models until as many replies are in as in ``sync``."""
    table = Table(title="paces over these links, for as many replies")
    table.add_column("pace")
    for column in ("models", "time", "wasted replies", "staleness"):
        table.add_column(column, justify="right")
    for name, make in PACES.items():
        pace = own if name == own.name else make()
        found = foretell(pace, returns, nodes, asked, asked * rounds, seed)
        cells = (str(found.models), human_seconds(found.seconds), str(found.wasted), f"{found.staleness:.2f}")
        table.add_row(f"{name}, this run's" if pace is own else name, *cells)
    return table
