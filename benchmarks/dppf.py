"""DPPF against its paper's claims: width, bytes, accuracy, valleys.

    python benchmarks/dppf.py width                       # handwritten digits, nothing to prepare
    python benchmarks/dppf.py valley [--seeds 5]
    python benchmarks/dppf.py accuracy --data ROOT [--seeds 5] [--samples 2000] [--rounds 60] [--partition inf]

Runs are federations of the application's own configuration, all in one process. Finished ones are kept in --out, so an
interrupted benchmark goes on where it was. Intervals are 95 %, from Student's t over seeds (paired by seed).
"""

import argparse
import json
import logging
import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import hydra  # noqa: TID251
import numpy as np
from sweep import markdown, mean_and_spread

from flsparse.app.composing import compose_jobs
from flsparse.nets.arrays import load_arrays
from flsparse.nets.valley import loss_on, mean_valley
from flsparse.runtime import InProcessGrid
from flsparse.runtime.apps import client_app
from flsparse.runtime.federation import _Run
from flsparse.tasks import build_task

_T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
RAW = ["codec=raw"]
DIGITS = ["dataset=digits", "dataset.validation_fraction=0", "dataset.train_samples=600"]
NET = ["model=cnn", "model.width=8", "model.norm=batch", "client.weight_decay=0.001", "evaluate.every=1000"]
FOUR = ["num_clients=4", "fraction_train=1"]


class Federation(_Run):
    """A run whose strategy can be looked into afterwards, and whose rows are kept."""

    def __init__(self, overrides: Sequence[str]) -> None:
        self.config = compose_jobs(list(overrides), sweep=False)[0]
        self.rows: list[dict[str, Any]] = []
        super().__init__(InProcessGrid(client_app(self.config), int(self.config["num_clients"])), self.config, [self])

    def on_start(self, info: dict[str, Any]) -> None:
        """Take part as an observer."""

    def on_round(self, row: dict[str, Any]) -> None:
        """Keep the row."""
        self.rows.append(row)

    def on_end(self, summary: dict[str, Any]) -> None:
        """Take part as an observer."""


def result(out: Path, overrides: Sequence[str], *, valley: bool = False) -> dict[str, Any]:
    """Return the numbers of one run, from ``--out`` where it has run before."""
    file = out / "results.json"
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    key = " ".join([*overrides, *(["+valley"] if valley else [])])
    if key not in known:
        run = Federation(overrides)
        summary = run.run()
        last = run.rows[-1]
        keep = ("width", "width_target", "accuracy", "loss", "train_loss", "train_accuracy")
        known[key] = {name: last.get(name) for name in keep} | {
            "uplink_ratio": summary["uplink_ratio"],
            "downlink_ratio": summary["downlink_ratio"],
            "steady_ratio": float(np.mean([row["uplink_ratio"] for row in run.rows[-10:]])),
            "dense_bytes": summary["dense_bytes_per_model"],
            "seconds": summary["wall_seconds"],
            **(measured_valley(run) if valley else {}),
        }
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(known, indent=1))
    found: dict[str, Any] = known[key]
    return found


def measured_valley(run: Federation) -> dict[str, Any]:
    """Measure the average's valley on all training data, and its loss and error on training and test data."""
    task, model = build_task(run.config), run.model
    train = [batch for node in range(task.num_nodes) for batch in task.sample(task.train_data(node), 0)]
    load_arrays(model, run.arrays)
    whole = [task.evaluate(model, task.train_data(node)) for node in range(task.num_nodes)]
    names = [name for name, _ in model.named_parameters()]
    average = {name: run.arrays[name] for name in names}
    workers = [{name: arrays[name] for name in names} for arrays in run.strategy.workers.values()]  # type: ignore[attr-defined]
    valley = mean_valley(loss_on(model, train), average, workers, step=0.1, max_steps=100)
    return {
        "mean_valley": valley.mean_valley,
        "reached": float(np.mean(valley.reached)),
        "average_train_loss": float(np.mean([w["loss"] for w in whole])),
        "average_train_accuracy": float(np.mean([w["accuracy"] for w in whole])),
    }


def interval(differences: Sequence[float]) -> str:
    """Return a mean and its 95 % half width."""
    n = len(differences)
    half = _T95.get(n, 2.0) * np.std(differences, ddof=1) / math.sqrt(n) if n > 1 else math.nan
    return f"{np.mean(differences):+.2f} ± {half:.2f}"


def width(out: Path, rounds: int, counts: Sequence[int]) -> None:
    """Print the distance the workers end at, over the one that was set."""
    rows = []
    for workers in counts:
        for partition, alpha in ((p, a) for p in ("inf", "0.1") for a in (0.5, 0.9)):
            shape = [f"num_clients={workers}", "fraction_train=1", f"partition.alpha={partition}"]
            settings = [f"strategy.alpha={alpha}", f"num_rounds={rounds}"]
            base = ["strategy=dppf", *DIGITS, *NET, *shape, *settings, "client.local_steps=2", "client.batch_size=16"]
            exact, coded = result(out, [*base, *RAW]), result(out, base)
            cells = [f"{100 * (r['width'] / r['width_target'] - 1):+.2f} %" for r in (exact, coded)]
            cells += [f"{exact['width_target']:.3f}"]
            if alpha == 0.9:
                collapsed = result(out, [*base, *RAW, "strategy.lambda_=0"])
                cells += [f"{collapsed['width']:.4f}"]
            else:
                cells += [""]
            rows.append([workers, "IID" if partition == "inf" else f"Dirichlet {partition}", alpha, *cells])
    print(f"\n### width against lambda/alpha, digits, {rounds} rounds of 2 steps\n")
    print(markdown(["M", "data", "alpha", "exact", "coded", "lambda/alpha", "width without push"], rows))


def valley(out: Path, rounds: int, seeds: int) -> None:
    """Print the Mean Valley by width, and what it says about the loss gap."""
    widths = (0.0, 0.05, 0.1, 0.2)
    runs = {}
    for seed in range(seeds):
        for w in widths:
            push = [f"strategy.relative_width={w}", "strategy.valley_every=1000000", "strategy.valley_steps=1"]
            base = ["strategy=dppf", *DIGITS, *NET, *FOUR, *RAW, f"num_rounds={rounds}", "partition.alpha=inf", *push]
            runs[seed, w] = result(out, [*base, f"seed={seed}"], valley=True)
    rows = []
    for w in widths:
        of = [runs[seed, w] for seed in range(seeds)]
        rows.append([
            w, *(mean_and_spread([r[key] for r in of], 3) for key in ("mean_valley", "average_train_loss", "loss")),
            mean_and_spread([100 * r["accuracy"] for r in of]),
            f"{100 * min(r['average_train_accuracy'] for r in of):.1f}",
        ])  # fmt: skip
    print(f"\n### valleys, digits, {rounds} rounds, {seeds} seeds\n")
    header = ["relative width", "Mean Valley", "train loss", "test loss", "test accuracy %", "worst train accuracy %"]
    print(markdown(header, rows))
    pairs = [(runs[s, a], runs[s, b]) for s in range(seeds) for a, b in combinations(widths, 2)]
    ordered = sum(a["mean_valley"] < b["mean_valley"] for a, b in pairs)
    print(f"\nordered by width: {ordered} of {len(pairs)} same-seed pairs ({100 * ordered / len(pairs):.0f} %)")
    fitted = [r for r in runs.values() if r["average_train_accuracy"] >= 0.99]
    gaps = np.array([r["loss"] - r["average_train_loss"] for r in fitted])
    for label, values in (
        ("Inverse Mean Valley", [-r["mean_valley"] for r in fitted]),
        ("training loss", [r["average_train_loss"] for r in fitted]),
    ):
        low, high = bootstrap(np.array(values), gaps)
        tau = kendall_tau(np.array(values), gaps)
        print(f"Kendall tau of {label} with the loss gap, {len(fitted)} models: {tau:.2f} [{low:.2f}, {high:.2f}]")


def kendall_tau(x: np.ndarray, y: np.ndarray) -> float:
    """Return Kendall's tau-b."""
    dx, dy = (np.sign(np.subtract.outer(v, v))[np.triu_indices(len(v), 1)] for v in (x, y))
    norm = math.sqrt(float(np.sum(dx**2) * np.sum(dy**2)))
    return float(np.sum(dx * dy)) / norm if norm else math.nan


def bootstrap(x: np.ndarray, y: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % interval of Kendall's tau over resampled models."""
    rng = np.random.default_rng(0)
    chosen = (rng.integers(0, len(x), len(x)) for _ in range(draws))
    taus = [kendall_tau(x[i], y[i]) for i in chosen]
    return float(np.nanpercentile(taus, 2.5)), float(np.nanpercentile(taus, 97.5))


def accuracy(out: Path, data: Path, samples: int, rounds: int, seeds: int, partition: str) -> None:
    """Print accuracy and bytes of local SGD and DPPF, with and without SCAFFOLD's correction, at equal exchanges."""
    cifar = ["dataset=cifar10", f"dataset.root={data}", f"dataset.train_samples={samples}"]
    cifar += ["dataset.validation_fraction=0", f"partition.alpha={partition}"]
    base = [*cifar, *NET, *FOUR, f"num_rounds={rounds}"]
    variates = "strategy.control_variates=true"
    methods = {
        "local SGD": ["strategy=local_sgd"],
        "DPPF, exact": ["strategy=dppf", *RAW],
        "DPPF, coded": ["strategy=dppf"],
        "local SGD on SCAFFOLD": ["strategy=dppf", *RAW, "strategy.alpha=1", "strategy.lambda_=0", variates],
        "DPPF on SCAFFOLD, exact": ["strategy=dppf", *RAW, variates],
        "DPPF on SCAFFOLD, coded": ["strategy=dppf", variates],
    }
    rivals = {name: name.replace("coded", "exact") for name in methods if "coded" in name}
    runs = {
        (name, seed): result(out, [*own, *base, f"seed={seed}"])
        for seed in range(seeds)
        for name, own in methods.items()
    }
    rows = []
    for name in methods:
        of = [runs[name, seed] for seed in range(seeds)]
        paired = [100 * (runs[name, s]["accuracy"] - runs["local SGD", s]["accuracy"]) for s in range(seeds)]
        rival = rivals.get(name, name)
        exact = [100 * (runs[name, s]["accuracy"] - runs[rival, s]["accuracy"]) for s in range(seeds)]
        ratio = float(np.mean([r["uplink_ratio"] for r in of]))
        rows.append([
            name, mean_and_spread([100 * r["accuracy"] for r in of]), mean_and_spread([r["loss"] for r in of], 3),
            "" if name == "local SGD" else interval(paired), interval(exact) if name in rivals else "",
            f"{ratio:.1f}", f"{np.mean([r['steady_ratio'] for r in of]):.1f}", f"{4 * ratio:.0f}",
            f"{np.mean([r['downlink_ratio'] for r in of]):.1f}",
        ])  # fmt: skip
    print(f"\n### CIFAR-10, {samples} images, 4 workers, alpha {partition}, ", end="")
    print(f"{rounds} rounds of 4 steps, {seeds} seeds\n")
    header = ["", "accuracy %", "test loss", "minus local SGD", "minus exact"]
    print(markdown([*header, "up ratio", "last 10", "up against data-parallel SGD", "down ratio"], rows))


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("width", "valley", "accuracy"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="root of the data sets, for accuracy")
    parser.add_argument("--out", type=Path, default=Path("runs/dppf"), help="where results are kept")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--samples", type=int, default=2000, help="training images, for accuracy")
    parser.add_argument("--partition", default="inf", help="alpha of the Dirichlet split, for accuracy")
    parser.add_argument("--workers", type=int, nargs="*", default=[4, 8], help="numbers of workers, for width")
    given = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    with hydra.initialize_config_module("flsparse.conf", version_base="1.3"):
        if given.what == "width":
            width(given.out, given.rounds, given.workers)
        elif given.what == "valley":
            valley(given.out, given.rounds, given.seeds)
        else:
            accuracy(given.out, given.data.resolve(), given.samples, given.rounds, given.seeds, given.partition)


if __name__ == "__main__":
    main()
