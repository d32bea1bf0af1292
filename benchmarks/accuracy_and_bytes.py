"""Accuracy against bytes: dense FedAvg, Top-K and SparsyFed on Fashion-MNIST, each with a learning rate of its own.

    python benchmarks/accuracy_and_bytes.py --data ROOT [--seeds 3] [--only alpha1_95 ...] [--rates topk=0.2 ...]

100 nodes of equal size (label Dirichlet), 10 a round, a CNN of 89,914 parameters, one local epoch, batch 32. Every
method's learning rate is the best of the same grid on the validation split (seed 0); the accuracies printed are on the
test set, mean over the last five rounds, with the learning rate so chosen. Finished runs are kept in --out.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from sweep import Run, markdown, mean_and_spread, run_all

GRID = (0.05, 0.1, 0.2, 0.4, 0.8)
BASE = [
    "dataset=fashion_mnist",
    "model=cnn",
    "num_clients=100",
    "fraction_train=0.1",
    "client.batch_size=32",
    "client.local_epochs=1",
]
# name: (Dirichlet alpha, sparsity, rounds, methods)
SETTINGS = {
    "alpha1_95": (1.0, 0.95, 30, ("fedavg", "topk", "sparsyfed")),
    "alpha1_98": (1.0, 0.98, 30, ("fedavg", "topk", "sparsyfed")),
    "alpha01_95": (0.1, 0.95, 30, ("fedavg", "topk", "sparsyfed")),
    "alpha1_95_100": (1.0, 0.95, 100, ("fedavg", "topk", "sparsyfed")),
}
# what quantization, activation pruning and the ramp do, at SparsyFed's learning rate
VARIANTS = {
    "alpha1_95": {
        "sparsyfed fp32 values": ["codec.values=fp32", "codec.downlink_values=fp32"],
        "sparsyfed activation pruning": ["strategy.activation_pruning=true"],
        "sparsyfed no ramp": ["strategy.ramp=false"],
    }
}


def overrides(
    setting: str, method: str, lr: float, seed: int, data: Path, on: str, extra: Iterable[str] = ()
) -> list[str]:
    """Return the command line of one run."""
    alpha, sparsity, rounds, _ = SETTINGS[setting]
    sparse = [] if method == "fedavg" else [f"strategy.sparsity={sparsity}"]
    decay = [f"client.lr={lr}", f"client.lr_final={lr / 50}"]
    return [
        f"strategy={method}", *BASE, f"dataset.root={data}", f"partition.alpha={alpha}", f"num_rounds={rounds}",
        *decay, f"seed={seed}", f"evaluate.on={on}", *sparse, *extra,
    ]  # fmt: skip


def dense_twin(setting: str) -> str:
    """Name the setting whose dense runs serve this one too: dense training does not depend on the sparsity."""
    return setting.replace("_98", "_95")


def tuned_at(setting: str) -> str:
    """Name the setting whose learning rates serve this one too: long runs take those of short ones, for all methods."""
    return setting.replace("_100", "")


def tune(setting: str, data: Path, out: Path, workers: int) -> dict[str, float]:
    """Return each method's best learning rate on the validation split."""
    setting, methods = tuned_at(setting), SETTINGS[setting][3]
    jobs, names = {}, {}
    for method in methods:
        home = dense_twin(setting) if method == "fedavg" else setting
        for lr in GRID:
            names[method, lr] = f"{home}-{method}-lr{lr}"
            jobs[names[method, lr]] = overrides(home, method, lr, 0, data, "validation")
    runs = run_all(jobs, out / "tune", workers)
    scores = {key: runs[name].late_accuracy() for key, name in names.items()}
    rows = [[m, *(f"{scores[m, lr]:.1f}" for lr in GRID)] for m in methods]
    print(f"\n### {setting}: validation accuracy by learning rate\n")
    print(markdown(["", *map(str, GRID)], rows))
    return {method: max(GRID, key=lambda lr: scores[method, lr]) for method in methods}


def measure(setting: str, best: dict[str, float], seeds: int, data: Path, out: Path, workers: int) -> None:
    """Print the table of one setting."""
    jobs, names = {}, {}
    for method, lr in best.items():
        home = dense_twin(setting) if method == "fedavg" else setting
        for seed in range(seeds):
            names[method, seed] = f"{home}-{method}-seed{seed}"
            jobs[names[method, seed]] = overrides(home, method, lr, seed, data, "test")
    for variant, extra in VARIANTS.get(setting, {}).items() if "sparsyfed" in best else ():
        for seed in range(seeds):
            names[variant, seed] = f"{setting}-{variant.replace(' ', '_')}-seed{seed}"
            command = overrides(setting, "sparsyfed", best["sparsyfed"], seed, data, "test", extra)
            jobs[names[variant, seed]] = command
    runs = run_all(jobs, out / "measure", workers)
    rows = []
    for method in dict.fromkeys(method for method, _ in names):
        of = [runs[names[method, seed]] for seed in range(seeds)]
        rows.append([method, best.get(method, best.get("sparsyfed")), *columns(of)])
    alpha, sparsity, rounds, _ = SETTINGS[setting]
    print(f"\n### {setting}: alpha {alpha}, sparsity {sparsity}, {rounds} rounds, {seeds} seeds\n")
    header = [
        "method",
        "lr",
        "accuracy %",
        "up ratio, all rounds",
        "steady",
        "with framing",
        "down, all",
        "steady",
        "with framing",
    ]
    print(markdown(header, rows))
    if {"topk", "sparsyfed"} <= best.keys() and seeds > 1:
        pairs = ((runs[names["sparsyfed", seed]], runs[names["topk", seed]]) for seed in range(seeds))
        gains = [ours.late_accuracy() - theirs.late_accuracy() for ours, theirs in pairs]
        print(f"\nSparsyFed minus Top-K, seed by seed: {mean_and_spread(gains)} ({min(gains):.1f} to {max(gains):.1f})")


def columns(runs: list[Run]) -> list[str]:
    """Return accuracy and byte ratios of one method's runs."""
    cells = [mean_and_spread([r.late_accuracy() for r in runs])]
    for direction in ("uplink", "downlink"):
        cells += [
            f"{sum(r.summary[f'{direction}_ratio'] for r in runs) / len(runs):.1f}",
            f"{sum(r.steady_ratio(direction) for r in runs) / len(runs):.1f}",
            f"{sum(r.framed_ratio(direction) for r in runs) / len(runs):.1f}",
        ]
    return cells


def main() -> None:
    """Tune, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="root of the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy_and_bytes"), help="where run folders go")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--rates", nargs="*", default=[], help="METHOD=LR: these methods alone, not tuned again")
    parser.add_argument("--only", nargs="*", choices=SETTINGS, default=list(SETTINGS), help="settings to run")
    arguments = parser.parse_args()
    rates = {method: float(rate) for method, rate in (each.split("=") for each in arguments.rates)}
    for setting in arguments.only:
        best = rates or tune(setting, arguments.data.resolve(), arguments.out.resolve(), arguments.workers)
        measure(setting, best, arguments.seeds, arguments.data.resolve(), arguments.out.resolve(), arguments.workers)


if __name__ == "__main__":
    main()
