"""All data in one place, on the server: one node trains on the data of all; a baseline.

    w <- local training of w on the data of all nodes together

What a federation would learn if its data could be brought together: where they can, since one data set was divided
among the nodes, not where each device holds its own.
"""

from typing import ClassVar

from flsparse.clients.core.method import LocalMethod
from flsparse.clients.pooled import PooledLocal
from flsparse.configs import Fixed, settled
from flsparse.strategies.core.exchange import Node
from flsparse.strategies.fedavg import FedAvg


class Pooled(FedAvg):
    """Training in one place, measured by all nodes.

    Parameters
    ----------
    **fedavg
        Parameters of :class:`FedAvg`. In each round the node of the lowest partition id trains ``local_epochs`` times
        on all data, whatever ``fraction_train``. Plain arrays (``values="raw"``) make it ordinary training.
    """

    name = "pooled"
    by_node = True
    fixed: ClassVar[Fixed] = {
        "fraction_train": (1.0, "one node trains, on all data"),
        "min_train_nodes": (1, "one node trains, on all data"),
        "weighting": ("equal", "one node trains, on all data"),
    }

    def __init__(self, **fedavg: object) -> None:
        super().__init__(**settled(fedavg, self.fixed))

    def method(self, server_round: int, node: Node | None = None) -> LocalMethod:
        """Ask for training on all data."""
        return PooledLocal()

    def sample(self, fraction: float, at_least: int, server_round: int, purpose: str) -> list[Node]:
        """Return the first node where nodes are to train, else a sample."""
        if purpose == "sampling":
            return self.roster.in_partition_order()[:1]
        return super().sample(fraction, at_least, server_round, purpose)
