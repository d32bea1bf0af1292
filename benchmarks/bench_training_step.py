"""The training step: dense against Powerpropagation, with and without activation pruning.

Time, bytes saved for the backward pass, peak memory and FLOPs, on the 90 k-parameter CNN and on ResNet-20 for CIFAR.
All weights are pruned to one global sparsity first. Times are medians of interleaved rounds in one process; each peak
memory is the growth of the resident set of a fresh process.

    python benchmarks/bench_training_step.py --batch 64 --threads 1
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flsparse.metering.flops import training_flops
from flsparse.sparsity import layer_densities, prunable_names, prune_global, sparsify
from flsparse.tasks.models import build_model

RESULTS = Path(__file__).parent / "results" / "training_step.json"
VARIANTS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "reparametrized": {"activation_pruning": False},
    "+ pruning, frozen": {"activation_threshold": "frozen"},
    "+ pruning, exact": {"activation_threshold": "exact"},
}


SHAPES = {"cnn": (1, 28, 28), "resnet20": (3, 32, 32)}


def prepare(model_name: str, variant: str, sparsity: float) -> nn.Module:
    """Build one variant with its weights pruned, the same weights in all of them."""
    torch.manual_seed(0)
    model = build_model({"name": model_name}, SHAPES[model_name], 10)
    options = VARIANTS[variant]
    if options is not None:
        sparsify(model, **options)
    arrays = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    pruned = prune_global(arrays, sparsity, prunable_names(model))
    model.load_state_dict({name: torch.from_numpy(value) for name, value in pruned.items()})
    return model


class Trainer:
    """A model, a batch and a step."""

    def __init__(self, model_name: str, variant: str, batch: int, sparsity: float) -> None:
        self.model = prepare(model_name, variant, sparsity)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.x = torch.randn(batch, *SHAPES[model_name])
        self.y = torch.randint(10, (batch,))

    def loss(self) -> Tensor:
        """Run the forward pass."""
        return nn.functional.cross_entropy(self.model(self.x), self.y)

    def step(self) -> None:
        """Run one training step."""
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()

    def seconds(self, steps: int) -> float:
        """Return the seconds of one step, mean over some."""
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        return (time.perf_counter() - start) / steps

    def saved_bytes(self) -> int:
        """Return the bytes of all distinct storages kept for the backward pass, parameters and the batch excluded."""
        own = {value.untyped_storage().data_ptr() for value in (*self.model.state_dict().values(), self.x, self.y)}
        storages: dict[int, int] = {}
        alive: list[Tensor] = []

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or an address could be used again
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.loss().backward()
        return sum(size for address, size in storages.items() if address not in own)


def peak_bytes(model_name: str, variant: str, batch: int, sparsity: float) -> int:
    """Return how far training steps raise the resident set of this process above what it holds before them (Linux)."""
    Trainer(model_name, variant, 2, sparsity).step()
    trainer = Trainer(model_name, variant, batch, sparsity)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    for _ in range(3):
        trainer.step()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Return a size of this process from the kernel, in bytes; a child's `ru_maxrss` would start at its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak_in_fresh_process(*arguments: object) -> int:
    """Run `peak_bytes` in a new interpreter whose allocator gives freed memory back: the peak is what is alive."""
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "1000000"}
    command = [sys.executable, __file__, "--peak", json.dumps(arguments)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def measure(model_name: str, batch: int, sparsity: float, rounds: int) -> list[dict[str, Any]]:
    """Measure all variants of one model."""
    trainers = {variant: Trainer(model_name, variant, batch, sparsity) for variant in VARIANTS}
    for trainer in trainers.values():
        trainer.seconds(2)
    steps = max(1, int(0.1 / trainers["dense"].seconds(2)))
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(rounds):
        for variant, trainer in trainers.items():
            times[variant].append(trainer.seconds(steps))
    rows = []
    for variant, trainer in trainers.items():
        ratios = [own / dense for own, dense in zip(times[variant], times["dense"], strict=True)]
        flops = training_flops(trainer.model, trainer.x, layer_densities(trainer.model) if VARIANTS[variant] else {})
        rows.append(
            {
                "model": model_name,
                "batch": batch,
                "sparsity": sparsity,
                "threads": torch.get_num_threads(),
                "variant": variant,
                "step_ms": 1e3 * statistics.median(times[variant]),
                "time_ratio": statistics.median(ratios),
                "saved_bytes": trainer.saved_bytes(),
                "peak_bytes": peak_in_fresh_process(model_name, variant, batch, sparsity),
                "flops_dense": flops.dense,
                "flops_allowed": flops.sparse,
            }
        )
    for row in rows:
        for key in ("saved", "peak"):
            row[f"{key}_ratio"] = row[f"{key}_bytes"] / max(1, rows[0][f"{key}_bytes"])
    return rows


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="cnn,resnet20")
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(peak_bytes(*json.loads(arguments.peak)))
        return
    rows = []
    print("model     batch  variant             step ms   time  saved MB  saved  peak MB   peak  MFLOP dense  allowed")
    for model_name in arguments.models.split(","):
        for batch in arguments.batch:
            for row in measure(model_name, batch, arguments.sparsity, arguments.rounds):
                rows.append(row)
                print(
                    f"{model_name:9} {batch:5}  {row['variant']:18} {row['step_ms']:8.2f} {row['time_ratio']:6.2f}"
                    f" {row['saved_bytes'] / 1e6:9.2f} {row['saved_ratio']:6.2f}"
                    f" {row['peak_bytes'] / 1e6:8.1f} {row['peak_ratio']:6.2f}"
                    f" {row['flops_dense'] / 1e6:12.2f} {row['flops_allowed'] / 1e6:8.2f}",
                    flush=True,
                )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
