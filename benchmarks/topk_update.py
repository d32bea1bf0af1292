"""The part topk_update beside SparsyFed at equal uplink bytes, on Fashion-MNIST.

    python benchmarks/topk_update.py --data ROOT [--seeds 3] [--rates NAME=LR ...]

The setting is that of ``accuracy_and_bytes.py`` (Dirichlet 1.0, 30 rounds); dense FedAvg and SparsyFed have the
learning rates that it chose. FedAvg with the part has a density with which its uplink payload over all rounds equals
that of SparsyFed at 95 %; SparsyFed with the part has the density of its mask, which bounds the rounds of the ramp.
Their learning rates are the best of a grid on the validation split (seed 0, 15 rounds), or those of --rates. Accuracy
is on the test set, mean over the last five rounds. Finished runs are kept in --out; one run at a time, one thread.
"""

import argparse
from pathlib import Path

from accuracy_and_bytes import overrides
from sweep import Run, markdown, mean_and_spread, run_all

GRID = (0.1, 0.2, 0.3, 0.4, 0.6)
DENSITY = 0.0233  # by probe: SparsyFed's uplink payload over 30 rounds, within 10 %
ROUNDS = 30


def part(density: float, decay: float) -> list[str]:
    """Return the overrides that add the part."""
    return ["parts=[topk_update]", f"parts.topk_update.density={density}", f"parts.topk_update.decay={decay}"]


# name: (strategy, what is added to it, learning rate; None is tuned here)
METHODS: dict[str, tuple[str, list[str], float | None]] = {
    "fedavg": ("fedavg", [], 0.1),
    "sparsyfed": ("sparsyfed", [], 0.4),
    "fedavg-topk_update-decay0": ("fedavg", ["codec=int4", *part(DENSITY, 0)], None),
    "fedavg-topk_update-decay0.9": ("fedavg", ["codec=int4", *part(DENSITY, 0.9)], None),
    "fedavg-topk_update-decay1": ("fedavg", ["codec=int4", *part(DENSITY, 1)], None),
    "sparsyfed-topk_update-decay0.9": ("sparsyfed", part(0.05, 0.9), None),
}


def command(name: str, lr: float, seed: int, data: Path, on: str, rounds: int) -> list[str]:
    """Return the command line of one run."""
    strategy, extra, _ = METHODS[name]
    return overrides("alpha1_95", strategy, lr, seed, data, on, [*extra, f"num_rounds={rounds}"])


def tune(names: list[str], data: Path, out: Path) -> dict[str, float]:
    """Return the best learning rate of each method on the validation split."""
    jobs = {f"{n}-lr{lr}": command(n, lr, 0, data, "validation", ROUNDS // 2) for n in names for lr in GRID}
    runs = run_all(jobs, out / "tune", workers=1)
    scores = {n: {lr: runs[f"{n}-lr{lr}"].late_accuracy() for lr in GRID} for n in names}
    print("\n### Validation accuracy by learning rate, seed 0, 15 rounds\n")
    print(markdown(["", *map(str, GRID)], [[n, *(f"{scores[n][lr]:.1f}" for lr in GRID)] for n in names]))
    return {n: max(GRID, key=lambda lr: scores[n][lr]) for n in names}


def columns(runs: list[Run]) -> list[str]:
    """Return accuracy and megabytes of one method's runs: up, down and both ways, payload and with framing."""
    cells = [mean_and_spread([run.late_accuracy() for run in runs])]
    for kind in ("bytes", "wire_bytes"):
        up, down = ([run.summary[f"{way}_{kind}"] / 1e6 for run in runs] for way in ("uplink", "downlink"))
        both = [one + other for one, other in zip(up, down, strict=True)]
        cells += [mean_and_spread(values, 2) for values in (up, down, both)]
    return cells


def main() -> None:
    """Tune, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="root of the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/topk_update"), help="where run folders go")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", nargs="*", default=[], help="NAME=LR: not tuned")
    parser.add_argument("--only", nargs="*", choices=METHODS, default=list(METHODS), help="methods to run")
    arguments = parser.parse_args()
    data, out = arguments.data.resolve(), arguments.out.resolve()
    rates = {name: lr for name, (_, _, lr) in METHODS.items() if lr is not None}
    rates |= {name: float(lr) for name, lr in (each.rsplit("=", 1) for each in arguments.rates)}
    if untuned := [name for name in arguments.only if name not in rates]:
        rates |= tune(untuned, data, out)
    seeds = range(arguments.seeds)
    named = {(n, s): f"{n}-lr{rates[n]}-seed{s}" for s in seeds for n in arguments.only}
    jobs = {name: command(n, rates[n], s, data, "test", ROUNDS) for (n, s), name in named.items()}
    runs = run_all(jobs, out / "measure", workers=1)
    print(f"\n### Test accuracy and MB, Dirichlet 1.0, {ROUNDS} rounds, {arguments.seeds} seeds\n")
    header = ["", "lr", "accuracy %", "up", "down", "both", "up, framed", "down, framed", "both, framed"]
    rows = [[n, rates[n], *columns([runs[named[n, s]] for s in seeds])] for n in arguments.only]
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
