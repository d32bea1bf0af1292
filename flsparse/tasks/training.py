"""Local training and evaluation.

The loop is the same for every method; methods differ in the hooks of
:class:`flsparse.clients.core.method.LocalMethod`. Batches follow the seed, the round and the partition id, never the
process or the order in which nodes are handled.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from flsparse import rng
from flsparse.nets.seeded import seeded
from flsparse.nets.sgd import SGD
from flsparse.schedules import learning_rate
from flsparse.tasks.augmentation import Augment
from flsparse.tasks.cost import TrainingFlops, peak_memory_bytes
from flsparse.tasks.data import Data, batches
from flsparse.tasks.metrics import Meter
from flsparse.tasks.objective import Objective

if TYPE_CHECKING:
    from flsparse.clients.core.fit import Fit
    from flsparse.clients.core.method import Hooks
    from flsparse.wire.messages import Scalar

_EVALUATION_BATCH = 500
_AUXILIARY = 0.3  # weight of an auxiliary classifier's loss in training (Szegedy et al., 2015, arXiv 1409.4842)


def make_optimizer(
    model: nn.Module, config: Mapping[str, "Scalar"], others: Sequence[Tensor] = ()
) -> torch.optim.Optimizer:
    """Return SGD, or with ``optimizer`` "adamw" AdamW, at this round's learning rate.

    Parameters
    ----------
    model : nn.Module
        Weight decay applies to all its parameters.
    config : Mapping
        ``lr``; optionally ``lr-final`` and ``lr-schedule`` with ``server-round`` and ``num-rounds`` (see
        :func:`learning_rate`), ``momentum`` (of SGD), ``weight-decay``.
    others : sequence of Tensor
        Trained as the model's parameters are, though none of them: personal arrays.

    Raises
    ------
    ValueError
        The optimizer is another.
    """
    rate = learning_rate(
        int(config.get("server-round", 1)),
        int(config.get("num-rounds", 1)),
        float(_asked(config, "lr")),
        float(config.get("lr-final", 0.0)),
        str(config.get("lr-schedule", "geometric")),
    )
    decay, kind = float(config.get("weight-decay", 0.0)), str(config.get("optimizer", "sgd"))
    trained = [*model.parameters(), *others]
    if kind == "adamw":
        return torch.optim.AdamW(trained, lr=rate, weight_decay=decay)
    if kind != "sgd":
        raise ValueError(f"client.optimizer={kind!r} is none of sgd, adamw")
    return SGD(trained, lr=rate, momentum=float(config.get("momentum", 0.0)), weight_decay=decay)


def _asked(config: Mapping[str, "Scalar"], key: str) -> "Scalar":
    """Return a value that every training message must bring."""
    if key not in config:
        raise ValueError(
            f"the message brings no {key!r}: strategy.start(..., train_config=ConfigRecord({{{key!r}: ...}}))"
        )
    return config[key]


def train(
    fit: "Fit",
    method: "Hooks",
    data: Data,
    flops: TrainingFlops,
    objective: Objective,
    augment: Augment | None = None,
) -> dict[str, np.ndarray]:
    """Train a model on one node's data and return the arrays to send.

    Reads ``batch-size``, ``local-epochs``, ``local-steps`` (0: whole epochs) and ``clip-grad`` (largest gradient norm,
    0: off) from ``fit.config``. Fills ``fit.metrics``: ``train-loss`` and, of classes, ``train-accuracy``, means over
    all steps; ``num-examples``; ``steps``; ``step-seconds``, the mean; ``peak-memory-bytes``, of the process;
    ``flops-dense`` and ``flops-sparse``, of all steps together (:mod:`flsparse.metering.flops`).

    Parameters
    ----------
    fit : Fit
        The received weights loaded; on the device where training is to run.
    method : LocalMethod
        Its hooks run around the steps; it sees the gradients already clipped.
    data : Data
        At least one sample.
    flops : TrainingFlops
        The counter of this model's task.
    objective : Objective
        The loss.
    augment : callable, optional
        Changes a batch of stored inputs and targets before each step.

    Returns
    -------
    dict[str, np.ndarray]
        The arrays of ``method.after_fit``.

    Raises
    ------
    ValueError
        If the node has no data, the batch size or the amount of work is not above 0, or training has diverged.
    """
    batch_size, epochs = int(_asked(fit.config, "batch-size")), int(fit.config.get("local-epochs", 1))
    steps, clip = int(fit.config.get("local-steps", 0)), float(fit.config.get("clip-grad", 0.0))
    if len(data) == 0:
        raise ValueError(f"node {fit.node} has no training data")
    if batch_size < 1 or (steps < 1 and epochs < 1):
        raise ValueError(
            f"batch-size={batch_size} and local-epochs={epochs} (or local-steps={steps}) must be at least 1"
        )
    model, optimizer, device = fit.model, fit.optimizer, _device(fit.model)
    inputs, targets = data.inputs.to(device), data.targets.to(device)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    loss_sum, correct = torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)
    seen = predictions = first_step = 0
    all_terms = 0.0
    shuffle = torch.Generator().manual_seed(rng.derive(fit.seed, fit.server_round, fit.node, "batches"))

    model.train()
    with seeded(rng.derive(fit.seed, fit.server_round, fit.node, "dropout"), device):
        method.before_fit(fit)
        first_step, started = fit.step, time.perf_counter()
        for positions in batches(len(data), batch_size, shuffle, epochs=epochs, steps=steps):
            chosen = positions.to(device)
            stored = inputs[chosen], targets[chosen]
            drawn, truth = augment(*stored) if augment else stored
            batch = data.prepare(drawn)
            target = objective.target(truth, batch)
            raw, *auxiliary = _outputs(model(batch))
            loss = objective.loss(raw, target)
            others = [_AUXILIARY * objective.loss(each, target) for each in auxiliary]
            optimizer.zero_grad(set_to_none=True)
            sum(others, loss).backward()
            if clip > 0:
                nn.utils.clip_grad_norm_(parameters, clip)
            method.after_backward(fit)
            optimizer.step()
            fit.step += 1
            method.after_step(fit)
            terms = objective.terms(target)
            loss_sum += loss.detach() * terms
            all_terms += terms
            if objective.form == "classes":
                logits, labels = objective.pairs(raw.detach(), target)
                correct += (logits.argmax(-1) == labels).sum()
                predictions += len(labels)
            seen += len(positions)
        total = float(loss_sum)  # waits for a GPU, so the time below is the work's
        elapsed = time.perf_counter() - started
        done = fit.step - first_step
        _check_finite(model, parameters, done, float(optimizer.param_groups[0]["lr"]))
        per_example = flops(model, data.prepare(inputs[[0, -1]]))
        fit.metrics |= {
            "train-loss": total / all_terms if all_terms else math.nan,
            **({"train-accuracy": float(correct) / predictions} if predictions else {}),
            "num-examples": float(len(data)),
            "steps": float(done),
            "step-seconds": elapsed / done,
            "peak-memory-bytes": peak_memory_bytes(),
            "flops-dense": per_example.dense * seen,
            "flops-sparse": per_example.sparse * seen,
        }
        return method.after_fit(fit)


def _outputs(found: Tensor | Sequence[Tensor | None]) -> list[Tensor]:
    """Return a model's outputs, those of auxiliary classifiers behind the first."""
    return [found] if isinstance(found, Tensor) else [each for each in found if each is not None]


def _check_finite(model: nn.Module, trained: Sequence[Tensor], steps: int, rate: float) -> None:
    """Refuse to send weights of a training that has diverged; a loss alone may be NaN for another reason."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter in trained:
        if not torch.isfinite(parameter.detach()).all():
            name = names.get(id(parameter), "an array that stays on the node")
            raise ValueError(
                f"training diverged: {name} is not finite after {steps} step{'s' * (steps != 1)} at learning rate "
                f"{rate:g}; lower client.lr, or bound the gradients by client.clip_grad"
            )


def evaluate(model: nn.Module, data: Data, meter: Meter) -> Meter:
    """Measure a model over some data; its mode is put back afterwards.

    Parameters
    ----------
    model : nn.Module
    data : Data
        At least one sample.
    meter : Meter
        Takes the sums, and is returned.

    Raises
    ------
    ValueError
        If there is no data.
    """
    if len(data) == 0:
        raise ValueError("there is no data to evaluate on")
    device, was_training = _device(model), model.training
    model.eval()
    try:
        with torch.no_grad():
            for index in torch.split(data.index, _EVALUATION_BATCH):
                inputs = data.prepare(data.all_inputs[index].to(device))
                meter.add(model(inputs), meter.objective.target(data.all_targets[index].to(device), inputs))
    finally:
        model.train(was_training)
    return meter


def _device(model: nn.Module) -> torch.device:
    parameter: Tensor = next(model.parameters())
    return parameter.device
