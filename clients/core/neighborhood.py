"""State of a node of a decentralized run, and how it takes in its neighbors' residuals.

Node i holds its model x_i and, for itself and each neighbor j, a *copy* xhat_j: what everybody who hears j takes j's
model to be. A copy changes by the residuals that j sends, and by nothing else; its holders must never disagree.

The relay has the last word. A residual counts if and only if the relay took it in within its round; the relay then
tells the sender so, and hands it to every neighbor. So a sender keeps its residual *pending*, and changes its own copy
only when it hears that all others will. Rounds are the sequence numbers: a delivery says which rounds it covers, each
is taken in once and in order, and what a node missed is told it later. The checksum in each residual finds what slips
through all the same.

Two nodes mix in a round if both their residuals of that round counted. As both are told the same, the weights stay
symmetric, and the mean of all models is moved by training alone, whatever messages are lost. There are two exceptions.
A node that is resynchronized before it has taken in a round does not mix in it, while its neighbors do. CHOCO-SGD
mixes before it sends, over the links of the round before: a node that is away in the next round, or not drawn for it,
does not pull back, and the mean moves a little.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from flsparse.codec import PayloadError
from flsparse.codec.residuals.dither import Vector
from flsparse.codec.residuals.residual import apply_residual, check_stamp
from flsparse.wire.mail import Delivery, Letter

Copies = dict[int, Vector]


class OutOfStep(Exception):
    """A residual does not fit this node's copies: they differ from its neighbors'.

    Attributes
    ----------
    misfit : tuple[int, ...]
        Sender and round of the residual that does not fit, where that is what is wrong.
    """

    def __init__(self, reason: str, letter: Letter | None = None) -> None:
        super().__init__(reason)
        self.misfit = () if letter is None else (letter.sender, letter.round)


@dataclass(frozen=True)
class Pending:
    """A residual that was sent and of which the relay has not spoken yet.

    Attributes
    ----------
    round : int
    payload : bytes
    threshold : float
        Of the proximal step that ends the round.
    """

    round: int
    payload: bytes
    threshold: float


@dataclass(frozen=True)
class Exchange:
    """One round's exchange, as the method that is to mix sees it.

    Attributes
    ----------
    x : np.ndarray
        Shape (d,): the node's model after its local steps.
    own : np.ndarray
        Shape (d,): its own copy, this round's residual included.
    neighbors : Mapping[int, np.ndarray]
        The copies of the neighbors that took part in the round.
    round : int
    threshold : float
        As stored with the pending residual.
    """

    x: Vector
    own: Vector
    neighbors: Mapping[int, Vector]
    round: int
    threshold: float


Mix = Callable[[Exchange], Vector]


@dataclass(frozen=True)
class Neighborhood:
    """A node's view of the graph at the end of a round. Immutable: a failure halfway has changed nothing.

    Attributes
    ----------
    node : int
        Partition id.
    round : int
        The last round that was taken in; 0 before the first.
    x : np.ndarray
        Shape (d,), float32: the model.
    copies : dict[int, np.ndarray]
        Shape (d,) each, by partition id; its own among them.
    pending : Pending, optional
    live : frozenset of int
        Neighbors that took part in the last round taken in; none where this node's own residual did not count.
    """

    node: int
    round: int
    x: Vector
    copies: Copies = field(default_factory=dict)
    pending: Pending | None = None
    live: frozenset[int] = frozenset()

    @classmethod
    def start(cls, node: int, neighbors: Sequence[int], x: Vector, round: int = 0) -> "Neighborhood":
        """Return the state after ``round`` at the common initialization: every copy is x, and no bit was sent."""
        return cls(node, round, x, dict.fromkeys((node, *neighbors), x), live=frozenset(neighbors))

    def taking_in(self, delivery: Delivery, sizes: Sequence[int], mix: Mix) -> "Neighborhood":
        """Return the state after the rounds of a delivery; rounds taken in before are passed over.

        Parameters
        ----------
        delivery : Delivery
        sizes : sequence of int
            Elements of each array in the flat vectors.
        mix : Callable[[Exchange], np.ndarray]
            Ends a round in which this node took part with training: consensus, proximal step.

        Raises
        ------
        OutOfStep
            A round is missing, or a residual does not belong to the copy that is held.
        """
        if delivery.first > self.round + 1:
            raise OutOfStep(f"rounds {self.round + 1} to {delivery.first - 1} are missing")
        state = self
        for number in range(self.round + 1, delivery.last + 1):
            letters = [each for each in delivery.letters if each.round == number]
            state = state._after(number, letters, number in delivery.accepted, sizes, mix)
        return state

    def _after(
        self, number: int, letters: Sequence[Letter], accepted: bool, sizes: Sequence[int], mix: Mix
    ) -> "Neighborhood":
        """Return the state after one round."""
        own = self.pending if self.pending is not None and self.pending.round == number else None
        if accepted and own is None:
            raise OutOfStep(f"the residual of round {number} counted, but this node no longer knows it")
        if accepted and own is not None:
            letters = [*letters, Letter(self.node, number, own.payload)]
        copies = dict(self.copies)
        for letter in letters:
            copies[letter.sender] = self._applied(letter, sizes)
        live = frozenset(letter.sender for letter in letters if letter.sender != self.node) if accepted else frozenset()
        x = self.x
        if own is not None:
            x = mix(Exchange(x, copies[self.node], {j: copies[j] for j in sorted(live)}, number, own.threshold))
        pending = self.pending if self.pending is not None and self.pending.round > number else None
        return replace(self, round=number, x=x, copies=copies, pending=pending, live=live)

    def _applied(self, letter: Letter, sizes: Sequence[int]) -> Vector:
        if letter.sender not in self.copies:
            raise OutOfStep(f"node {letter.sender} is no neighbor of node {self.node}")
        try:
            check_stamp(letter.payload, letter.sender, letter.round)
            return apply_residual(letter.payload, self.copies[letter.sender], sizes)
        except PayloadError as error:
            raise OutOfStep(f"the residual of node {letter.sender}, round {letter.round}: {error}", letter) from error

    def has_sent(self, round: int) -> bool:
        """Tell whether the residual of a round is made: that round's mail was taken in before."""
        return self.pending is not None and self.pending.round == round

    def sending(self, x: Vector, pending: Pending) -> "Neighborhood":
        """Return the state once a residual has been sent."""
        return replace(self, x=x, pending=pending)

    def resynchronized(self, round: int, copies: Copies) -> "Neighborhood":
        """Return the state with all copies as their other holders have them after a round; the model stays."""
        return Neighborhood(self.node, round, self.x, dict(copies), live=frozenset())


def weighted_pull(own: Vector, neighbors: Mapping[int, Vector], weights: Mapping[int, float]) -> Vector:
    """Return ``sum_j W_ij (xhat_j - xhat_i)`` over the given neighbors, in float32 and in the order of their ids."""
    total = np.zeros_like(own)
    for j in sorted(neighbors):
        total += np.float32(weights[j]) * (neighbors[j] - own)
    return total
