"""What each pace would make of a run's links: models, hours, waste and staleness for as much work of the nodes."""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass

from rich.table import Table

from flsparse import rng
from flsparse.report.tables import human_seconds
from flsparse.strategies.core.exchange import Node
from flsparse.strategies.core.pace import PACES, Pace
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
    now, number, wasted, taken = 0.0, 0, 0, [0]
    wanted = max(1, math.ceil(pace.replies * asked))
    while len(taken) - 1 < replies:
        number += 1
        busy = {partition for _, partition, _ in flight}
        idle = [node for node in roster if node.partition not in busy]
        size = min(len(idle), asked - (len(busy) if pace.refill else 0))
        for node in draw(idle, max(0, size), rng.stream(seed, number, -1, "sampling")):
            heapq.heappush(flight, (returns(node.partition, now), node.partition, number))
        started, until, got = now, math.inf, 0
        while flight and flight[0][0] <= until and (got < wanted or pace.grace):
            back, _, version = heapq.heappop(flight)
            now = max(now, back)
            if number - version > pace.staleness_max:
                wasted += 1
                continue
            taken.append(number - version)
            got += 1
            if got == wanted:
                until = max(started, back) + pace.grace * max(0.0, back - started)
        if flight and until < math.inf and pace.grace:
            now = max(now, until)
    return Foretold(number, now, wasted + len(flight), sum(taken) / (len(taken) - 1))


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
