"""What the round loop itself remembers across rounds."""

from dataclasses import dataclass

from flsparse.metering.ledger import Ledger
from flsparse.nets.arrays import Arrays


@dataclass
class LoopMemory:
    """State of the round loop across rounds.

    Attributes
    ----------
    next_round : int
        The round to run next, from 1.
    ledger : Ledger
        Bytes of every message.
    counts : dict[str, int]
        Failures, refused payloads and the like, of the run.
    references : dict[str, dict[str, np.ndarray]]
        Broadcasts that nodes may hold, by reference id, the least recently used first.
    held : dict[int, str]
        Id of the reference that each node holds, by node id; empty with a hello, which asks for it again.
    """

    next_round: int
    ledger: Ledger
    counts: dict[str, int]
    references: dict[str, Arrays]
    held: dict[int, str]
