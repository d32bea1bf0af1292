"""What each ingredient of the recommended SparsyFed is worth, on Fashion-MNIST.

    python benchmarks/recipe.py --data ROOT [--seeds 1] [--on validation] [--only NAME ...]

The setting is that of ``accuracy_and_bytes.py`` (Dirichlet 1.0, 95 %, 30 rounds). Each row is the recipe with one thing
changed; what no setting changes is changed in the program, under VARIANTS. Accuracy is the mean of the last five
rounds; the target is the first row's own accuracy minus half a point, held for three rounds. Finished runs are kept
in --out; one run at a time, one thread.
"""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sweep import Run, markdown, mean_and_spread, run_all

from flsparse.app.main import main as flsparse
from flsparse.clients.parts.prune import SCOPES
from flsparse.runs.target import to_target
from flsparse.sparsity import kept_count, prune_per_layer
from flsparse.strategies.parts import sparse

BASE = [
    *("dataset=fashion_mnist", "model=cnn", "partition.alpha=1.0", "num_clients=100", "fraction_train=0.1"),
    *("client.batch_size=32", "client.local_epochs=1", "num_rounds=30"),
]
DENSE = ["strategy=fedavg", "client.lr=0.1", "client.lr_final=0.002"]
SPARSE = ["strategy=sparsyfed", "client.lr=0.4", "client.lr_final=0.008"]
WHOLE = ["parts=[topk_update]", "parts.topk_update.density=1", "parts.topk_update.decay=0"]
# name: (what is changed in the program, overrides)
ROWS: dict[str, tuple[str, list[str]]] = {
    "dense FedAvg": ("", DENSE),
    "dense FedAvg, cosine": ("", [*DENSE, "client.lr_schedule=cosine"]),
    "dense FedAvg, cosine, server rate 1.5": ("", [*DENSE, "client.lr_schedule=cosine", "strategy.server_lr=1.5"]),
    "SparsyFed": ("", SPARSE),
    "geometric rates": ("", [*SPARSE, "client.lr_schedule=geometric"]),
    "server rate 1": ("", [*SPARSE, "strategy.server_lr=1"]),
    "server rate 2": ("", [*SPARSE, "strategy.server_lr=2"]),
    "nodes prune, too": ("ahead", SPARSE),
    "updates of half that density on the ramp": ("", [*SPARSE, *WHOLE, "parts.topk_update.density=0.05"]),
    "whole updates on the ramp": ("", [*SPARSE, *WHOLE]),
    "magnitudes ranked": ("", [*SPARSE, "strategy.scope=global"]),
    "Erdos-Renyi densities": ("erk", [*SPARSE, "strategy.scope=layer"]),
    "equal densities": ("", [*SPARSE, "strategy.scope=layer"]),
    "ramp of half the rounds": ("half", SPARSE),
    "Top-K": ("", ["strategy=topk", "client.lr=0.2", "client.lr_final=0.004"]),
}


def ahead() -> None:
    """Let nodes prune to the sparsity of the next model, as the server does, and send whole updates."""

    def asked(self: sparse.SparseModel, server_round: int, num_rounds: int, node: Any = None) -> float:
        return self.target(server_round, num_rounds)

    sparse.SparseModel.asked = asked  # type: ignore[method-assign]


def erk() -> None:
    """Let a layer's density follow the sum of its sides over their product (Evci et al. 2020, arXiv 1911.11134)."""

    def prune(arrays: Mapping[str, np.ndarray], sparsity: float, names: Sequence[str]) -> dict[str, np.ndarray]:
        sizes = {name: arrays[name].size for name in names}
        raw = {name: sum(arrays[name].shape) / sizes[name] for name in names}
        left, full = kept_count(sum(sizes.values()), sparsity), set[str]()
        while True:
            free = [name for name in names if name not in full]
            scale = left / max(1e-9, sum(raw[name] * sizes[name] for name in free))
            over = [name for name in free if raw[name] * scale > 1]
            if not over:
                break
            full.update(over)
            left -= sum(sizes[name] for name in over)
        targets = {name: 0.0 if name in full else 1 - raw[name] * scale for name in names}
        return prune_per_layer(arrays, targets, names)

    SCOPES["layer"] = prune


def half() -> None:
    """Let the sparsity rise over half of the rounds."""

    def rise(server_round: int, num_rounds: int, target: float) -> float:
        return target * (1 - (1 - min(1.0, server_round / math.ceil(num_rounds / 2))) ** 3)

    sparse.sparsity_ramp = rise  # type: ignore[attr-defined]


VARIANTS: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "ahead": ahead,
    "erk": erk,
    "half": half,
}


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="root of the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/recipe"), help="where run folders go")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--on", choices=("validation", "test"), default="validation")
    parser.add_argument("--only", nargs="*", choices=ROWS, default=list(ROWS), help="rows; the first sets the target")
    arguments = parser.parse_args()
    common = [*BASE, f"dataset.root={arguments.data.resolve()}", f"evaluate.on={arguments.on}"]
    runs: dict[str, list[Run]] = {}
    for name in arguments.only:
        variant, overrides = ROWS[name]
        jobs = {
            f"{name.replace(' ', '_').replace(',', '')}-{arguments.on}-seed{seed}": [
                *overrides,
                *common,
                f"seed={seed}",
            ]
            for seed in range(arguments.seeds)
        }
        program = [__file__, "run", variant]
        runs[name] = list(run_all(jobs, arguments.out.resolve(), 1, program).values())
    first = runs[arguments.only[0]]
    rows = [[name, *columns(of, first)] for name, of in runs.items()]
    print(
        markdown(["", "accuracy %", "rounds to target", "MB to target, framed", "up MB", "down MB", "framed MB"], rows)
    )


def columns(runs: list[Run], baseline: list[Run]) -> list[str]:
    """Return accuracy, rounds and megabytes to the target, and megabytes of all rounds, of one row's runs."""
    found = [to_target(run.rows, base.late_accuracy() / 100 - 0.005) for run, base in zip(runs, baseline, strict=True)]
    held = [each for each in found if each is not None]
    cells = [mean_and_spread([run.late_accuracy() for run in runs])]
    if len(held) == len(runs):
        cells += [mean_and_spread([each["rounds"] for each in held], 0)]
        cells += [mean_and_spread([each["wire_bytes"] / 1e6 for each in held], 2)]
    else:
        cells += [f"held by {len(held)} of {len(runs)}", "-"]
    up, down = ([run.summary[f"{way}_bytes"] / 1e6 for run in runs] for way in ("uplink", "downlink"))
    framed = [(run.summary["uplink_wire_bytes"] + run.summary["downlink_wire_bytes"]) / 1e6 for run in runs]
    return cells + [f"{np.mean(each):.2f}" for each in (up, down, framed)]


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        VARIANTS[sys.argv[2]]()
        sys.argv[1:] = sys.argv[3:]
        flsparse()
    main()
