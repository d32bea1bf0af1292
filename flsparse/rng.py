"""All randomness of a federation, derived from one seed.

Every draw names its purpose, so that runtimes that handle nodes in different orders draw the same numbers.
"""

import hashlib

import numpy as np


def derive(seed: int, round: int, node: int, purpose: str) -> int:
    """Derive an independent seed for one purpose of one node in one round.

    Parameters
    ----------
    seed : int
        The run's seed.
    round : int
        Server round, from 1; 0 before the first round.
    node : int
        Partition id, from 0; -1 for the server.
    purpose : str
        Purpose of the numbers, such as ``"batches"`` or ``"sampling"``.

    Returns
    -------
    int
        A seed in [0, 2**63), fit for ``torch.Generator.manual_seed`` and ``np.random.default_rng``.
    """
    digest = hashlib.blake2b(f"{seed}/{round}/{node}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stream(seed: int, round: int, node: int, purpose: str) -> np.random.Generator:
    """Return the NumPy generator of one purpose of one node in one round (see :func:`derive`)."""
    return np.random.default_rng(derive(seed, round, node, purpose))
