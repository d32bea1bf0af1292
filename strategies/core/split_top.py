"""The server's part of a cut model: its forward and backward pass from the nodes' activations, and its optimizer.

L_m = mean over node m's samples of CE(top(a), y)          gradients for the node: dL_m / da
top <- top - lr * sum_m n_m dL_m/dtop / sum_m n_m          once a step, from all nodes
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from flsparse.codec import decode_activations, decode_gradient
from flsparse.codec.errors import require
from flsparse.nets.arrays import load_arrays
from flsparse.nets.exact import LARGEST_WEIGHT
from flsparse.nets.losses import class_loss
from flsparse.nets.sgd import SGD
from flsparse.wire import bundle as split
from flsparse.wire.bundle import Part

_LARGEST = 65504.0  # of an activation or a gradient, the largest of half precision


class Received:
    """One batch of activations as it came from a node.

    Attributes
    ----------
    smashed : Tensor
        float32, requires a gradient.
    sent : np.ndarray
        Shape (d,), bool: which values have a code that is not 0, as the device sees it too.
    labels : Tensor or None
        int64, one a sample; None where they stay on the device.
    output : Tensor or None
        Output of the top, where a head follows.

    Raises
    ------
    PayloadError
        A part is damaged, hostile, or does not fit the other, or an activation is beyond any network's.
    """

    def __init__(self, activations: Part, labels: Part | None = None) -> None:
        array, codes = decode_activations(activations.data, activations.shape)
        largest = float(np.abs(array).max(initial=0))
        require(largest <= _LARGEST, f"it has activations of {largest:g}, beyond {_LARGEST:g}")
        self.smashed = torch.from_numpy(array).requires_grad_()
        self.sent: np.ndarray = codes != 0 if codes is not None else array.ravel() != 0
        self.labels: Tensor | None = None
        self.output: Tensor | None = None
        if labels is not None:
            require(labels.shape == activations.shape[:1], "there is not one label for each sample")
            self.labels = torch.from_numpy(split.decode_labels(labels.data, labels.shape[0]))

    def __len__(self) -> int:
        return len(self.smashed)


def decode_head_gradient(part: Part, sent: Part) -> Tensor:
    """Decode the gradient of a head's activations; PayloadError where it is damaged or of another shape."""
    require(part.shape == sent.shape, f"a gradient of {part.shape} came for {sent.shape}")
    return torch.from_numpy(decode_gradient(part.data, part.shape, np.ones(prod(part.shape), np.bool_)))


class Tally:
    """Sums of a round's training on the server: loss, correct predictions, activations, samples by node id."""

    def __init__(self) -> None:
        self.loss, self.correct, self.elements = 0.0, 0, 0
        self.samples_of: Counter[int] = Counter()

    @property
    def samples(self) -> int:
        """Samples of all nodes."""
        return self.samples_of.total()

    def add(self, node_id: int, batches: Sequence[Received], loss: float = 0.0, correct: int = 0) -> None:
        """Enter one node's batches of one step."""
        self.loss += loss
        self.correct += correct
        self.samples_of[node_id] += sum(len(batch) for batch in batches)
        self.elements += sum(batch.smashed.numel() for batch in batches)


@dataclass
class SplitMemory:
    """State of the server across rounds.

    Attributes
    ----------
    momentum : dict[str, np.ndarray]
        Of the top's optimizer, by parameter; the top writes into it.
    batches_done : int
        Batches that each node has used.
    """

    momentum: dict[str, np.ndarray] = field(default_factory=dict)
    batches_done: int = 0


class Top:
    """The server's part in training.

    Parameters
    ----------
    module : nn.Module
        Its layers.
    memory : SplitMemory
        The optimizer's momentum is kept up to date at the end of each round.
    """

    def __init__(self, module: nn.Module, memory: SplitMemory) -> None:
        self.module, self.memory = module.train(), memory
        self._optimizer: torch.optim.Optimizer | None = None
        self._sums: list[Tensor] = []
        self._count = 0

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def begin_round(self, arrays: Mapping[str, np.ndarray], *, lr: float, momentum: float, weight_decay: float) -> None:
        """Load the layers' arrays, and build this round's SGD with the momentum of the round before."""
        load_arrays(self.module, {key: arrays[key] for key in self.module.state_dict()})
        self._optimizer = SGD(self._parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
        for name, parameter in self.module.named_parameters():
            if name in self.memory.momentum:
                buffer = torch.from_numpy(self.memory.momentum[name].copy()).to(parameter.device)
                self._optimizer.state[parameter]["momentum_buffer"] = buffer

    @contextmanager
    def _buffers_kept_sane(self) -> Iterator[None]:
        """Put the buffers (statistics of batch norm) back where a node's batches are refused, or spoil them."""
        before = [buffer.clone() for buffer in self.module.buffers()]
        try:
            yield
            for buffer, old in zip(self.module.buffers(), before, strict=True):
                if buffer.is_floating_point():
                    sane = bool(((buffer.abs() <= LARGEST_WEIGHT) | (buffer == old)).all())
                    require(sane, f"they lead to statistics of batch norm beyond {LARGEST_WEIGHT:g}")
        except Exception:
            for buffer, old in zip(self.module.buffers(), before, strict=True):
                buffer.data.copy_(old)  # not seen by autograd: earlier nodes' graphs wait for their heads
            raise

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device

    def _run(self, batch: Received) -> Tensor:
        """Run a batch through the layers; on a copy, since the first layer may write into its input."""
        return self.module(batch.smashed.to(self._device, copy=True))  # type: ignore[no-any-return]

    def begin_step(self) -> None:
        """Start to gather gradients."""
        self._sums, self._count = [torch.zeros_like(parameter) for parameter in self._parameters], 0

    def to_the_loss(self, batches: Sequence[Received]) -> tuple[list[Tensor], float, int]:
        """Run a node's batches to the loss; the top's share of the gradient is gathered.

        Returns
        -------
        gradients : list[Tensor]
            Of the node's mean loss, for each batch of activations.
        loss : float
            Summed over samples, in nats.
        correct : int
            Samples classified right.

        Raises
        ------
        ValueError, RuntimeError, IndexError
            The activations do not fit the layers, a label is no class, or the loss or a gradient is not finite or
            absurd. The top is then as if these batches had never come.
        """
        device = self._device
        loss, correct = torch.zeros((), device=device), 0
        with self._buffers_kept_sane():
            for batch in batches:
                assert batch.labels is not None
                logits, labels = self._run(batch), batch.labels.to(device)
                in_range = logits.ndim == 2 and int(labels.max()) < logits.shape[1]
                require(in_range, "a label is beyond the model's classes")
                loss = loss + class_loss(logits, labels, "sum")
                correct += int((logits.argmax(-1) == labels).sum())
            require(bool(loss.isfinite()), "they lead to a loss that is not finite")
            found = self._gradients(batches, [loss], None)
        return self._gather(batches, found), float(loss.detach()), correct

    def to_the_head(self, batches: Sequence[Received]) -> list[np.ndarray]:
        """Run a node's batches through the top; return the head's activations.

        Raises
        ------
        ValueError, RuntimeError, IndexError
            The activations do not fit the layers, or make something absurd of them.
        """
        outputs = []
        with self._buffers_kept_sane():
            for batch in batches:
                batch.output = self._run(batch)
                outputs.append(batch.output.detach().cpu().numpy())
        return outputs

    def from_the_head(self, batches: Sequence[Received], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Take the head's gradients of the node's mean loss on to its activations; the top's share is gathered.

        Raises
        ------
        PayloadError
            The gradient leads to values that are not finite, or too large.
        """
        outputs = [batch.output for batch in batches if batch.output is not None]
        count = sum(len(batch) for batch in batches)
        ends = [gradient.to(self._device) * count for gradient in gradients]
        return self._gather(batches, self._gradients(batches, outputs, ends))

    def _gradients(
        self, batches: Sequence[Received], ends: Sequence[Tensor], gradients: Sequence[Tensor] | None
    ) -> Sequence[Tensor]:
        """Differentiate a sum over a node's samples by its activations and by the top."""
        found = torch.autograd.grad(ends, [*(batch.smashed for batch in batches), *self._parameters], gradients)
        count = sum(len(batch) for batch in batches)
        sane = all(bool((each.abs() <= _LARGEST * count).all()) for each in found)  # false for NaN, too
        require(sane, f"they lead to gradients beyond {_LARGEST:g}; if all nodes' do, lower client.lr")
        return found

    def _gather(self, batches: Sequence[Received], found: Sequence[Tensor]) -> list[Tensor]:
        """Add the top's part of the gradients; return the activations' as a mean's."""
        count = sum(len(batch) for batch in batches)
        for whole, own in zip(self._sums, found[len(batches) :], strict=True):
            whole += own
        self._count += count
        return [gradient / count for gradient in found[: len(batches)]]

    def step(self) -> None:
        """Step the optimizer with the mean gradient over all samples of the step; not at all where none came."""
        if not self._count:
            return
        assert self._optimizer is not None
        for parameter, gradient in zip(self._parameters, self._sums, strict=True):
            parameter.grad = gradient / self._count
        self._optimizer.step()

    def end_round(self) -> None:
        """Keep the momentum as arrays."""
        assert self._optimizer is not None
        for name, parameter in self.module.named_parameters():
            buffer = self._optimizer.state.get(parameter, {}).get("momentum_buffer")
            if buffer is not None:
                self.memory.momentum[name] = buffer.cpu().numpy().copy()
