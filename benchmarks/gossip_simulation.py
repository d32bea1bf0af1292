"""Decentralized training of a one-hidden-layer net, all nodes at once in one matrix, without any messages.

The product's own quantizer, prox, mixing matrices, splits, batches and random streams; only the net is written out, so
that n nodes are one batched product. ``tests/strategies/core/test_gossip.py`` holds it against the real rounds.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from flsparse import rng
from flsparse.codec.residuals.dither import Dither, dequantize, entropy_bits
from flsparse.codec.residuals.residual import ResidualCodec, Stamp, copy_checksum
from flsparse.nets.arrays import state_arrays
from flsparse.sparsity import soft_threshold
from flsparse.tasks import Task
from flsparse.tasks.data import batches
from flsparse.topology import Topology


@dataclass(frozen=True)
class Setting:
    """One run: what is measured, and how long.

    Attributes
    ----------
    method : {"malcom_psgd", "choco_sgd", "d_psgd"}
    dither : Dither, optional
        None sends everything.
    coders : tuple of str
        Coders whose real bytes are measured.
    """

    method: str
    dither: Dither | None = None
    whole: bool = False
    gamma: float = 1.0
    mu: float = 0.0
    mu_from: float = 0.0  # fraction of the rounds after which mu acts
    lr: float = 0.1
    decay_rounds: float = 0.0
    batch_size: int = 32
    local_steps: int = 1
    rounds: int = 600
    evaluate_every: int = 25
    sample_every: int = 25  # rounds between messages that are really encoded
    coders: tuple[str, ...] = ("fixed", "golomb", "rans")


@dataclass
class Trace:
    """What a run left behind; one entry an evaluation."""

    rounds: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    mean_node: list[float] = field(default_factory=list)
    worst_node: list[float] = field(default_factory=list)
    consensus_error: list[float] = field(default_factory=list)
    sparsity: list[float] = field(default_factory=list)
    model_sparsity: list[float] = field(default_factory=list)
    bits: dict[str, list[float]] = field(default_factory=dict)  # of one message, by coder; "entropy" too
    diverged: bool = False

    def bytes_per_message(self, coder: str) -> float:
        """Return the mean size of a message in bytes."""
        return float(np.mean(self.bits[coder])) / 8


def simulate(task: Task, topology: Topology, setting: Setting, seed: int) -> Trace:
    """Run one setting."""
    start = state_arrays(task.model())
    shapes = [array.shape for array in start.values()]
    sizes = [array.size for array in start.values()]
    x = np.tile(np.concatenate([array.ravel() for array in start.values()]), (topology.nodes, 1))
    copies = x.copy()
    weights = topology.weights.astype(np.float32)
    data = [task.train_data(node) for node in range(topology.nodes)]
    inputs = [part.prepare(part.inputs).flatten(1) for part in data]
    targets = [part.targets for part in data]
    test = task.test_data()
    test_x, test_y = test.prepare(test.inputs).flatten(1), test.targets
    prunable = np.concatenate([np.full(s, len(shape) > 1) for s, shape in zip(sizes, shapes, strict=True)])
    units = [sum(sizes)] if setting.whole else sizes
    ends = np.cumsum(units)[:-1]
    trace = Trace(bits={coder: [] for coder in (*setting.coders, "entropy")})

    for t in range(1, setting.rounds + 1):
        rate = (1 + (t - 1) / setting.decay_rounds) ** -0.5 if setting.decay_rounds else 1.0
        lr, gamma = setting.lr * rate, setting.gamma * rate
        draws = []
        for node, part in enumerate(targets):
            shuffle = torch.Generator().manual_seed(rng.derive(seed, t, node, "batches"))
            draws.append(list(batches(len(part), setting.batch_size, shuffle, epochs=1, steps=setting.local_steps)))
        for step in range(setting.local_steps):
            chosen = [draw[step] for draw in draws]
            batch = torch.stack([images[at] for images, at in zip(inputs, chosen, strict=True)])
            labels = torch.stack([part[at] for part, at in zip(targets, chosen, strict=True)])
            _sgd_step(x, shapes, batch, labels, lr)
        if setting.method == "choco_sgd":
            x += np.float32(gamma) * (weights @ copies - copies)
        if setting.dither is None:
            copies = x.copy()
        else:
            sampled = t % setting.sample_every == 0
            for node in range(topology.nodes):
                stream = rng.stream(seed, t, node, "dither")
                residual = x[node] - copies[node]
                if sampled and node == t // setting.sample_every % topology.nodes:
                    _measure(trace, setting, x[node], copies[node], sizes, seed, t, node)
                parts = [dequantize(*setting.dither.quantize(unit, stream)) for unit in np.split(residual, ends)]
                copies[node] += np.concatenate(parts)
        if setting.method != "choco_sgd":
            x = x + np.float32(gamma) * (weights @ copies - copies)
        if setting.method == "malcom_psgd" and setting.mu and t > setting.mu_from * setting.rounds:
            x[:, prunable] = soft_threshold(x[:, prunable], lr * setting.mu * setting.local_steps)
        if t % setting.evaluate_every == 0 or t == setting.rounds:
            if not np.isfinite(x).all() or np.abs(x).max() > 1e4:
                trace.diverged = True
                return trace
            _evaluate(trace, t, x, shapes, prunable, test_x, test_y, t == setting.rounds)
    return trace


def _views(x: np.ndarray, shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    out, at = [], 0
    whole = torch.from_numpy(x)
    for shape in shapes:
        size = int(np.prod(shape))
        out.append(whole[:, at : at + size].view(len(x), *shape))
        at += size
    return out


def _sgd_step(
    x: np.ndarray, shapes: list[tuple[int, ...]], batch: torch.Tensor, labels: torch.Tensor, lr: float
) -> None:
    """One SGD step of every node's net, in place."""
    w1, b1, w2, b2 = _views(x, shapes)
    pre = torch.baddbmm(b1[:, None], batch, w1.transpose(1, 2))
    hidden = pre.clamp_min(0)
    logits = torch.baddbmm(b2[:, None], hidden, w2.transpose(1, 2))
    delta = torch.softmax(logits, -1)
    delta.scatter_add_(2, labels[..., None], -torch.ones_like(labels[..., None], dtype=delta.dtype))
    delta /= labels.shape[1]
    back = torch.bmm(delta, w2) * (pre > 0)
    w2.baddbmm_(delta.transpose(1, 2), hidden, alpha=-lr)
    b2.sub_(delta.sum(1), alpha=lr)
    w1.baddbmm_(back.transpose(1, 2), batch, alpha=-lr)
    b1.sub_(back.sum(1), alpha=lr)


def _accuracy(x: np.ndarray, shapes: list[tuple[int, ...]], images: torch.Tensor, labels: torch.Tensor) -> list[float]:
    scores = []
    for row in x:
        w1, b1, w2, b2 = (v[0] for v in _views(np.ascontiguousarray(row[None]), shapes))
        logits = torch.addmm(b2, torch.addmm(b1, images, w1.T).clamp_min(0), w2.T)
        scores.append(float((logits.argmax(1) == labels).float().mean()))
    return scores


def _evaluate(
    trace: Trace,
    t: int,
    x: np.ndarray,
    shapes: list[tuple[int, ...]],
    prunable: np.ndarray,
    images: torch.Tensor,
    labels: torch.Tensor,
    last: bool,
) -> None:
    mean = x.mean(axis=0, keepdims=True)
    trace.rounds.append(t)
    trace.accuracy += _accuracy(mean, shapes, images, labels)
    trace.consensus_error.append(float(((x - mean) ** 2).sum() / len(x)))
    trace.sparsity.append(float((x[:, prunable] == 0).mean()))
    trace.model_sparsity.append(float((mean[:, prunable] == 0).mean()))
    nodes = _accuracy(x, shapes, images, labels) if last else [np.nan]
    trace.mean_node.append(float(np.mean(nodes)))
    trace.worst_node.append(min(nodes))


def _measure(
    trace: Trace, setting: Setting, x: np.ndarray, copy: np.ndarray, sizes: list[int], seed: int, t: int, node: int
) -> None:
    """Encode one message with every coder, and note its size and the entropy of its integers."""
    stamp = Stamp(node, t, copy_checksum(copy))
    for coder in setting.coders:
        codec = ResidualCodec(sizes, setting.dither, setting.whole, coder)
        payload, q = codec.encode(x, copy, stamp, rng.stream(seed, t, node, "dither"))
        trace.bits[coder].append(8.0 * len(payload))
    if setting.coders:
        parts = np.split(q, np.cumsum(sizes)[:-1])
        trace.bits["entropy"].append(sum(entropy_bits(part) for part in parts))
