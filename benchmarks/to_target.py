"""What the accuracy of dense FedAvg costs: rounds, seconds and bytes until each method holds it, on Fashion-MNIST.

    python benchmarks/to_target.py --data ROOT [--seeds 3] [--only NAME ...] [--rounds 40]

100 nodes of 540 images (Dirichlet 1.0), 10 a round, one epoch at batch 32, a CNN of 89,914 parameters; every method
has the same rounds, sampling and schedule (cosine), and a learning rate of its own. Dense FedAvg sends its model as
one array, less than Flower does. The target is the mean of its rounds 28 to 30, less half a point, held for three
rounds. Bytes are both ways and framed; payloads alone stand beside them. Finished runs are kept in --out.
"""

import argparse
from pathlib import Path

import numpy as np
from sweep import Run, markdown, mean_and_spread, run_all

from flsparse.runs.target import to_target

BASE = [
    *("dataset=fashion_mnist", "model=cnn", "num_clients=100", "fraction_train=0.1", "partition.alpha=1.0"),
    *("client.batch_size=32", "client.local_epochs=1", "client.lr_schedule=cosine"),
]
EF = ["parts=[topk_update]", "parts.topk_update.density=0.05", "parts.topk_update.decay=0.9"]
# name: (learning rate, overrides)
METHODS: dict[str, tuple[float, list[str]]] = {
    "dense FedAvg": (0.1, ["strategy=fedavg"]),
    "4-bit FedAvg": (0.1, ["strategy=fedavg_4bit"]),
    "4-bit FedAvg, 5 % of each update, error feedback": (0.1, ["strategy=fedavg_4bit", *EF]),
    "Top-K, 95 %": (0.2, ["strategy=topk"]),
    "SparsyFed, 80 %": (0.4, ["strategy=sparsyfed", "strategy.sparsity=0.8"]),
    "SparsyFed, 95 %": (0.4, ["strategy=sparsyfed"]),
    "SparsyFed, 98 %": (0.4, ["strategy=sparsyfed", "strategy.sparsity=0.98"]),
}
DENSE, DENSE_ROUNDS = "dense FedAvg", 30


def final(run: Run) -> float:
    """Return the accuracy of the last three of thirty rounds."""
    return float(np.mean(run.series("accuracy")[DENSE_ROUNDS - 3 : DENSE_ROUNDS]))


def columns(runs: list[Run], targets: list[float], dense: list[float]) -> list[str]:
    """Return a method's row: accuracy after thirty rounds, and what it took to the target."""
    cells = [mean_and_spread([100 * final(run) for run in runs])]
    found = [to_target(run.rows, target) for run, target in zip(runs, targets, strict=True)]
    held = [each for each in found if each is not None]
    if len(held) < len(runs):
        return [*cells, f"held by {len(held)} of {len(runs)}", "", "", "", ""]
    payload = [(each["uplink_bytes"] + each["downlink_bytes"]) / 1e6 for each in held]
    framed = [each["wire_bytes"] / 1e6 for each in held]
    cells += [mean_and_spread([float(each["rounds"]) for each in held], 0)]
    cells += [mean_and_spread([float(each["seconds"]) for each in held], 0)]
    cells += [mean_and_spread(payload, 2), mean_and_spread(framed, 2)]
    return [*cells, f"{np.mean([whole / sent for whole, sent in zip(dense, framed, strict=True)]):.0f}x"]


def main() -> None:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="root of the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/to_target"), help="where run folders go")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", nargs="*", choices=METHODS, default=list(METHODS), help="methods to run")
    arguments = parser.parse_args()
    names = list(dict.fromkeys([DENSE, *arguments.only]))
    jobs = {}
    for name in names:
        lr, overrides = METHODS[name]
        for seed in range(arguments.seeds):
            jobs[f"{name.replace(' ', '_').replace('%', '')}-seed{seed}"] = [
                *overrides, *BASE, f"dataset.root={arguments.data.resolve()}", f"num_rounds={arguments.rounds}",
                f"client.lr={lr}", f"client.lr_final={lr / 50}", f"seed={seed}",
            ]  # fmt: skip
    done = list(run_all(jobs, arguments.out.resolve(), arguments.workers).values())
    runs = {name: done[i * arguments.seeds : (i + 1) * arguments.seeds] for i, name in enumerate(names)}
    targets = [final(run) - 0.005 for run in runs[DENSE]]
    found = [to_target(run.rows, target) for run, target in zip(runs[DENSE], targets, strict=True)]
    dense = [float("nan") if each is None else each["wire_bytes"] / 1e6 for each in found]
    print(f"targets: {', '.join(f'{100 * target:.1f}' for target in targets)} %\n")
    header = ["method", "lr", "accuracy %, 30 rounds", "rounds", "seconds", "payload MB", "framed MB", "ratio"]
    print(markdown(header, [[n, METHODS[n][0], *columns(runs[n], targets, dense)] for n in names]))


if __name__ == "__main__":
    main()
