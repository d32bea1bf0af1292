"""What the accuracy of dense FedAvg costs: rounds and bytes until each method holds it.

    python benchmarks/to_target.py --data ROOT [--set fashion_mnist ...] [--seeds 3] [--only NAME ...]
    python benchmarks/to_target.py --data ROOT [--set fashion_mnist ...] --grid 0.05 0.1 0.2 [--only NAME ...]

Every method has the same rounds, sampling and schedule (cosine), and a learning rate of its own: that of SETS, the
best of a grid on the validation split, which the second form prints (docs/methods/sparsyfed.md says where it is
another), or where SETS has none what ``client.lr=auto`` finds with seed 0. Dense FedAvg sends its model as one array,
less than Flower does. Accuracy is the mean of the last three evaluations; the target is that of dense FedAvg less half
a point, held for three evaluations. Bytes are both ways and framed; payloads alone stand beside them. Finished runs are
kept in --out. Sets that are none of the application's ("cifar2k", "mnist5k", "vowels", "cancer") are written to ROOT by
``further_sets.py``.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sweep import Run, markdown, mean_and_spread, run_all

from flsparse.runs.target import to_target

EF = ["parts=[topk_update]", "parts.topk_update.decay=0.9"]
LOCAL_SGD = ["strategy=dppf", "strategy.alpha=1", "strategy.lambda_=0", "client.local_steps=0"]  # DPPF without its push
METHODS: dict[str, list[str]] = {
    "dense FedAvg": ["strategy=fedavg"],
    "4-bit FedAvg": ["strategy=fedavg_4bit"],
    "4-bit FedAvg, 5 % of each update, error feedback": ["strategy=fedavg_4bit", *EF, "parts.topk_update.density=0.05"],
    "DPPF's coded local SGD, 15 % of each change": LOCAL_SGD,
    "Top-K, 95 %": ["strategy=topk"],
    "SparsyFed, 80 %": ["strategy=sparsyfed", "strategy.sparsity=0.8"],
    "SparsyFed, 95 %": ["strategy=sparsyfed"],
    "SparsyFed, 98 %": ["strategy=sparsyfed", "strategy.sparsity=0.98"],
}
DENSE = "dense FedAvg"
OFFERS = (DENSE, "SparsyFed, 80 %", "SparsyFed, 95 %", "SparsyFed, 98 %")
LAST = 3  # evaluations that make an accuracy


@dataclass(frozen=True)
class Setting:
    """A federation: its overrides, the methods measured by default, and the learning rates that grids have chosen."""

    overrides: list[str]
    methods: tuple[str, ...] = OFFERS
    rates: dict[str, float] = field(default_factory=dict)


OF_A_FILE = ["num_clients=20", "partition.kind=dirichlet_equal", "partition.alpha=1.0"]
SETS = {
    "fashion_mnist": Setting(
        [
            *("dataset=fashion_mnist", "model=cnn", "num_clients=100", "fraction_train=0.1", "partition.alpha=1.0"),
            *("client.batch_size=32", "client.local_epochs=1"),
        ],
        methods=tuple(METHODS),
        rates={
            "dense FedAvg": 0.1,
            "4-bit FedAvg": 0.1,
            "4-bit FedAvg, 5 % of each update, error feedback": 0.1,
            "DPPF's coded local SGD, 15 % of each change": 0.05,
            "Top-K, 95 %": 0.1,
            "SparsyFed, 80 %": 0.4,
            "SparsyFed, 95 %": 0.4,
            "SparsyFed, 98 %": 0.4,
        },
    ),
    "cifar2k": Setting(
        [
            *("dataset=arrays", "dataset.file=cifar2k.npz", "model=resnet20", "model.norm=group", "num_clients=5"),
            *("fraction_train=1.0", "partition.kind=iid", "client.batch_size=16", "client.local_epochs=1"),
            *("client.momentum=0.9", "evaluate.every=2"),
        ],
        rates=dict.fromkeys(OFFERS, 0.1) | {DENSE: 0.05},
    ),
    "shakespeare": Setting(
        [
            *("dataset=shakespeare", "model=char_lstm", "model.hidden=64", "num_clients=40", "fraction_train=0.1"),
            *("client.local_steps=16", "client.clip_grad=5"),
        ],
        rates={DENSE: 6.4, "SparsyFed, 80 %": 12.8, "SparsyFed, 95 %": 6.4},
    ),
    "digits": Setting(["dataset=digits", "model=cnn", "num_clients=20"]),
    "mnist5k": Setting(
        ["dataset=arrays", "dataset.file=mnist5k.npz", "model=cnn", "client.local_epochs=1", *OF_A_FILE],
        rates=dict.fromkeys(OFFERS, 0.2),
    ),
    "vowels": Setting(["dataset=arrays", "dataset.file=vowels.npz", "model=conv1d", *OF_A_FILE]),
    "cancer": Setting(["dataset=arrays", "dataset.file=cancer.npz", "model=mlp", *OF_A_FILE]),
}


def final(run: Run) -> float:
    """Return the mean accuracy of the last evaluations."""
    accuracy = run.series("accuracy")
    return float(np.mean(accuracy[~np.isnan(accuracy)][-LAST:]))


def framed(run: Run) -> float:
    """Return the megabytes of all rounds, both ways."""
    return float(run.summary["uplink_wire_bytes"] + run.summary["downlink_wire_bytes"]) / 1e6


def columns(runs: list[Run], dense: list[Run]) -> list[str]:
    """Return a method's row: accuracy, what it took to the target, and what all rounds took."""
    cells = [mean_and_spread([100 * final(run) for run in runs])]
    lost = [100 * (final(d) - final(run)) for run, d in zip(runs, dense, strict=True)]
    cells += ["" if runs is dense else mean_and_spread(lost)]
    found = [to_target(run.rows, final(d) - 0.005) for run, d in zip(runs, dense, strict=True)]
    bases = [to_target(d.rows, final(d) - 0.005) for d in dense]
    held = [each for each in found if each is not None]
    if len(held) < len(runs):
        cells += [f"held by {len(held)} of {len(runs)}", "", "", ""]
    else:
        payload = [(each["uplink_bytes"] + each["downlink_bytes"]) / 1e6 for each in held]
        ratios = [b["wire_bytes"] / each["wire_bytes"] if b else np.nan for b, each in zip(bases, held, strict=True)]
        cells += [mean_and_spread([float(each["rounds"]) for each in held], 0), mean_and_spread(payload, 2)]
        cells += [mean_and_spread([each["wire_bytes"] / 1e6 for each in held], 2), f"{np.mean(ratios):.0f}x"]
    equal = np.mean([framed(d) / framed(run) for run, d in zip(runs, dense, strict=True)])
    return [*cells, mean_and_spread([framed(run) for run in runs], 2), f"{equal:.0f}x"]


class Bench:
    """Runs one setting's methods, each folder once."""

    def __init__(self, setting: Setting, data: Path, out: Path) -> None:
        self.setting, self.data, self.out = setting, data, out

    def runs(self, name: str, lr: float | str, seeds: range, on: str = "test") -> list[Run]:
        """Return a method's runs at a rate, measured on a split."""
        final_lr = [] if lr == "auto" else [f"client.lr_final={float(lr) / 50}"]
        root = [] if "dataset=digits" in self.setting.overrides else [f"dataset.root={self.data}"]  # packaged
        common = [
            *METHODS[name], *self.setting.overrides, *root, "client.lr_schedule=cosine", f"client.lr={lr}", *final_lr,
            f"evaluate.on={on}",
        ]  # fmt: skip
        folder = name.replace(" ", "_").replace("%", "").replace("'", "")
        jobs = {f"{folder}-lr{lr}-{on}-seed{seed}": [*common, f"seed={seed}"] for seed in seeds}
        return list(run_all(jobs, self.out, 1).values())

    def rate(self, name: str) -> float:
        """Return a method's learning rate: that of a grid, or what a search finds with seed 0."""
        if name in self.setting.rates:
            return self.setting.rates[name]
        return float(self.runs(name, "auto", range(1))[0].summary["lr_search"]["lr"])

    def grid(self, names: Sequence[str], rates: list[float]) -> list[list[object]]:
        """Return a table's rows: a method's accuracies on the validation split, by rate."""
        rows: list[list[object]] = []
        for name in names:
            of = [self.runs(name, lr, range(1), "validation")[0] for lr in rates]
            rows.append([name, *(f"{100 * final(run):.1f}" for run in of)])
        return rows


def measured(bench: Bench, names: list[str], seeds: range) -> list[list[object]]:
    """Return a table's rows: a method's rate and columns."""
    rates = {name: bench.rate(name) for name in names}
    runs = {name: bench.runs(name, rates[name], seeds) for name in names}
    return [[name, rates[name], *columns(runs[name], runs[DENSE])] for name in names]


def main() -> None:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="root of the data sets")
    parser.add_argument("--set", nargs="+", choices=SETS, default=["fashion_mnist"])
    parser.add_argument("--out", type=Path, default=Path("runs/to_target"), help="where run folders go")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--grid", type=float, nargs="+", metavar="RATE", help="print a grid on the validation split")
    parser.add_argument("--only", nargs="+", choices=METHODS, help="methods to run")
    arguments = parser.parse_args()
    rows: list[list[object]] = []
    for chosen in arguments.set:
        bench = Bench(SETS[chosen], arguments.data.resolve(), arguments.out.resolve() / chosen)
        names = arguments.only or SETS[chosen].methods
        if arguments.grid:
            rows += [[chosen, *row] for row in bench.grid(names, arguments.grid)]
        else:
            names = list(dict.fromkeys([DENSE, *names]))
            rows += [[chosen, *row] for row in measured(bench, names, range(arguments.seeds))]
    header = ["lr", "accuracy %", "points lost", "rounds to target", "payload MB", "framed MB", "ratio"]
    header += ["framed MB, all rounds", "ratio"]
    print(markdown(["set", "method", *(arguments.grid or header)], rows))


if __name__ == "__main__":
    main()
