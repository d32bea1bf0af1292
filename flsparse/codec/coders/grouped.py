"""Small integers in groups, so that a Huffman code over bytes can come close to their entropy.

A Huffman code spends at least a bit on every symbol, too much for integers that are mostly 0. With ``reach`` k an
integer within -k..k is a digit of its own and every other one an *escape*; as many digits as 64 symbols have room for
make one symbol. The escapes travel behind, as integers again, moved towards 0.

=====  ======  ==================
reach  digits  digits in a symbol
=====  ======  ==================
0      2       6
1      4       3
2      6       2
3      8       2
=====  ======  ==================

More symbols would make a longer table, and spend more of the code space on groups that hardly ever occur.
"""

from math import prod

import numpy as np
from numpy.typing import NDArray

from flsparse.codec import kernel
from flsparse.codec.errors import require

REACHES = range(4)
_LARGEST = (1 << 15) - 8
_DIGITS = {0: 6, 1: 3, 2: 2, 3: 2}


def group_count(count: int, reach: int) -> int:
    """Return how many symbols hold ``count`` integers."""
    return -(-count // _DIGITS[reach])


def split(q: NDArray[np.int16], reach: int) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """Split integers into symbols and escapes.

    Parameters
    ----------
    q : np.ndarray
        Shape (n,), int16.
    reach : int
        0 to 3.

    Returns
    -------
    symbols : np.ndarray
        Shape (group_count(n, reach),), uint8, below 64; zeros fill the last one up.
    escapes : np.ndarray
        int16: ..., -2, -1, 0, 1, ... for the integers ..., -reach - 2, -reach - 1, reach + 1, reach + 2, ...

    Examples
    --------
    >>> symbols, escapes = split(np.array([0, 1, 0, -3], np.int16), reach=1)
    >>> symbols.tolist(), escapes.tolist()
    ([25, 53], [-2])
    """
    base, width = 2 * reach + 2, _DIGITS[reach]
    if kernel.compiled is not None:
        symbols, escapes = np.empty(group_count(q.size, reach), np.uint8), np.empty(q.size, np.int16)
        escaped = kernel.compiled.group_split(symbols, escapes, np.ascontiguousarray(q), reach, width)
        return symbols, escapes[:escaped]
    digits = np.full(group_count(q.size, reach) * width, reach, np.uint8)
    digits[: q.size] = np.minimum((q + np.int16(reach)).view(np.uint16), base - 1)  # a negative one wraps to the top
    symbols = digits[::width].copy()
    for place in range(1, width):
        symbols *= np.uint8(base)
        symbols += digits[place::width]
    outside = q[digits[: q.size] == base - 1]
    return symbols, outside - np.where(outside > 0, np.int16(reach + 1), np.int16(-reach))


def digits_of(symbols: NDArray[np.uint8], count: int, reach: int) -> NDArray[np.int16]:
    """Return ``count`` digits as integers, an escape as reach + 1.

    Raises
    ------
    PayloadError
        A symbol is out of range, or the last one is not filled up with zeros.
    """
    base, width = 2 * reach + 2, _DIGITS[reach]
    shape = (base,) * width
    require(int(symbols.max(initial=0)) < prod(shape), "a group of integers is out of range")
    table = (np.stack(np.unravel_index(np.arange(prod(shape)), shape), axis=1) - reach).astype(np.int16)
    digits = table.take(symbols, axis=0).reshape(-1)
    require(not digits[count:].any(), "padding of the last group is not 0")
    return digits[:count]


def join(digits: NDArray[np.int16], escaped: NDArray[np.intp], escapes: NDArray[np.int16], reach: int) -> None:
    """Put the escapes in their places, in place.

    Raises
    ------
    PayloadError
        An escape is not an int16 once it is moved back.
    """
    in_range = int(escapes.min(initial=0)) >= -_LARGEST and int(escapes.max(initial=0)) <= _LARGEST
    require(in_range, "an escaped integer is out of range")
    digits[escaped] = escapes + np.where(escapes >= 0, np.int16(reach + 1), np.int16(-reach))
