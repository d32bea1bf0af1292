"""Split learning with mask-encoded activations on the device (SplitFed; ECAI 2024, arXiv 2408.13787).

    a  = bottom(x)                          forward of the first layers, up to the layer ``cut``
    up: encode(a), and the labels           down: decode -> g, the gradient of the batch's mean loss at the cut
    bottom <- bottom - lr * (da/dbottom) g  the coding counts as the identity (straight-through)

With ``batches`` above 1 a message carries that many batches, which make one step together. With a ``head`` the
labels stay here: the device also runs the last layers, and the loss. The steps are in
:mod:`flsparse.clients.core.split_device`; here is how activations are coded.
"""

from dataclasses import dataclass
from typing import ClassVar

from flsparse.clients.core.method import register
from flsparse.clients.core.split_device import SplitLocal
from flsparse.codec import make_activation_codec
from flsparse.codec.activations.compressors import ActivationCodec
from flsparse.codec.activations.gradient import FORMS
from flsparse.ranges import one_of, within


@register
@dataclass(kw_only=True)
class SplitMSLocal(SplitLocal):
    """Split learning with coded activations: the cut is :class:`SplitLocal`'s, the codec is here.

    Attributes
    ----------
    compressor : {"ms", "topk", "randtopk", "uniform", "none"}
        How activations are coded (:mod:`flsparse.codec.activations.compressors`).
    sparsity, bits, rounding, kept, entropy
        Its settings: r in [0, 1), b in 1..8, "round" or "floor", precision of kept values ("fp32" or "fp16"), entropy
        coding.
    """

    name: ClassVar[str] = "split_ms"
    compressor: str = "ms"
    sparsity: float = 0.999
    bits: int = 3
    rounding: str = "round"
    kept: str = "fp32"
    entropy: bool = True

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
