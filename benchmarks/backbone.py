"""Models to start from: trained in one place, on half of the classes of CIFAR-10 or half of Shakespeare's roles.

    python benchmarks/backbone.py cifar10 --data ROOT --to backbone.safetensors
    python benchmarks/backbone.py shakespeare --data ROOT --to base.safetensors

SGD with momentum 0.9, or AdamW, a cosine from the rate of the setting to 0, no augmentation, one thread. The runs that
start from them are in docs/tasks.md.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from flsparse import rng
from flsparse.tasks import Task, build_task
from flsparse.tasks.data import Data


@dataclass(frozen=True)
class Setting:
    """A model, the steps that it is trained, their batch, optimizer and largest learning rate."""

    model: dict[str, Any]
    steps: int
    batch: int
    optimizer: str
    rate: float


SETTINGS = {
    "cifar10": Setting({"name": "cnn", "width": 32, "norm": "batch"}, steps=1500, batch=64, optimizer="sgd", rate=0.05),
    "shakespeare": Setting(
        {"name": "hf", "arch": "gpt2", "config": {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": 80}},
        steps=300,
        batch=32,
        optimizer="adamw",
        rate=0.004,
    ),
}


def half_of(task: Task) -> np.ndarray:
    """Return the training samples of the first half of the classes, or of every second natural node."""
    source = task.source
    if source.train_groups is not None:
        return np.flatnonzero(source.train_groups % 2 == 0)
    return np.flatnonzero(source.train_targets.numpy() < source.num_classes // 2)


def trained(task: Task, setting: Setting) -> torch.nn.Module:
    """Return the task's model after the steps of its setting."""
    model, index, source = task.model(), half_of(task), task.source
    optimizer = task.optimizer(model, {"optimizer": setting.optimizer, "lr": setting.rate, "momentum": 0.9})
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / setting.steps))
    )
    draw = rng.stream(0, 0, -1, "backbone")
    model.train()
    for step in range(setting.steps):
        batch = torch.from_numpy(draw.choice(index, setting.batch, replace=False))
        inputs = source.prepare(source.train_inputs[batch])
        loss = task.objective.loss(model(inputs), task.objective.target(source.train_targets[batch], inputs))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {float(loss.detach()):.3f}", flush=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETTINGS)
    parser.add_argument("--data", required=True, help="the folder of the data set, as dataset.root")
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    setting, kind = SETTINGS[arguments.set], "natural" if arguments.set == "shakespeare" else "iid"
    dataset = {"name": arguments.set, "root": arguments.data}
    nodes = {"partition": {"kind": kind}} | ({} if kind == "natural" else {"num_clients": 1})
    task = build_task({"dataset": dataset, "model": setting.model, "seed": 0, **nodes})
    model = trained(task, setting)
    half: Any = torch.from_numpy(half_of(task)[:5000])
    data = Data(task.source.train_inputs, task.source.train_targets, half, task.source.prepare)
    print({key: round(value, 3) for key, value in task.evaluate(model, data).items() if isinstance(value, float)})
    save_file({name: value.contiguous().clone() for name, value in model.state_dict().items()}, arguments.to)


if __name__ == "__main__":
    main()
