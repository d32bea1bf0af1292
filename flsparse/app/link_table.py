"""Hours and money of a run over the nodes' links, before it runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.table import Table

from flsparse import rng
from flsparse.app.preview import Preview
from flsparse.metering.flops import training_flops
from flsparse.metering.network import Network, Place
from flsparse.report.tables import human_bytes, human_seconds
from flsparse.strategies.core.exchange import Node
from flsparse.strategies.core.roster import sample
from flsparse.tasks import Task

_FRAME = 410  # bytes that travel with a payload, either way: benchmarks/framing.py


@dataclass(frozen=True)
class Exchanged:
    """An exchange with a node: its place, how long it takes, and the share of it that is training, in seconds."""

    place: Place
    seconds: float
    training_seconds: float


@dataclass(frozen=True)
class Expected:
    """What an exchange with each node is expected to be.

    Attributes
    ----------
    places : list[Place]
        Of the nodes, by partition.
    flops : list[float]
        Floating-point operations of their local training.
    down, up : float
        Bytes of a message and of a reply, framed: the run's means.
    """

    places: list[Place]
    flops: list[float]
    down: float
    up: float

    def returns(self, partition: int, now: float) -> float:
        """Return when a node's reply is back to a message of some time, in seconds."""
        return self.places[partition].returns(now, self.down, self.flops[partition], self.up)


def expected(cfg: Mapping[str, Any], task: Task, found: Preview, network: Network) -> Expected:
    """Return what a run's exchanges are expected to be.

    Parameters
    ----------
    cfg : Mapping[str, Any]
        The composed configuration.
    task : Task
        With all nodes' data on this machine.
    found : Preview
        Of its bytes.
    network : Network
        Of its nodes.
    """
    messages = found.sampled * found.num_rounds
    down, up = (size / messages + _FRAME for size in (found.run_downlink_bytes, found.run_uplink_bytes))
    return Expected([network.place(node) for node in range(task.num_nodes)], _flops(cfg, task), down, up)


def link_table(cfg: Mapping[str, Any], expected: Expected, found: Preview, network: Network) -> Table:
    """Return what a run takes over its links at ``pace=sync``: by class of node, and in all."""
    places, flops, down, up = expected.places, expected.flops, expected.down, expected.up
    dense = found.dense_bytes + _FRAME
    runs = {
        "dense FedAvg": (exchanges(cfg, places, flops, (dense, dense), found), 2 * dense),
        "as configured": (exchanges(cfg, places, flops, (down, up), found), down + up),
    }
    lines = [f"the run, {name}: {_in_all(run, size)}" for name, (run, size) in runs.items()]
    run, size = runs["as configured"]
    table = Table(
        title="over the links at pace=sync, modelled",
        caption="\n".join([*lines, "without evaluations; a round waits for its slowest node"]),
    )
    table.add_column("class")
    for column in ("asked", "median", "training", "longest", "slowest", "bytes", "cost"):
        table.add_column(column, justify="right")
    for name, link in network.classes.items():
        of_class = [each for asked in run for each in asked if each.place.name == name]
        if not of_class:
            continue
        slowest = sum(max(asked, key=lambda each: each.seconds).place.name == name for asked in run)
        table.add_row(
            name,
            str(len(of_class)),
            human_seconds(median(each.seconds for each in of_class)),
            human_seconds(median(each.training_seconds for each in of_class)),
            human_seconds(max(each.seconds for each in of_class)),
            str(slowest),
            human_bytes(len(of_class) * size),
            f"{link.cost(len(of_class) * size):.3g}",
        )
    return table


def _in_all(run: Sequence[Sequence["Exchanged"]], size: float) -> str:
    total = sum(max(each.seconds for each in asked) for asked in run)
    cost = sum(each.place.link.cost(size) for asked in run for each in asked)
    return f"{human_seconds(total)}, {human_bytes(size * sum(map(len, run)))}, cost {cost:.3g}"


def exchanges(
    cfg: Mapping[str, Any], places: Sequence[Place], flops: Sequence[float], sizes: tuple[float, float], found: Preview
) -> list[list[Exchanged]]:
    """Return a run's exchanges by round, with the nodes that the run's seed will sample.

    Parameters
    ----------
    cfg : Mapping[str, Any]
        ``seed`` and ``fraction_train`` are read.
    places : Sequence[Place]
        Of all nodes, by partition.
    flops : Sequence[float]
        Floating-point operations of each node's training.
    sizes : tuple[float, float]
        Bytes of a message down, and up.
    found : Preview
        Nodes of a round, and rounds.
    """
    nodes = [Node(partition, partition) for partition in range(len(places))]
    now, run = 0.0, []
    for server_round in range(1, found.num_rounds + 1):
        drawn = rng.stream(int(cfg["seed"]), server_round, -1, "sampling")
        asked = [node.partition for node in sample(nodes, float(cfg["fraction_train"]), found.sampled, drawn)]
        run.append([_exchanged(places[node], now, flops[node], sizes) for node in asked])
        now += max(each.seconds for each in run[-1])
    return run


def _exchanged(place: Place, now: float, flops: float, sizes: tuple[float, float]) -> Exchanged:
    down, up = sizes
    training = flops / (place.link.flops_per_s * place.speed)
    return Exchanged(place, place.returns(now, down, flops, up) - now, training)


def _flops(cfg: Mapping[str, Any], task: Task) -> list[float]:
    """Return the floating-point operations of each node's local training."""
    client, parts = cfg["client"], [task.train_data(node) for node in range(task.num_nodes)]
    each = training_flops(task.model(), task.example(parts[0]), {}).dense
    steps, batch, epochs = (int(client.get(key) or 0) for key in ("local_steps", "batch_size", "local_epochs"))
    return [each * (steps * min(batch, len(part)) if steps else epochs * len(part)) for part in parts]
