"""Mirrors: a node's model as both sides have it from its replies, and replies coded against that.

    p   = Q(top-k(x_m - h_m))       h_m: the mirror of x_m; k = density * N, by magnitude
    h_m <- h_m + p                  on the node and on the server, from the same bytes

A worker that is pushed away from the average never comes near it, so its distance to the average costs the same bits
in every round; the distance to its own mirror shrinks as training settles, and a change not sent now stays in the
difference and is sent later. A mirror starts as the broadcast that its node received; the payload names the mirror it
was coded against by a hash of its content, so mirrors that have drifted apart are refused, never added up.

A control variate (:mod:`flsparse.clients.parts.control`) needs no mirror of its own: the node keeps the one that the
server decodes.
"""

from collections.abc import Mapping

import numpy as np

from flsparse.codec import Reference, exact_names
from flsparse.sparsity import default_prunable, prune_global
from flsparse.wire.messages import CONTROL

Arrays = dict[str, np.ndarray]
OWN_CONTROL, PENDING_CONTROL = "control", "control-pending"  # names in a node's state
CONTROL_ROUND = "|round"  # with a variate's arrays: a file outlives the context of a fit that failed


def towards(arrays: Mapping[str, np.ndarray], mirror: Mapping[str, np.ndarray], density: float) -> Arrays:
    """Return the mirror moved to the arrays where that matters most.

    Parameters
    ----------
    arrays : Mapping[str, np.ndarray]
        ``x_m``: the worker.
    mirror : Mapping[str, np.ndarray]
        ``h_m``: the same names and shapes.
    density : float
        Fraction of the weights (floating arrays of two or more dimensions) that move, in (0, 1], by the magnitude of
        their difference over all of them. The other arrays move whole, and zeros of ``x_m`` are taken over as zeros:
        in the codec a position that is not kept costs no value.

    Raises
    ------
    ValueError
        ``density`` is out of range.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density={density} is not in (0, 1]: it is the fraction of weights that a reply changes")
    names = [name for name in default_prunable(arrays) if not name.startswith(CONTROL)]
    if density == 1 or not names:
        return dict(arrays)
    differences = {name: np.subtract(arrays[name], mirror[name]) for name in names}
    chosen = prune_global(differences, 1 - density, names)
    moved = {n: np.where((chosen[n] != 0) | (arrays[n] == 0), arrays[n], mirror[n]) for n in names}
    return {name: moved.get(name, array) for name, array in arrays.items()}


def reference_with(mirror: Mapping[str, np.ndarray], received: Reference) -> Reference:
    """Return the reference of a reply: the mirror, and for control variates the broadcast."""
    arrays = {n: a if n.startswith(CONTROL) else mirror.get(n, a) for n, a in received.arrays.items()}
    return Reference(arrays, exact_names(received.specs))


def dated(control: Mapping[str, np.ndarray], server_round: int) -> Arrays:
    """Return a control variate to be kept, with the round that it is of."""
    return {**control, CONTROL_ROUND: np.asarray(server_round, np.int64)}


def control_as_read(own: Mapping[str, np.ndarray], sent: Mapping[str, np.ndarray], received: Reference) -> Arrays:
    """Return the control variate that the server makes of a coded reply, by parameter.

    Parameters
    ----------
    own : Mapping[str, np.ndarray]
        ``c_i`` before; a parameter that is missing stands at 0.
    sent : Mapping[str, np.ndarray]
        The reply as the server decodes it.
    received : Reference
        The broadcast as this node did.
    """
    names = [name.removeprefix(CONTROL) for name in sent if name.startswith(CONTROL)]
    return {n: own.get(n, np.float32(0)) + sent[CONTROL + n] - received.arrays[CONTROL + n] for n in names}
