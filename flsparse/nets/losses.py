"""The loss of classes, which training, split learning and the walks of a valley share."""

from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy


def summed_class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return :func:`class_loss` summed over predictions."""
    return class_loss(logits, labels, "sum")


def class_loss(logits: Tensor, labels: Tensor, reduction: str = "mean", **options: Any) -> Tensor:
    """Return the cross-entropy of predictions, in nats.

    Parameters
    ----------
    logits : Tensor
        Floating, shape (..., classes).
    labels : Tensor
        int64, shape (...) or flattened, in [0, classes).
    reduction : {"mean", "sum", "none"}
    **options
        ``weight``, ``label_smoothing`` and ``ignore_index``, as PyTorch takes them.
    """
    return cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction=reduction, **options)
