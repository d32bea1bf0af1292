"""Learning rates by round, local steps by learning rate, and batches by the amount of data."""

from math import cos, floor, pi


def learning_rate(
    server_round: int, num_rounds: int, initial: float, final: float = 0.0, schedule: str = "geometric"
) -> float:
    """Return the learning rate of one round, with ``t = server_round - 1`` of ``T`` rounds.

    ``geometric`` is ``lr_0 (lr_T / lr_0)^(t / T)``, ``cosine`` is ``lr_T + (lr_0 - lr_T) (1 + cos(pi t / T)) / 2``.

    Parameters
    ----------
    server_round : int
        From 1.
    num_rounds : int
        ``T``, at least 1.
    initial : float
        ``lr_0``, above 0.
    final : float
        ``lr_T``, reached one round after the last; 0 keeps a geometric rate constant.
    schedule : {"geometric", "cosine"}

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If a rate is out of range, or the schedule unknown.

    Examples
    --------
    >>> [round(learning_rate(t, 2, 0.4, 0.1), 3) for t in (1, 2)]
    [0.4, 0.2]
    >>> [round(learning_rate(t, 2, 0.4, schedule="cosine"), 3) for t in (1, 2)]
    [0.4, 0.2]
    """
    if initial <= 0 or final < 0:
        raise ValueError(f"client.lr={initial} must be above 0 and client.lr_final={final} at least 0 (0 = constant)")
    progress = (server_round - 1) / max(num_rounds, 1)
    if schedule == "cosine":
        return final + (initial - final) * (1 + cos(pi * progress)) / 2
    if schedule != "geometric":
        raise ValueError(f"client.lr_schedule={schedule!r} is neither 'geometric' nor 'cosine'")
    return initial if final == 0 else float(initial * (final / initial) ** progress)


def quadratic_synchronization(rate: float, coefficient: float, at_least: int, at_most: int) -> int:
    """Return the local steps of a round by the quadratic synchronization rule, ``max(tau_base, floor((b / lr)^2))``.

    Parameters
    ----------
    rate : float
        ``lr``, this round's learning rate, above 0.
    coefficient : float
        ``b``, in units of the learning rate; at least 0.
    at_least, at_most : int
        ``tau_base``, and a bound: a learning rate that falls to 0 would ask for steps without end.

    Examples
    --------
    >>> [quadratic_synchronization(lr, 0.1, 4, 64) for lr in (0.1, 0.04, 0.02, 0.001)]
    [4, 6, 25, 64]
    """
    return min(max(at_least, floor((coefficient / rate) ** 2)), max(at_least, at_most))


def batches_of_a_pass(size: int, batch_size: int) -> int:
    """Return how many batches hold all of a node's samples once: a single left-over sample joins the batch before it.

    The server derives a round's steps from it, the device the passes that its owner limits.

    >>> [batches_of_a_pass(size, 16) for size in (1, 16, 17, 18, 65)]
    [1, 1, 1, 2, 4]
    """
    whole, left = divmod(size, batch_size)
    return max(1, whole + (left > 1))
