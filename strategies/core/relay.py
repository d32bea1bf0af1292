"""The server of a decentralized run: it carries payloads between neighbors and opens none, past the stamp on it.

The log keeps, round by round, the residuals that *counted*: a node's first one within the round. A node is told all
rounds that it has not confirmed; a residual that came too late or twice counts for nobody. A node that has lost its
state, or was away for longer than the log reaches back, gets new copies from the nodes that hold them; without any,
all nodes start again from a common model.

Nodes are not taken at their word. A residual's stamp is read before it counts. A residual that fits nobody is struck
out again: its sender is resynchronized, not the neighbors that could not take it in. Copies are taken only from
holders that were asked, and where these did not bring a node back, another holder is asked.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from flsparse.codec.residuals.residual import check_stamp
from flsparse.topology import Topology
from flsparse.wire.mail import LOST, OK, Answer, Delivery, Letter, Mail


@dataclass
class RelayMemory:
    """State of the relay across rounds.

    Attributes
    ----------
    epoch : int
        The round after which all copies were the common initialization.
    log : dict[int, dict[int, bytes]]
        Residuals that counted, by round and sender.
    applied : dict[int, int]
        Last round that a node confirmed; absent: it has not started.
    lost : set[int]
        Nodes without state.
    misfits : dict[int, tuple[int, int]]
        By node: sender and round of a residual that did not fit its copy.
    accused : dict[int, int]
        The node on whose word a sender is resynchronized, by sender.
    link_bytes : dict[tuple[int, int], int]
        Bytes of residuals by directed link (from, to) of the graph, as if nodes spoke to each other: over the whole
        run. Handed-over copies are not in it: their holder need not be a neighbor of their receiver.
    """

    epoch: int = 0
    log: dict[int, dict[int, bytes]] = field(default_factory=dict)
    applied: dict[int, int] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)
    misfits: dict[int, tuple[int, int]] = field(default_factory=dict)
    accused: dict[int, int] = field(default_factory=dict)
    link_bytes: dict[tuple[int, int], int] = field(default_factory=dict)


class Relay:
    """Log of the nodes' residuals, and of the rounds that each node has taken in.

    Parameters
    ----------
    topology : Topology
        Nodes are partition ids.
    max_backlog : int
        Rounds that are kept for a node that is away, at least 1.
    """

    def __init__(self, topology: Topology, max_backlog: int = 16) -> None:
        self.topology, self.max_backlog = topology, max_backlog
        self.memory: RelayMemory = RelayMemory()
        self._asked: dict[int, list[int]] = {}  # copies asked for in this round, by holder
        self._times_asked: Counter[int] = Counter()  # by copy
        self._given: set[int] = set()  # nodes that were sent the present copies
        self._copies: dict[int, bytes] = {}  # handed over in the last round, for nodes that lack them
        self._copies_after = -1

    # -- to the nodes -----------------------------------------------------------------------------------------------

    def open(self, server_round: int) -> None:
        """Begin a round."""
        self.settle()
        if self._given & self.memory.lost:  # the copies did not bring them back: they may be no good
            self._copies, self._copies_after = {}, -1
        self._given, self._asked = set(), {}
        self.memory.log.setdefault(server_round, {})

    def settle(self) -> set[int]:
        """Find the nodes to resynchronize where a residual did not fit: its sender, unless it fits others.

        Returns
        -------
        set[int]
            Nodes that it did not fit and that are not at fault: they can be told again, without it.
        """
        complained = set(self.memory.misfits)
        for node, (sender, server_round) in self.memory.misfits.items():
            if any(
                self.memory.applied.get(j, self.memory.epoch) >= server_round for j in self.topology.neighbors(sender)
            ):
                self.memory.lost.add(node)
                continue
            if node in (
                self.memory.accused[j] for j in self.memory.accused if j != sender
            ):  # one at a time on one node's word
                self.memory.lost.add(node)
                continue
            self.memory.accused[sender] = node
            self.memory.lost.add(sender)
            for letters in (letters for r, letters in self.memory.log.items() if r >= server_round):
                letters.pop(sender, None)
        self.memory.misfits = {}
        return complained - self.memory.lost

    def mail(self, node: int, server_round: int) -> Mail | None:
        """Return a node's mail before this round; None while it waits to be resynchronized.

        Parameters
        ----------
        node : int
            Partition id.
        server_round : int
            The round it is to take part in; in an evaluation, one more than the last round.
        """
        if self.waits(node, server_round):
            return None
        base = self.memory.applied.get(node, self.memory.epoch)
        copies: dict[int, bytes] = {}
        if node in self.memory.lost:
            base, copies = self._copies_after, {j: self._copies[j] for j in sorted(self._needed(node))}
            self._given.add(node)
        neighbors = self.topology.neighbors(node)
        rounds = range(base + 1, server_round)
        letters = [Letter(j, r, self.memory.log[r][j]) for r in rounds for j in neighbors if j in self.memory.log[r]]
        return Mail(
            round=server_round,
            epoch=self.memory.epoch,
            delivery=Delivery(
                base + 1, server_round - 1, letters, frozenset(r for r in rounds if node in self.memory.log[r])
            ),
            weights={j: float(self.topology.weights[node, j]) for j in neighbors},
            starts=node not in self.memory.applied and not copies,
            copies=copies,
            copies_after=base if copies else 0,
        )

    def waits(self, node: int, server_round: int) -> bool:
        """Tell whether a node is lost, or was away for longer than the log reaches back, and copies for it lack."""
        if self.memory.applied.get(node, self.memory.epoch) + 1 < min(self.memory.log, default=server_round):
            self.memory.lost.add(node)
        return node in self.memory.lost and not self._needed(node) <= set(self._copies)

    def returns(self, node: int, server_round: int) -> bool:
        """Tell whether a lost node can be given copies that came after it was to be told."""
        return node in self.memory.lost - self._given and not self.waits(node, server_round)

    def _needed(self, node: int) -> set[int]:
        return {node, *self.topology.neighbors(node)}

    def wanted(self, waiting: Iterable[int], present: Iterable[int]) -> dict[int, list[int]]:
        """Return which nodes are to hand over which copies in this round.

        Parameters
        ----------
        waiting : Iterable[int]
            Nodes that need copies (see :meth:`waits`).
        present : Iterable[int]
            Nodes that can be asked for them; which of these are lost themselves must be known.
        """
        present = set(present)
        asked: dict[int, list[int]] = {}
        for node in sorted(waiting):
            for copy in sorted(self._needed(node)):  # all of them: copies of different rounds do not go together
                holders = [j for j in self._holders(copy) if j in present]
                if holders and not any(copy in copies for copies in asked.values()):
                    asked.setdefault(holders[self._times_asked[copy] % len(holders)], []).append(copy)
                    self._times_asked[copy] += 1
        self._asked = asked
        return asked

    def _holders(self, copy: int) -> list[int]:
        """Return the nodes that have started and are not lost and hold a copy; its own node first."""
        nodes = [copy, *self.topology.neighbors(copy)]
        return [j for j in nodes if j in self.memory.applied and j not in self.memory.lost]

    @property
    def must_restart(self) -> bool:
        """Whether some lost node needs a copy that nobody holds any more: all that ever did are lost."""
        return any(self._needed(copy) <= self.memory.lost for node in self.memory.lost for copy in self._needed(node))

    def lose_all(self) -> None:
        """Note that no node holds any copy, absent nodes included."""
        self.memory.lost = set(range(self.topology.nodes))

    def restart(self, epoch: int) -> None:
        """Forget everything: after round ``epoch`` all copies are a common model again."""
        self.memory.epoch = epoch
        self.memory.log = {r: {} for r in self.memory.log if r > epoch}
        self.memory.applied, self.memory.lost, self.memory.misfits, self.memory.accused = {}, set(), {}, {}
        self._copies, self._copies_after, self._given, self._asked = {}, -1, set(), {}

    # -- from the nodes ---------------------------------------------------------------------------------------------

    def hear(self, node: int, server_round: int, answer: Answer, *, training: bool = True) -> bool:
        """Take in a node's answer; tell whether its residual counts. One that answers for another round is ignored.

        Parameters
        ----------
        node : int
            Partition id.
        server_round : int
            The round it answers in.
        answer : Answer
        training : bool
            Whether it brings a residual; an evaluation does not.

        Raises
        ------
        ValueError
            Its residual is damaged or not of this node and round, or it brings copies that it was not asked for.
            Nothing was taken in.
        """
        if answer.status == LOST:
            self._note_lost(node, answer)
        if answer.status != OK:
            return False
        if answer.applied != server_round - training:  # a node that answers has taken in all it was told
            return False
        if training:
            check_stamp(answer.payload, node, server_round)
            if unasked := set(answer.copies) - set(self._asked.get(node, ())):
                raise ValueError(f"it brings copies of {sorted(unasked)} that it was not asked for")
        self.memory.applied[node] = answer.applied
        self.memory.lost.discard(node)
        self.memory.accused.pop(node, None)
        self.memory.misfits.pop(node, None)
        if not training or node in self.memory.log.get(server_round, {}):
            return False
        self._take_copies(answer)
        self.memory.log[server_round][node] = answer.payload
        for j in self.topology.neighbors(node):
            self.memory.link_bytes[node, j] = self.memory.link_bytes.get((node, j), 0) + len(answer.payload)
        return True

    def _note_lost(self, node: int, answer: Answer) -> None:
        """Believe a node that a residual it was told does not fit, until the round is over; else it is lost."""
        sender, server_round = answer.misfit if len(answer.misfit) == 2 else (-1, -1)
        told = sender in self.memory.log.get(server_round, {}) and server_round > self.memory.applied.get(
            node, self.memory.epoch
        )
        if node not in self.memory.lost and told and sender in self.topology.neighbors(node):
            self.memory.misfits[node] = (sender, server_round)
        else:
            self.memory.lost.add(node)

    def _take_copies(self, answer: Answer) -> None:
        """Keep the copies that were handed over."""
        if answer.copies and answer.applied != self._copies_after:
            self._copies, self._copies_after, self._given = {}, answer.applied, set()
        self._copies.update(answer.copies)

    def close(self, server_round: int) -> None:
        """End a round: forget rounds that all nodes have confirmed, or beyond the backlog."""
        if not self.memory.lost or server_round - self._copies_after > self.max_backlog + 1:
            self._copies, self._copies_after = {}, -1
        reached = [self.memory.applied[j] for j in self.memory.applied if j not in self.memory.lost]
        everyone = len(reached) == self.topology.nodes
        oldest = min(reached) + 1 if everyone else 0
        oldest = max(oldest, server_round + 1 - self.max_backlog)
        if self._copies:
            oldest = min(oldest, self._copies_after + 1)
        self.memory.log = {r: letters for r, letters in self.memory.log.items() if r >= oldest}
