"""A round of split learning at one node, as data: the state from one message to the next."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flsparse import rng
from flsparse.clients.core.state import NodeState
from flsparse.schedules import batches_of_a_pass
from flsparse.wire.messages import Scalar

_STORED = "split-session"


@dataclass(frozen=True)
class Session:
    """Settings and progress of one round; each step replaces it.

    Attributes
    ----------
    method : Mapping[str, Any]
        Hyper-parameters of the method that the round began with.
    config : Mapping[str, int | float | str | bool]
        Its training configuration.
    round, node, seed : int
        Randomness is derived from these; ``node`` is the partition id as the server knows it.
    values, rounding : str
        Codec of the update at the end of the round.
    parts : Mapping[str, int | float | str | bool]
        Entries of the record that ask for parts of that update.
    step : int
        Optimizer steps done in this round.
    samples : int
        Samples sent through the bottom.
    loss : float
        Sum over the samples, in nats; with a head.
    correct : int
        Samples classified correctly; with a head.
    encode_s, compute_s : float
        Time spent, in seconds.
    """

    method: Mapping[str, Any]
    config: Mapping[str, Scalar]
    round: int
    node: int
    seed: int
    values: str
    rounding: str
    parts: Mapping[str, Scalar]
    step: int = 0
    samples: int = 0
    loss: float = 0.0
    correct: int = 0
    encode_s: float = 0.0
    compute_s: float = 0.0

    def save(self, state: NodeState) -> None:
        """Store it in the place of the last one."""
        state.values[_STORED] = json.dumps(asdict(self))

    @classmethod
    def load(cls, state: NodeState, server_round: object, step: object) -> "Session":
        """Return the session of a node.

        Parameters
        ----------
        state : NodeState
            Where :meth:`save` stored it.
        server_round, step : int
            The server's view of where the node is.

        Raises
        ------
        ValueError
            The node has lost its state, or is at another step.
        """
        stored = state.values.get(_STORED)
        session = cls(**json.loads(str(stored))) if stored else None
        at = (session.round, session.step) if session else None
        if session is None or at != (server_round, step):
            raise ValueError(f"this node is at round and step {at}, not {(server_round, step)}: it has lost its state")
        return session

    def stream(self, purpose: str) -> np.random.Generator:
        """Return the randomness of this step for a purpose."""
        return rng.stream(self.seed, self.round, self.node, f"split/{self.step}/{purpose}")

    def derived(self, purpose: str) -> int:
        """Return the seed of this step for a purpose."""
        return rng.derive(self.seed, self.round, self.node, f"split/{self.step}/{purpose}")

    def batches(self, size: int, count: int) -> list[np.ndarray]:
        """Return the positions of this step's samples, ``count`` batches, in a node's ``size`` samples."""
        first = int(self.config["first-batch"]) + self.step * count
        batch_size = int(self.config["batch-size"])
        return [batch_positions(size, batch_size, i, self.seed, self.node) for i in range(first, first + count)]


def batch_positions(size: int, batch_size: int, index: int, seed: int, node: int) -> np.ndarray:
    """Return which samples the ``index``-th batch of a node holds, counted over the whole run.

    Each pass over the data is shuffled by its own seed, and has :func:`batches_of_a_pass`.

    Parameters
    ----------
    size : int
        Samples of the node, at least 1.
    batch_size, index, seed, node : int
        ``index`` from 0; ``node`` is the partition id.

    Examples
    --------
    >>> [len(batch_positions(9, 4, i, 0, 0)) for i in range(4)]
    [4, 5, 4, 5]
    """
    count = batches_of_a_pass(size, batch_size)
    epoch, place = divmod(index, count)
    order = rng.stream(seed, epoch, node, "split-batches").permutation(size)
    return order[place * batch_size : (place + 1) * batch_size if place + 1 < count else size]
