"""Ranges of arguments: a constructor refuses a bad value in one line, with the value, the limit and the remedy."""

from collections.abc import Iterable

from flsparse.configs import did_you_mean


def within(interval: str, mend: str = "", /, **values: float | None) -> None:
    """Refuse numbers outside of an interval.

    Parameters
    ----------
    interval : str
        In the usual notation, such as ``"[0, 1)"``; with ``inf)`` any number that is finite.
    mend : str
        Meaning of the number, after the limit in the error; empty where the interval says enough.
    **values : float or None
        Values by argument; None is an argument that is not set.

    Raises
    ------
    ValueError
        A value is NaN or outside.

    Examples
    --------
    >>> within("(0, 1]", "the share of the way to the average", alpha=1.5)
    Traceback (most recent call last):
    ValueError: alpha=1.5 is not in (0, 1]: it is the share of the way to the average
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    for name, value in values.items():
        if value is None or low < value < high:
            continue
        if not (value == low and interval[0] == "[") and not (value == high and interval[-1] == "]"):
            raise ValueError(f"{name}={value} is not in {interval}{mend and f': it is {mend}'}")


def one_of(choices: Iterable[str], /, **values: object) -> None:
    """Refuse values that are no choice, given by argument; ValueError names the choices.

    Examples
    --------
    >>> one_of(("global", "layer"), scope="layers")
    Traceback (most recent call last):
    ValueError: scope='layers' is none of global, layer; did you mean layer?
    """
    known = tuple(choices)
    for name, value in values.items():
        if value not in known:
            raise ValueError(f"{name}={value!r} is none of {', '.join(known)}{did_you_mean(str(value), known)}")
