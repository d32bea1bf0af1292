"""What each pace takes to the accuracy of dense FedAvg that waits for everybody: hours over the links, bytes, waste.

    python benchmarks/pace.py [--set digits] [--seeds 1] [--rounds 30] [--link mixed]
    python benchmarks/pace.py --set fashion_mnist --data ROOT

A round is one model, so a pace whose rounds take fewer replies has more rounds: as many replies in all. The schedule of
the learning rate (cosine) and the ramp go by rounds. The target is the mean accuracy of the last three evaluations of
dense FedAvg at ``pace=sync``, less a point, held for three evaluations; time is modelled (docs/time.md).
"""

import argparse
from pathlib import Path

import numpy as np
from sweep import Run, markdown, run_all

from flsparse.report.tables import human_seconds
from flsparse.runs.target import to_target

SETS = {
    "digits": ["dataset=digits", "model=cnn", "num_clients=24", "fraction_train=0.5", "partition.alpha=1.0"],
    "fashion_mnist": [
        *("dataset=fashion_mnist", "model=cnn", "num_clients=100", "fraction_train=0.1", "partition.alpha=1.0"),
        *("client.batch_size=32", "client.local_epochs=1"),
    ],
}
METHODS = {
    "dense FedAvg": ["strategy=fedavg", "client.lr=0.1"],
    "SparsyFed, 80 %": ["strategy=sparsyfed", "strategy.sparsity=0.8", "client.lr=0.4"],
}
PACES = {"sync": 1.0, "quorum": 0.7, "overselect": 0.7, "fedbuff": 0.3}  # replies of a round, of the nodes asked
LAST = 3


def jobs(args: argparse.Namespace) -> dict[str, list[str]]:
    """Return the overrides of every run by its name."""
    data = [f"dataset.root={args.data}"] if args.data else []
    common = [*SETS[args.set], *data, f"link={args.link}", "client.lr_schedule=cosine"]
    found = {}
    for method, settings in METHODS.items():
        for pace, share in PACES.items():
            for seed in range(args.seeds):
                rounds = round(args.rounds / share)
                name = f"{args.set}-{method}-{pace}-{args.rounds}-{args.link}-seed{seed}".replace(" ", "_")
                own = [f"pace={pace}", f"num_rounds={rounds}", f"seed={seed}"]
                found[name.replace("%", "").replace(",", "")] = [*settings, *common, *own]
    return found


def final(run: Run) -> float:
    """Return the mean accuracy of the last evaluations."""
    return float(np.nanmean(run.series("accuracy")[-LAST:]))


def row(name: str, pace: str, runs: list[Run], base: list[Run]) -> list[object]:
    """Return a table's row; what a target took is a mean where every seed held it."""
    found = [to_target(run.rows, final(dense) - 0.01) for run, dense in zip(runs, base, strict=True)]
    held = [each for each in found if each is not None]
    cells: list[object] = [name, pace, f"{100 * np.mean([final(run) for run in runs]):.1f}"]
    if len(held) == len(runs):
        cells += [f"{np.mean([each['rounds'] for each in held]):.0f}"]
        cells += [human_seconds(float(np.mean([each["modelled_seconds"] for each in held])))]
        cells += [f"{np.mean([each['wire_bytes'] for each in held]) / 1e6:.3g}"]
    else:
        cells += [f"held by {len(held)} of {len(runs)}", "", ""]
    sent = [run.summary["uplink_wire_bytes"] + run.summary["downlink_wire_bytes"] for run in runs]
    wasted = [float(np.nansum(run.series("wasted_bytes"))) for run in runs]
    late = [float(np.nanmean(run.series("staleness"))) if pace != "sync" else 0.0 for run in runs]
    whole = human_seconds(float(np.mean([run.summary["modelled_seconds"] for run in runs])))
    return [*cells, whole, f"{np.mean(sent) / 1e6:.3g}", f"{100 * sum(wasted) / sum(sent):.1f}", f"{np.mean(late):.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, default="digits")
    parser.add_argument("--data", type=Path, help="folder of the data sets (default: where they are packaged)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30, help="of sync")
    parser.add_argument("--link", default="mixed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "pace")
    args = parser.parse_args()
    done = list(run_all(jobs(args), args.out, 1).values())
    cells = [(method, pace) for method in METHODS for pace in PACES]
    by_cell = {cell: done[i * args.seeds : (i + 1) * args.seeds] for i, cell in enumerate(cells)}
    base = by_cell["dense FedAvg", "sync"]
    head = ["method", "`pace=`", "accuracy %", "rounds to target", "time to it", "framed MB to it"]
    head += ["all rounds", "framed MB", "wasted %", "staleness"]
    print(markdown(head, [row(method, pace, runs, base) for (method, pace), runs in by_cell.items()]))


if __name__ == "__main__":
    main()
