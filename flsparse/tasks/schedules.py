"""Learning rates by round."""


def learning_rate(server_round: int, num_rounds: int, initial: float, final: float = 0.0) -> float:
    """Return the learning rate of one round: ``lr_0 (lr_T / lr_0)^(t / T)`` with ``t = server_round - 1``.

    Parameters
    ----------
    server_round : int
        From 1.
    num_rounds : int
        ``T``, at least 1.
    initial : float
        ``lr_0``, above 0.
    final : float
        ``lr_T``, reached one round after the last; 0 keeps the rate constant.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If a rate is out of range.

    Examples
    --------
    >>> [round(learning_rate(t, 2, 0.4, 0.1), 3) for t in (1, 2)]
    [0.4, 0.2]
    """
    if initial <= 0 or final < 0:
        raise ValueError(f"client.lr={initial} must be above 0 and client.lr_final={final} at least 0 (0 = constant)")
    if final == 0:
        return initial
    progress = (server_round - 1) / max(num_rounds, 1)
    return float(initial * (final / initial) ** progress)
