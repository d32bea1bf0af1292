"""The soft threshold, proximal operator of the l1 norm."""

from typing import Any

import numpy as np
import numpy.typing as npt


def soft_threshold(z: npt.NDArray[Any], t: float) -> npt.NDArray[Any]:
    """Return ``sign(z) max(|z| - t, 0)``, the minimizer of ``(x - z)^2 / 2 + t |x|``, elementwise.

    Parameters
    ----------
    z : np.ndarray
        Any shape, floating.
    t : float
        At least 0.

    Returns
    -------
    np.ndarray
        A new array of ``z``'s shape and dtype; values within ``t`` of 0 are exactly 0.

    Raises
    ------
    ValueError
        ``t`` is negative.

    Examples
    --------
    >>> soft_threshold(np.array([-3.0, -0.5, 0.25, 2.0]), 1.0).tolist()
    [-2.0, 0.0, 0.0, 1.0]
    """
    if not t >= 0:
        raise ValueError(f"a soft threshold of {t} is not possible: it is 0 or more")
    t = z.dtype.type(t)
    shrunk: npt.NDArray[Any] = z - np.clip(z, -t, t)
    return shrunk
