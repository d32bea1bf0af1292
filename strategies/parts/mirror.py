"""Mirrors of the workers: replies coded against a worker's copy on both sides (:mod:`flsparse.wire.mirror`).

The server keeps one dense model a worker, by nature of the method.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from flsparse.clients.parts.mirror import Mirror
from flsparse.codec import Layer
from flsparse.nets.arrays import Arrays
from flsparse.strategies.core.exchange import Node, Reply
from flsparse.strategies.core.part import OnDevice, Round
from flsparse.wire.messages import CONTROL, Scalar


@dataclass
class MirrorMemory:
    """Mirrors.

    Attributes
    ----------
    workers : dict[int, dict[str, np.ndarray]]
        Each worker's mirror, by partition.
    """

    workers: dict[int, Arrays] = field(default_factory=dict)


class ServerMirror(OnDevice):
    """Mirrors on the server.

    Parameters
    ----------
    density : float
        Fraction of the weights that a reply changes in the worker's mirror, in (0, 1].
    codes : bool
        Code replies against the mirror; False: against the broadcast.
    remembers : bool
        Keep each worker's last model.
    """

    paced = False

    def __init__(self, density: float, *, codes: bool, remembers: bool) -> None:
        super().__init__(Mirror(density=density))
        self.codes, self.remembers = codes, remembers
        self.memory: MirrorMemory = MirrorMemory()

    def asks(self, node: Node | None) -> Mapping[str, Scalar]:
        """Ask for replies against the mirror."""
        return super().asks(node) if self.codes else {}

    def mirror(self, node: Node) -> Mapping[str, np.ndarray] | None:
        """Return the worker's mirror; None before its first reply."""
        return self.memory.workers.get(node.partition) if self.codes else None

    def accept(self, reply: Reply, layers: list[Layer], round: Round) -> None:
        """Move the worker's mirror."""
        if self.remembers:
            arrays = {layer.name: np.array(layer.dense(round.wire.specs[layer.name])) for layer in layers}
            self.memory.workers[reply.node.partition] = arrays

    def given_back(self, mean: Arrays, given: Arrays) -> Arrays:
        """Give back a control variate's alone: workers do not start from the broadcast of the model."""
        return {name: given[name] if name.startswith(CONTROL) else array for name, array in mean.items()}

    def preview_update(self, trained: Arrays, received: Arrays) -> Arrays:
        """Return the mirror, moved."""
        return super().preview_update(trained, received) if self.codes else trained
