"""Personal arrays: a part of a model that trains on its node and stays there, its value the node's own.

FedBN (Li et al. 2021, arXiv 2102.07623) keeps batch norms, FedPer (Arivazhagan et al. 2019, arXiv 1912.00818) a head.
"""

from collections.abc import Sequence

from torch import nn

from flsparse.nets.hidden import hide, named_by


def keep_local(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Take arrays out of a model's state dict and its parameters, where they compute, and train, as before.

    Parameters
    ----------
    model : nn.Module
        On the device where it is to compute. Its optimizer is to be given
        :func:`flsparse.nets.hidden.hidden_parameters` as well.
    patterns : sequence of str
        Of state-dict keys, such as ``*.bn?.*``.

    Returns
    -------
    list of str
        The keys that stay on the node, in state-dict order.

    Raises
    ------
    ValueError
        A pattern matches no array, or nothing is left to share.
    """
    names = named_by(model, patterns, "model.local")
    hide(model, names)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"model.local={list(patterns)} leaves no array that nodes would learn together: keep fewer")
    return names
