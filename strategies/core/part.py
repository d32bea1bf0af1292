"""Parts of a round: ideas that compose with any averaging method on the server, one a class.

A strategy calls its parts (:mod:`flsparse.strategies.core.chain`), by ascending ``order``::

    open        a round begins, its nodes are known
    joined      arrays travel behind the model
    asks        entries of a message's record for the part's side on the device
    mirror      a reply may be coded against this
    fault       an update is refused
    accept      an update is taken in           (abandon: the round had no quorum)
    given_back  rounding of the broadcast is given back to the mean
    close       the aggregate becomes the model: first the server optimizer's step
    conclude    further exchanges about the model

A part's memory is one data class, which the loop saves by its fields. A part with a side on the device alone is
:class:`OnDevice`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
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

STEP, REST = 10, 20  # order of the parts of a round

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
        Metrics of the round; parts add to them.
    ask : Callable
        ``ask(message_type, arrays, config, hold=True)``: ask the nodes of the accepted updates about a model.
    weigh : Callable
        ``weigh(reply, key)``: a reply's weight by a metric, and its other numbers; None where it is refused.
    model : dict[str, np.ndarray]
        The global model that is broadcast, with the parts' arrays behind it; empty in ``open``, before they joined.
    """

    number: int
    of: int
    nodes: Mapping[int, Node]
    wire: Wire
    metrics: dict[str, Any]
    ask: Ask
    weigh: Weigh
    model: Arrays = field(default_factory=dict)


class RoundPart:
    """A part on the server; each hook does nothing by default.

    Attributes
    ----------
    name : str
        As in ``parts:`` of a configuration.
    order : int
        Place among the parts of a round; of one order, a method's own come first, then the given ones as listed.
    excludes : tuple[str, ...]
        Parts it cannot be combined with, on either side.
    by_partition : bool
        It goes by partition ids: the hello is needed.
    uniform : bool
        The mean is over nodes, whatever their examples.
    paced : bool
        Whether it takes replies that answer an earlier round's model.
    measures : tuple[str, ...]
        Metrics that only the server measures: a node's metric of such a name is reported as ``client_<name>``.
    memory : object
        Data class of the state that outlives a round, or None.
    saved_as : str
        Key of the memory in a checkpoint; empty: its fields join the loop's own.
    """

    name: str = ""
    order: int = REST
    excludes: tuple[str, ...] = ()
    by_partition: bool = False
    uniform: bool = False
    paced: bool = True
    measures: tuple[str, ...] = ()
    memory: Any = None
    saved_as: str = ""

    def __str__(self) -> str:
        return self.name

    def bind(self, model: nn.Module) -> None:
        """Read the structure of a plain model, such as its parameters' names."""

    def open(self, round: Round) -> None:
        """Begin a round, its nodes known."""

    def joined(self, model: ArrayRecord) -> ArrayRecord:
        """Return the model with the part's arrays behind it."""
        return model

    def asks(self, node: Node | None) -> Mapping[str, Scalar]:
        """Return entries of our record for a node; None is any node."""
        return {}

    def mirror(self, node: Node) -> Mapping[str, np.ndarray] | None:
        """Return arrays that a node's reply may be coded against instead of its broadcast."""
        return None

    def fault(self, reply: Reply, layers: list[Layer], round: Round) -> str | None:
        """Return why an update is refused, or None."""
        return None

    def accept(self, reply: Reply, layers: list[Layer], round: Round) -> None:
        """Take in an accepted update."""

    def abandon(self, round: Round) -> None:
        """Undo the accepted updates of a round without a quorum."""

    def given_back(self, mean: Arrays, given: Arrays) -> Arrays:
        """Return the mean with the broadcasts' rounding added, as far as this part allows.

        Parameters
        ----------
        mean : dict[str, np.ndarray]
            Weighted mean of the nodes' arrays.
        given : dict[str, np.ndarray]
            The mean with all rounding added.
        """
        return given

    def close(self, arrays: Arrays, round: Round) -> Arrays:
        """Return the next model, given the aggregate."""
        return arrays

    def conclude(self, arrays: ArrayRecord, round: Round) -> ArrayRecord:
        """Return the model that the round ends with, after further exchanges about it."""
        return arrays

    def preview(self, arrays: Arrays, prunable: list[str], stream: np.random.Generator) -> Arrays:
        """Return a broadcast typical of the middle of a run; ``arrays`` are the model of round 1."""
        return arrays

    def preview_update(self, trained: Arrays, received: Arrays) -> Arrays:
        """Return the arrays that a node sends for a trained model."""
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
        """Return an update after the part."""
        return self.part.preview_update(trained, received)
