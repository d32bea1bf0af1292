"""Sparsity ramp: the sparsity of each round, up to the target."""

import math


def sparsity_ramp(server_round: int, num_rounds: int, target: float) -> float:
    """Return the sparsity to prune to in one round: a cubic rise over the first third of the run, then the target.

        s_t = target * (1 - (1 - t/R)^3),    R = ceil(num_rounds / 3)

    A global prune of near-initial weights to a high sparsity empties whole layers; rising gradually avoids it.
    SparsyFed's paper has no ramp.

    Parameters
    ----------
    server_round : int
        The round, 1-based.
    num_rounds : int
        Rounds of the whole run.
    target : float
        Final sparsity in [0, 1).

    Examples
    --------
    >>> [round(sparsity_ramp(t, 12, 0.96), 3) for t in (1, 2, 3, 4, 12)]
    [0.555, 0.84, 0.945, 0.96, 0.96]
    """
    if server_round < 1 or num_rounds < 1:
        raise ValueError(f"server_round and num_rounds must be at least 1, got {server_round} and {num_rounds}")
    if not 0.0 <= target < 1.0:
        raise ValueError(f"target must be in [0, 1), got {target}")
    progress = min(1.0, server_round / math.ceil(num_rounds / 3))
    return target * (1.0 - (1.0 - progress) ** 3)
