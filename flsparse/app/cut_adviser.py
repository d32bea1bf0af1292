"""Where to cut a model and how to code its activations: measured on the model itself and a batch of real data.

advice_table(advise(model, inputs), len(inputs))   a row for every place where the model can be cut
choose_settings(activations, target_error=0.1)     the settings of mask encoding with the fewest bytes
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from flsparse.codec import MaskEncoding
from flsparse.codec.activations.mask_encoding import unmask
from flsparse.nets.cutting import candidates, cut_model
from flsparse.nets.seeded import seeded

_LEGEND = """±: can be negative, so signs are coded too
bits: of one coded activation; error: relative, in the 2-norm"""
GRID = tuple((r, b) for b in (1, 2, 3, 4) for r in (0.9, 0.95, 0.98, 0.99, 0.995, 0.999))


@dataclass(frozen=True)
class Advice:
    """Costs of a cut.

    Attributes
    ----------
    cut : str
        Name of the layer.
    shape : tuple of int
        One sample's activations.
    rectified : bool
        Whether these cannot be negative: signs cost another bit for every code that is not 0.
    parameters : int
        Of the device's part.
    flops : float
        Of one step on the device: two forward passes (the second for the gradients) and a backward pass.
    memory_bytes : int
        Of one step on the device: parameters, gradients, and tensors for the backward pass.
    dense_bytes : int
        Of a batch's activations in fp32.
    coded_bytes : int
        Of the same, mask encoded.
    error : float
        ``||decoded - activations|| / ||activations||``.
    """

    cut: str
    shape: tuple[int, ...]
    rectified: bool
    parameters: int
    flops: float
    memory_bytes: int
    dense_bytes: int
    coded_bytes: int
    error: float

    @property
    def bits(self) -> float:
        """Bits an activation."""
        return 32 * self.coded_bytes / self.dense_bytes


def advise(
    model: nn.Module, inputs: Tensor, coding: MaskEncoding | None = None, cuts: Sequence[str] | None = None
) -> list[Advice]:
    """Measure every place where a model can be cut, or the named ones.

    Parameters
    ----------
    model : nn.Module
        Left as it is: a copy is measured.
    inputs : Tensor
        A batch of real data, as large as a training batch.
    coding : MaskEncoding, optional
        By default the paper's, r = 0.99 and b = 2.
    cuts : Sequence[str], optional
        Names of layers; default: all of :func:`flsparse.nets.cutting.candidates`, without places that only rename
        another (a block and its last layer).

    Returns
    -------
    list[Advice]
        In the order in which the layers compute.
    """
    coding = coding or MaskEncoding()
    rectified = {each.name: each.rectified for each in candidates(model)}
    found: list[Advice] = []
    model = deepcopy(model)
    for cut in cuts or rectified:
        bottom = cut_model(model, [cut])[0].train()
        advice = _measure(bottom, inputs, coding, cut, rectified.get(cut, False))
        if (
            cuts
            or not found
            or (found[-1].parameters, found[-1].coded_bytes) != (advice.parameters, advice.coded_bytes)
        ):
            found.append(advice)
    return found


def _measure(bottom: nn.Module, inputs: Tensor, coding: MaskEncoding, cut: str, rectified: bool) -> Advice:
    saved: dict[int, int] = {}
    parameters = list(bottom.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    own = {p.data_ptr() for p in parameters}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            saved[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        seeded(0, inputs.device),
        FlopCounterMode(display=False) as forward,
        saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        smashed = bottom(inputs)
    with FlopCounterMode(display=False) as backward:
        if trained:
            torch.autograd.grad(smashed.sum(), trained)
    array = smashed.detach().cpu().numpy()
    payload = coding.encode(array)
    count = sum(p.numel() for p in parameters)
    return Advice(
        cut=cut,
        shape=tuple(array.shape[1:]),
        rectified=rectified,
        parameters=count,
        flops=2.0 * forward.get_total_flops() + backward.get_total_flops(),
        memory_bytes=2 * sum(p.numel() * p.element_size() for p in parameters) + sum(saved.values()),
        dense_bytes=4 * array.size,
        coded_bytes=len(payload),
        error=relative_error(coding.decode(payload, array.shape), array),
    )


def relative_error(decoded: np.ndarray, array: np.ndarray) -> float:
    """Return ``||decoded - array|| / ||array||``; 0 for two arrays of zeros.

    >>> relative_error(np.array([3.0, 0.0]), np.array([3.0, 4.0]))
    0.8
    """
    norm = float(np.linalg.norm(array))
    return float(np.linalg.norm(decoded - array)) / norm if norm else 0.0


def choose_settings(
    activations: np.ndarray, target_error: float, grid: Sequence[tuple[float, int]] = GRID
) -> tuple[MaskEncoding, int, float]:
    """Choose r and b: the fewest bytes, really coded, with a relative error of at most the target.

    Parameters
    ----------
    activations : np.ndarray
        A batch of real activations at the cut.
    target_error : float
        ``||decoded - activations|| / ||activations||``, above 0.
    grid : Sequence[tuple[float, int]]
        Pairs of sparsity and bits to try.

    Returns
    -------
    settings : MaskEncoding
    size : int
        Bytes of the batch.
    error : float
        Relative error.

    Raises
    ------
    ValueError
        No pair of the grid reaches the target.
    """
    if not target_error > 0:
        raise ValueError(f"target_error={target_error} must be above 0")
    best: tuple[MaskEncoding, int, float] | None = None
    least = math.inf
    for sparsity, bits in grid:
        settings = MaskEncoding(sparsity, bits)
        decoded = unmask(settings.quantize(activations), bits)
        error = relative_error(decoded, np.ravel(activations))
        least = min(least, error)
        if error > target_error:
            continue
        size = len(settings.encode(activations))
        if best is None or size < best[1]:
            best = settings, size, error
    if best is None:
        raise ValueError(f"no settings reach target_error={target_error}: the least error of the grid is {least:.3f}")
    return best


def advice_table(rows: Sequence[Advice], batch_size: int) -> Table:
    """Return advice as a table, a line a cut; 80 columns hold it, long names of cuts fold."""
    table = Table(
        title=f"where to cut: one step on a device, a batch of {batch_size}",
        caption=_LEGEND,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("cut", overflow="fold")
    table.add_column("activations", no_wrap=True)
    for column in ("params\nk", "work\nMFLOP", "memory\nMB", "dense\nkB", "coded\nkB", "bits\n", "error\n"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        shape = "x".join(map(str, row.shape)) + ("" if row.rectified else " ±")
        counts = (row.parameters / 1e3, row.flops / 1e6, row.memory_bytes / 1e6)
        cells = map(_short, (*counts, row.dense_bytes / 1e3, row.coded_bytes / 1e3))
        table.add_row(row.cut, shape, *cells, f"{row.bits:.2f}", f"{row.error:.3f}")
    return table


def _short(value: float) -> str:
    """Return a number with two decimals below 10, one below 100, none above."""
    return f"{value:,.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"
