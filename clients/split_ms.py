"""Split learning with mask-encoded activations on the device (SplitFed; ECAI 2024, arXiv 2408.13787).

    a  = bottom(x)                          forward of the first layers, up to the layer ``cut``
    up: encode(a), and the labels           down: decode -> g, the gradient of the batch's mean loss at the cut
    bottom <- bottom - lr * (da/dbottom) g  the coding counts as the identity (straight-through)

With ``batches`` above 1 a message carries so many batches, and one step follows from all of them. With a ``head`` the
labels stay here: the device also runs the last layers, and the loss. What runs is in
:mod:`flsparse.clients.core.split_device`; here is what the server asks for.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import nn

from flsparse import rng
from flsparse.clients.core.method import LocalMethod, register
from flsparse.codec import make_activation_codec
from flsparse.codec.activations.compressors import ActivationCodec
from flsparse.codec.activations.gradient import FORMS
from flsparse.nets.cutting import cut_model
from flsparse.ranges import one_of, within
from flsparse.schedules import batches_of_a_pass


@register
@dataclass(kw_only=True)
class SplitMSLocal(LocalMethod):
    """What the server asks of a device.

    Attributes
    ----------
    cut : str
        The layer that the device's part ends with.
    head : str
        The layer that the server's part ends with, where the labels stay on the device; empty: they are sent.
    compressor : {"ms", "topk", "randtopk", "uniform", "none"}
        How activations are coded (:mod:`flsparse.codec.activations.compressors`).
    sparsity, bits, rounding, kept, entropy
        Its settings: r in [0, 1), b in 1..8, "round" or "floor", precision of kept values ("fp32" or "fp16"), entropy
        coding.
    gradient : {"fp32", "fp16", "int4"}
        How gradients at the cut are coded (:mod:`flsparse.codec.activations.gradient`).
    batches : int
        Batches a message, at least 1.
    """

    name: ClassVar[str] = "split_ms"
    cut: str = ""
    head: str = ""
    compressor: str = "ms"
    sparsity: float = 0.999
    bits: int = 3
    rounding: str = "round"
    kept: str = "fp32"
    entropy: bool = True
    gradient: str = "int4"
    batches: int = 1

    def __post_init__(self) -> None:
        one_of(FORMS, gradient=self.gradient)
        within("[1, inf)", batches=self.batches)
        self.codec()  # refuses a bad setting of the compressor

    def codec(self) -> ActivationCodec:
        """Return the codec of the smashed data."""
        return make_activation_codec(
            self.compressor,
            sparsity=self.sparsity,
            bits=self.bits,
            rounding=self.rounding,
            values=self.kept,
            entropy=self.entropy,
        )

    def head_forms(self) -> tuple[ActivationCodec, str]:
        """Return how activations and gradients travel at the head: exactly where the cut does, else in fp16."""
        form = "fp32" if self.compressor == "none" and self.gradient == "fp32" else "fp16"
        return make_activation_codec("none", values=form), form

    def parts(self, model: nn.Module) -> list[nn.Module]:
        """Cut a model: bottom, the server's part and, where the labels stay on the device, the head."""
        return [*cut_model(model, [self.cut, self.head] if self.head else [self.cut])]


def batch_positions(size: int, batch_size: int, index: int, seed: int, node: int) -> np.ndarray:
    """Return which samples the ``index``-th batch of a node holds, counted over the whole run.

    Each pass over the data is shuffled by its own seed, and has :func:`batches_of_a_pass`.

    Parameters
    ----------
    size : int
        Samples of the node, at least 1.
    batch_size, index, seed, node : int
        ``index`` from 0; ``node`` is the partition id.

    Examples
    --------
    >>> [len(batch_positions(9, 4, i, 0, 0)) for i in range(4)]
    [4, 5, 4, 5]
    """
    count = batches_of_a_pass(size, batch_size)
    epoch, place = divmod(index, count)
    order = rng.stream(seed, epoch, node, "split-batches").permutation(size)
    return order[place * batch_size : (place + 1) * batch_size if place + 1 < count else size]
