"""Parts of a round: ideas that compose with any averaging method on the server, one a class.

A strategy has a list of parts and calls, in its order::

    open        a round begins, its nodes are known
    joined      arrays travel behind the model
    asks        our record of a message says what the part's side on the device is to do
    mirror      a reply may be coded against this
    fault       an update is refused
    accept      an update is taken in           (abandon: the round had no quorum)
    given_back  rounding of the broadcast is given back to the mean
    close       the aggregate becomes the model
    conclude    further exchanges about the model

A part's memory is one data class, which the loop saves by its fields. A part with a side on the device alone is
:class:`OnDevice`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from torch import nn

from flsparse.clients.core.part import PARTS, Part, asked_entries
from flsparse.codec import Layer
from flsparse.nets.arrays import Arrays
from flsparse.strategies.core.courier import Wire
from flsparse.strategies.core.exchange import Node, Reply
from flsparse.wire.messages import Scalar

Ask = Callable[..., Iterable[Reply]]
Weigh = Callable[[Reply, str], "tuple[float, dict[str, float]] | None"]


@dataclass(frozen=True)
class Round:
    """A round, as its parts see it.

    Attributes
    ----------
    number, of : int
        This round, from 1, and the last one.
    nodes : Mapping[int, Node]
        Known nodes, by node id.
    wire : Wire
        Specs and prunable names of the model, counts, refusals.
    metrics : dict[str, Any]
        What the round measured; parts add to it.
    ask : Callable
        ``ask(message_type, arrays, config, hold=True)``: ask the nodes whose updates were accepted about a model.
    weigh : Callable
        ``weigh(reply, key)``: a reply's weight by a metric, and its other numbers; None where it is refused.
    """

    number: int
    of: int
    nodes: Mapping[int, Node]
    wire: Wire
    metrics: dict[str, Any]
    ask: Ask
    weigh: Weigh


class RoundPart:
    """A part on the server; each hook does nothing by default.

    Attributes
    ----------
    name : str
        As in ``parts:`` of a configuration.
    excludes : tuple[str, ...]
        Parts that it cannot stand beside, on either side.
    by_partition : bool
        It goes by partition ids: the hello is needed.
    uniform : bool
        The mean is over nodes, whatever their examples.
    measures : tuple[str, ...]
        Metrics that only the server measures: a node's metric of such a name is reported as ``client_<name>``.
    memory : object
        Data class of what outlives a round, or None.
    saved_as : str
        Key of the memory in a checkpoint; empty: its fields stand beside the loop's own.
    """

    name: str = ""
    excludes: tuple[str, ...] = ()
    by_partition: bool = False
    uniform: bool = False
    measures: tuple[str, ...] = ()
    memory: Any = None
    saved_as: str = ""

    def bind(self, model: nn.Module) -> None:
        """Learn what a plain model is made of, such as its parameters' names."""

    def open(self, round: Round) -> None:
        """Begin a round, its nodes known."""

    def joined(self, model: ArrayRecord) -> ArrayRecord:
        """Return the model with what travels behind it."""
        return model

    def asks(self, node: Node | None) -> Mapping[str, Scalar]:
        """Return entries of our record for a node; None is any node."""
        return {}

    def mirror(self, node: Node) -> Mapping[str, np.ndarray] | None:
        """Return arrays that a node's reply may be coded against, beside its broadcast."""
        return None

    def fault(self, reply: Reply, layers: list[Layer], round: Round) -> str | None:
        """Return why an update is refused, or None."""
        return None

    def accept(self, reply: Reply, layers: list[Layer], round: Round) -> None:
        """Take in an accepted update."""

    def abandon(self, round: Round) -> None:
        """Forget what was accepted in a round without a quorum."""

    def given_back(self, mean: Arrays, given: Arrays) -> Arrays:
        """Return the mean with as much of the broadcasts' rounding as this part wants given back to it.

        Parameters
        ----------
        mean : dict[str, np.ndarray]
            Weighted mean of what the nodes sent.
        given : dict[str, np.ndarray]
            The same, all rounding given back.
        """
        return given

    def close(self, arrays: Arrays, round: Round) -> Arrays:
        """Return the next model, given the aggregate."""
        return arrays

    def conclude(self, arrays: ArrayRecord, round: Round) -> ArrayRecord:
        """Return the model that the round ends with, after further exchanges about it."""
        return arrays

    def nodes_are_new(self) -> None:
        """Learn that node state is lost: the run was resumed as another one."""

    def preview(self, arrays: Arrays, prunable: list[str], stream: np.random.Generator) -> Arrays:
        """Return a broadcast as it will be in the middle of a run; ``arrays`` are those of round 1."""
        return arrays

    def preview_update(self, trained: Arrays, received: Arrays) -> Arrays:
        """Return what a node sends of a trained model."""
        return trained


class OnDevice(RoundPart):
    """A part that has a side on the device alone; the server names it and sends its settings.

    Parameters
    ----------
    part : Part
        The device's data class.

    Raises
    ------
    ValueError
        The part is not registered: no node would know it.
    """

    def __init__(self, part: Part) -> None:
        if PARTS.get(part.name) is not type(part):
            raise ValueError(f"parts: {part.name!r} is not registered, so no node knows it: see register_part")
        self.part, self.name, self.excludes = part, part.name, part.excludes

    def asks(self, node: Node | None) -> Mapping[str, Scalar]:
        """Return the part's settings."""
        return asked_entries(self.part)

    def preview_update(self, trained: Arrays, received: Arrays) -> Arrays:
        """Return what the part leaves of an update."""
        return self.part.preview_update(trained, received)
