"""SCAFFOLD on the server (Karimireddy et al. 2020, arXiv 1910.06378): FedAvg with control variates.

send x and c;  nodes correct every step by c - c_i                    (see flsparse.clients.parts.control)
x <- mean over the sampled of y_m                                     uniform; server learning rate 1
c <- c + |S| / N * (mean over the sampled of (c + change of c_m) - c) (see flsparse.strategies.parts.control)
"""

from typing import ClassVar

from flsparse.clients.core.method import LocalMethod
from flsparse.clients.scaffold import ScaffoldLocal
from flsparse.configs import Fixed, settled
from flsparse.strategies.core.exchange import Node
from flsparse.strategies.fedavg import FedAvg
from flsparse.strategies.parts.control import ServerControl


class Scaffold(FedAvg):
    """FedAvg of nodes that correct each other's drift.

    Parameters
    ----------
    **fedavg
        Parameters of :class:`FedAvg`. The server optimizer is plain averaging, of nodes that weigh alike, and
        ``hello`` is True: node state goes by partition.
    """

    name = "scaffold"
    fixed: ClassVar[Fixed] = {
        "server_optimizer": ("none", "control variates correct plain averaging"),
        "server_lr": (1.0, "control variates correct plain averaging"),
        "weighting": ("equal", "control variates are means over nodes"),
        "hello": (True, "control variates go by partition"),
    }

    def __init__(self, **fedavg: object) -> None:
        super().__init__(**settled(fedavg, self.fixed))
        self.control = ServerControl()
        self.parts.add(self.control)

    def method(self, server_round: int, node: Node | None = None) -> LocalMethod:
        """Ask for plain local training; the part corrects it."""
        return ScaffoldLocal()
