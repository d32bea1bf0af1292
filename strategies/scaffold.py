"""SCAFFOLD on the server (Karimireddy et al. 2020, arXiv 1910.06378): a control variate beside the model.

    send x and c;  nodes correct every step by c - c_i                    (see flsparse.clients.scaffold)
    x <- mean over the sampled of y_m                                     uniform; server learning rate 1
    c <- c + |S| / N * (mean over the sampled of (c + change of c_m) - c)

Both travel in one payload, so an exchange carries twice the arrays; ``c`` starts at 0.

``c`` is the mean of the ``c_i`` of all N nodes that the server has met; one that is away stays in it, as one that is
not sampled does. A node that joins has ``c_i = 0``, so ``c`` falls by ``N / (N + 1)``. What a node has lost cannot be
taken out of ``c`` again, and the corrections would never more add up to nothing: at its next reply, which says so,
``c`` and all ``c_i`` are set back to 0.
"""

from collections.abc import Iterable, Mapping
from logging import WARNING
from typing import Any, ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import nn

from flsparse._flwr import log
from flsparse.clients.core.method import LocalMethod
from flsparse.clients.scaffold import LOST, ScaffoldLocal
from flsparse.codec import Layer
from flsparse.configs import Fixed, settled
from flsparse.nets.batch_norm import statistics_names
from flsparse.strategies.core.exchange import Node, Reply
from flsparse.strategies.core.server_optimizer import Arrays
from flsparse.strategies.fedavg import FedAvg
from flsparse.wire.messages import CONTROL, to_numpy, to_record


class ServerControl:
    """The control variate of the server.

    Parameters
    ----------
    parameters : list[str]
        Names of the model's parameters; empty: all floating arrays but batch-norm statistics.

    Attributes
    ----------
    arrays : dict[str, np.ndarray]
        ``c``.
    confirmed : dict[int, int]
        Round of each node's last accepted reply, by partition: ``c`` holds the change that came with it, and no later.
        A node that is not there has ``c_i = 0``.
    met : set[int]
        Partitions of the nodes that ``c`` is the mean of.
    """

    def __init__(self, parameters: list[str]) -> None:
        self.parameters = parameters
        self.arrays: Arrays = {}
        self.confirmed: dict[int, int] = {}
        self.met: set[int] = set()
        self._is_lost = False

    def meet(self, nodes: Iterable[Node]) -> None:
        """Take in nodes that have joined: they stand at 0."""
        before = len(self.met)
        self.met |= {node.partition for node in nodes}
        if 0 < before < len(self.met):
            share = before / len(self.met)
            self.arrays = {name: np.asarray(share * c, c.dtype) for name, c in self.arrays.items()}

    def join(self, model: ArrayRecord) -> ArrayRecord:
        """Return the model with the control variate behind it."""
        arrays = to_numpy(model)
        statistics = set(statistics_names(arrays))
        names = self.parameters or [n for n, x in arrays.items() if x.dtype.kind == "f" and n not in statistics]
        self.arrays = {name: self.arrays.get(name, np.zeros_like(arrays[name])) for name in names}
        return to_record({**arrays, **{CONTROL + name: c for name, c in self.arrays.items()}})

    def confirmed_by(self, node: Node | None) -> int:
        """Return the round of a node's last accepted reply; 0: none, so its ``c_i`` is 0."""
        return 0 if node is None else self.confirmed.get(node.partition, 0)

    def accept(self, reply: Reply) -> None:
        """Note a reply whose change will be in the control variate, and whether what was in there before is lost."""
        self.confirmed[reply.node.partition] = reply.server_round
        self._is_lost |= any(record.get(LOST, 0) for record in reply.content.metric_records.values())

    def reset(self) -> None:
        """Let the server's variate and all nodes' start again at 0."""
        self.arrays, self.confirmed, self._is_lost = {}, {}, False

    def part(self, mean: Mapping[str, np.ndarray], replies: int) -> Arrays:
        """Take the nodes' mean apart: return the model, and move the control variate by its share of the change.

        Parameters
        ----------
        mean : Mapping[str, np.ndarray]
            Mean of what the sampled nodes sent.
        replies : int
            ``|S|``: those that were accepted.
        """
        share = replies / max(1, len(self.met))
        for name, c in self.arrays.items():
            self.arrays[name] = np.asarray(c + share * (mean[CONTROL + name] - c), c.dtype)
        if self._is_lost:
            log(WARNING, "A node has lost its control variate; all start again at 0")
            self.reset()
        return {name: x for name, x in mean.items() if not name.startswith(CONTROL)}

    def state_dict(self) -> dict[str, object]:
        """Return the variate and whose changes it holds."""
        confirmed = {str(partition): server_round for partition, server_round in self.confirmed.items()}
        return {"arrays": dict(self.arrays), "confirmed": confirmed, "met": sorted(self.met)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.arrays = dict(state["arrays"])
        self.confirmed = {int(partition): server_round for partition, server_round in state["confirmed"].items()}
        self.met = set(state["met"])


class Scaffold(FedAvg):
    """FedAvg of nodes that correct each other's drift.

    Parameters
    ----------
    **fedavg
        Parameters of :class:`FedAvg`. The server optimizer is plain averaging, and ``hello`` is True: what nodes keep
        goes by partition.
    """

    name = "scaffold"
    weighted = False
    fixed: ClassVar[Fixed] = {
        "server_optimizer": ("none", "control variates correct plain averaging"),
        "server_lr": (1.0, "control variates correct plain averaging"),
        "hello": (True, "control variates go by partition"),
    }

    def __init__(self, **fedavg: object) -> None:
        super().__init__(**settled(fedavg, self.fixed))
        self.control = ServerControl([])

    def method(self, server_round: int, node: Node | None = None) -> LocalMethod:
        """Tell the node which of its control variates is in the server's."""
        return ScaffoldLocal(confirmed=self.control.confirmed_by(node))

    def bind(self, model: nn.Module) -> None:
        """Learn the parameters' names: control variates are for them alone."""
        self.control.parameters = [name for name, _ in model.named_parameters()]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the control variate with the model."""
        self.control.meet(self.nodes.values())
        return super().configure_train(server_round, self.control.join(arrays), config, grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send it here too: what nodes hold has both."""
        return super().configure_evaluate(server_round, self.control.join(arrays), config, grid)

    def accept(self, reply: Reply, layers: list[Layer]) -> None:
        """Note the node's round."""
        self.control.accept(reply)

    def abandon(self) -> None:
        """Let control variates start at 0: what nodes have moved theirs by is not in the server's."""
        self.control.reset()

    def after_aggregation(self, arrays: Arrays, server_round: int) -> Arrays:
        """Move the control variate; return the model."""
        return self.control.part(arrays, self.round_metrics["replies"])

    def state_dict(self) -> dict[str, object]:
        """Return FedAvg's state and the control variate."""
        return {**super().state_dict(), "control": self.control.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self.control.load_state_dict(state["control"])  # type: ignore[arg-type]
