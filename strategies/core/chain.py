"""The parts of a strategy as one part: each hook calls theirs, in the order of a round."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from flwr.app import ArrayRecord
from torch import nn

from flsparse.clients.core.part import Part, check_parts
from flsparse.codec import Layer
from flsparse.configs import Fixed
from flsparse.nets.arrays import Arrays
from flsparse.strategies.core.exchange import Node, Reply
from flsparse.strategies.core.part import OnDevice, Round, RoundPart
from flsparse.wire.messages import Scalar


class Chain(RoundPart):
    """Parts by ascending order; of one order, a method's own come first, then the given ones as listed.

    Parameters
    ----------
    given : Sequence[Part or RoundPart]
        Parts that the user adds to the method.
    hello : bool
        Partition ids are known.
    fixed : Mapping[str, tuple[object, str]]
        The method's fixed arguments (see :func:`flsparse.configs.settled`): a part of such a name is refused.

    Raises
    ------
    ValueError
        A given part is fixed by the method, or lacks its other side.
    """

    def __init__(self, given: Sequence[Part | RoundPart], *, hello: bool, fixed: Fixed) -> None:
        for part in given:
            if part.name in fixed:
                raise ValueError(f"parts: {part.name!r} cannot be chosen, since {fixed[part.name][1]}; leave it out")
        self.hello = hello
        self._own: list[RoundPart] = []
        self._given = [_on_server(part) for part in given]
        self.add()

    def add(self, *own: RoundPart) -> None:
        """Add parts of the method.

        Raises
        ------
        ValueError
            Two parts cannot stand beside each other, or one goes by partition ids and the nodes are not asked for them.
        """
        self._own += own
        self._parts = sorted([*self._own, *self._given], key=lambda part: part.order)
        self.uniform = any(part.uniform for part in self._parts)
        check_parts(self._parts)
        for part in self._parts:
            if part.by_partition and not self.hello:
                raise ValueError(f"parts: {part.name!r} goes by partition ids, which the hello tells: say hello=True")

    def __iter__(self) -> Iterator[RoundPart]:
        return iter(self._parts)

    def __str__(self) -> str:
        return ", ".join(map(str, self)) or "none"

    def bind(self, model: nn.Module) -> None:
        """Let each part read the structure of a plain model."""
        for part in self:
            part.bind(model)

    def open(self, round: Round) -> None:
        """Let each part begin a round."""
        for part in self:
            part.open(round)

    def joined(self, model: ArrayRecord) -> ArrayRecord:
        """Return the model with all parts' arrays behind it."""
        for part in self:
            model = part.joined(model)
        return model

    def asks(self, node: Node | None) -> Mapping[str, Scalar]:
        """Return the entries of all parts, and the names of those with a side on the device, in one text."""
        asked: dict[str, Scalar] = {}
        names = []
        for part in self:
            entries = dict(part.asks(node))
            if name := entries.pop("parts", ""):
                names.append(str(name))
            asked |= entries
        return asked | ({"parts": ",".join(names)} if names else {})

    def mirror(self, node: Node) -> Mapping[str, np.ndarray] | None:
        """Return the first mirror that a part has of a node."""
        mirrors = (part.mirror(node) for part in self)
        return next((mirror for mirror in mirrors if mirror is not None), None)

    def fault(self, reply: Reply, layers: list[Layer], round: Round) -> str | None:
        """Return the first reason to refuse an update."""
        faults = (part.fault(reply, layers, round) for part in self)
        return next((fault for fault in faults if fault is not None), None)

    def accept(self, reply: Reply, layers: list[Layer], round: Round) -> None:
        """Let each part take in an accepted update."""
        for part in self:
            part.accept(reply, layers, round)

    def abandon(self, round: Round) -> None:
        """Let each part undo the accepted updates of a round without a quorum."""
        for part in self:
            part.abandon(round)

    def given_back(self, mean: Arrays, given: Arrays) -> Arrays:
        """Return the mean with the broadcasts' rounding added, as far as all parts allow."""
        for part in self:
            given = part.given_back(mean, given)
        return given

    def close(self, arrays: Arrays, round: Round) -> Arrays:
        """Return the next model, after all parts."""
        for part in self:
            arrays = part.close(arrays, round)
        return arrays

    def conclude(self, arrays: ArrayRecord, round: Round) -> ArrayRecord:
        """Return the model that the round ends with, after all parts."""
        for part in self:
            arrays = part.conclude(arrays, round)
        return arrays

    def preview(self, arrays: Arrays, prunable: list[str], stream: np.random.Generator) -> Arrays:
        """Return a broadcast of the middle of a run, last part first: it is pruned before arrays join it."""
        for part in reversed(self._parts):
            arrays = part.preview(arrays, prunable, stream)
        return arrays

    def preview_update(self, trained: Arrays, received: Arrays) -> Arrays:
        """Return the arrays that a node sends for a trained model."""
        for part in self:
            trained = part.preview_update(trained, received)
        return trained


def _on_server(part: Part | RoundPart) -> RoundPart:
    if isinstance(part, RoundPart):
        return part
    if part.needs_server:
        raise ValueError(f"parts: {part.name!r} needs its side on the server, which the methods add that use it")
    return OnDevice(part)
