"""The server's control variate (SCAFFOLD, Karimireddy et al. 2020, arXiv 1910.06378), for any averaging method.

    send c behind the model;  nodes correct every step by c - c_i              (see flsparse.clients.parts.control)
    c <- c + |S| / N * (mean over the sampled of (c + change of c_m) - c)

Both travel in one payload, so an exchange carries twice the arrays; ``c`` starts at 0.

``c`` is the mean of the ``c_i`` of all N nodes that the server has met; one that is away stays in it, as one that is
not sampled does. A node that joins has ``c_i = 0``, so ``c`` falls by ``N / (N + 1)``. A lost ``c_i``
cannot be taken out of ``c`` again, and the corrections would no longer sum to 0: at the node's next reply, which
reports the loss, ``c`` and all ``c_i`` are reset to 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from logging import WARNING

import numpy as np
from flwr.app import ArrayRecord
from torch import nn

from flsparse._flwr import log
from flsparse.clients.parts.control import LOST, ControlVariates
from flsparse.codec import Layer
from flsparse.nets.arrays import Arrays
from flsparse.nets.batch_norm import statistics_names
from flsparse.strategies.core.exchange import Node, Reply
from flsparse.strategies.core.part import OnDevice, Round
from flsparse.wire.messages import CONTROL, Scalar, to_numpy, to_record


@dataclass
class ControlMemory:
    """The control variate of the server.

    Attributes
    ----------
    arrays : dict[str, np.ndarray]
        ``c``, by parameter.
    confirmed : dict[int, int]
        Round of each node's last accepted reply, by partition: ``c`` holds the change that came with it, and no later.
        A node that is not there has ``c_i = 0``.
    met : set[int]
        Partitions of the nodes that ``c`` is the mean of.
    """

    arrays: Arrays = field(default_factory=dict)
    confirmed: dict[int, int] = field(default_factory=dict)
    met: set[int] = field(default_factory=set)


class ServerControl(OnDevice):
    """The control variate as a part of a round."""

    paced = False

    saved_as = "control"
    by_partition = True
    uniform = True

    def __init__(self) -> None:
        super().__init__(ControlVariates())
        self.memory: ControlMemory = ControlMemory()
        self._parameters: list[str] = []  # of the model; empty: all floating arrays but batch-norm statistics
        self._is_lost = False
        self._accepted = 0

    def bind(self, model: nn.Module) -> None:
        """Learn the parameters' names: control variates are for them alone."""
        self._parameters = [name for name, _ in model.named_parameters()]

    def open(self, round: Round) -> None:
        """Take in nodes that have joined: they stand at 0."""
        memory, self._accepted = self.memory, 0
        before = len(memory.met)
        memory.met |= {node.partition for node in round.nodes.values()}
        if 0 < before < len(memory.met):
            share = before / len(memory.met)
            memory.arrays = {name: np.asarray(share * c, c.dtype) for name, c in memory.arrays.items()}

    def joined(self, model: ArrayRecord) -> ArrayRecord:
        """Return the model with the control variate behind it."""
        return to_record(self._with_control(to_numpy(model)))

    def _with_control(self, arrays: Arrays) -> Arrays:
        statistics = set(statistics_names(arrays))
        names = self._parameters or [n for n, x in arrays.items() if x.dtype.kind == "f" and n not in statistics]
        control = {name: self.memory.arrays.get(name, np.zeros_like(arrays[name])) for name in names}
        self.memory.arrays = control
        return {**arrays, **{CONTROL + name: c for name, c in control.items()}}

    def asks(self, node: Node | None) -> Mapping[str, Scalar]:
        """Return the round of the node's last control variate that ``c`` holds."""
        confirmed = 0 if node is None else self.memory.confirmed.get(node.partition, 0)
        return {**super().asks(node), f"{self.name}.confirmed": confirmed}

    def accept(self, reply: Reply, layers: list[Layer], round: Round) -> None:
        """Note a reply: its change joins the control variate; its node may have lost ``c_i``."""
        self.memory.confirmed[reply.node.partition] = round.number
        self._is_lost |= any(record.get(LOST, 0) for record in reply.content.metric_records.values())
        self._accepted += 1

    def abandon(self, round: Round) -> None:
        """Start again at 0: the changes of nodes that were accepted are not in the server's variate."""
        self._reset()

    def _reset(self) -> None:
        memory, self._is_lost = self.memory, False
        memory.arrays, memory.confirmed = {}, {}

    def close(self, arrays: Arrays, round: Round) -> Arrays:
        """Return the model, and move the control variate by its share of the nodes' mean change."""
        share = self._accepted / max(1, len(self.memory.met))
        for name, c in self.memory.arrays.items():
            self.memory.arrays[name] = np.asarray(c + share * (arrays[CONTROL + name] - c), c.dtype)
        if self._is_lost:
            log(WARNING, "A node has lost its control variate; all start again at 0")
            self._reset()
        return {name: x for name, x in arrays.items() if not name.startswith(CONTROL)}

    def preview(self, arrays: Arrays, prunable: list[str], stream: np.random.Generator) -> Arrays:
        """Return the broadcast with mean gradients behind it: dense, but where a weight was pruned."""
        return self._with_control(dict(arrays)) | {
            CONTROL + name: (stream.standard_normal(c.shape) * ((arrays[name] != 0) | (c.ndim < 2))).astype(c.dtype)
            for name, c in self.memory.arrays.items()
        }
