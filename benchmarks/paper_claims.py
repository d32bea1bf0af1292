"""The claims of the SparsyFed paper (arXiv 2504.05153), on small networks and real data.

    python benchmarks/paper_claims.py --data ROOT --claim knob regrowth resnet20

knob       everything fixed, only the target sparsity varies, on three data sets
regrowth   weights that come back in a round of local training, and the masks' agreement, against Top-K at alpha 0.1
resnet20   CIFAR-10 at 95 %, against dense FedAvg at equal rounds, every learning rate printed
"""

import argparse
from pathlib import Path

import numpy as np
from sweep import Run, markdown, mean_and_spread, run_all

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98)
EPOCH = ("client.batch_size=32", "client.local_epochs=1")
DATASETS = {
    "digits": ["dataset=digits", "num_clients=20", "fraction_train=0.5", "num_rounds=40", *EPOCH],
    "fashion_mnist": ["dataset=fashion_mnist", "num_clients=100", "fraction_train=0.1", "num_rounds=30", *EPOCH],
    "shakespeare": [
        *("dataset=shakespeare", "model=char_lstm", "num_clients=60", "fraction_train=0.1", "num_rounds=30"),
        *("client.local_steps=16", "client.clip_grad=5", "model.hidden=64", "client.lr=12.0", "client.lr_final=2.0"),
    ],
}
FEWER = {"shakespeare": (0.5, 0.8, 0.95)}  # an LSTM of plain layers is slow on a CPU
TUNED = {"topk": 0.1, "sparsyfed": 0.2}  # at alpha 0.1, by accuracy_and_bytes.py
RESNET20 = [
    *("dataset=cifar10", "dataset.train_samples=10000", "model=resnet20", "model.norm=group", "partition.kind=iid"),
    *("num_clients=5", "fraction_train=1.0", "num_rounds=30", "evaluate.every=5"),
    *("client.batch_size=32", "client.local_epochs=2", "client.momentum=0.9"),
]
RESNET20_GRID = {"fedavg": (0.025, 0.05, 0.1), "sparsyfed": (0.05, 0.1, 0.2)}


def knob(data: Path, out: Path, workers: int, seeds: int) -> None:
    """Vary the target sparsity alone."""
    jobs = {
        f"{name}-s{sparsity}-seed{seed}": [
            "strategy=sparsyfed", *command, f"strategy.sparsity={sparsity}", f"seed={seed}",
            *([] if name == "digits" else [f"dataset.root={data}"]),
        ]
        for name, command in DATASETS.items()
        for sparsity in FEWER.get(name, SPARSITIES)
        for seed in range(seeds)
    }  # fmt: skip
    runs = run_all(jobs, out / "knob", workers)
    print(f"\n### One knob: SparsyFed, only the target sparsity varies ({seeds} seeds)\n")
    rows = []
    for name in DATASETS:
        measures = ((Run.late_accuracy, "accuracy %"), (_up, "uplink ratio, all rounds"), (_framed, "with framing"))
        for measure, label in measures:
            cells = [
                mean_and_spread([measure(runs[f"{name}-s{s}-seed{seed}"]) for seed in range(seeds)])
                if s in FEWER.get(name, SPARSITIES)
                else ""
                for s in SPARSITIES
            ]
            rows.append([name, label, *cells])
    print(markdown(["data set", "", *(f"{s:.0%}" for s in SPARSITIES)], rows))


def regrowth(data: Path, out: Path, workers: int, seeds: int) -> None:
    """Compare how masks move, and what that costs."""
    jobs = {
        f"{method}-{'ramp' if ramp else 'plain'}-seed{seed}": [
            f"strategy={method}", *DATASETS["fashion_mnist"], f"dataset.root={data}", "partition.alpha=0.1",
            f"client.lr={lr}", f"client.lr_final={lr / 50}", f"strategy.ramp={ramp}", f"seed={seed}",
        ]
        for method, lr in TUNED.items()
        for ramp in (True, False)
        for seed in range(seeds)
    }  # fmt: skip
    runs = run_all(jobs, out / "regrowth", workers)
    print(f"\n### How masks move: Fashion-MNIST, alpha 0.1, 95 % ({seeds} seeds)\n")
    rows = []
    for name in dict.fromkeys(job.rsplit("-", 1)[0] for job in jobs):
        of = [runs[f"{name}-seed{seed}"] for seed in range(seeds)]
        rounds = slice(1, None)  # what is received in round 1 is dense
        cells = [
            f"{100 * np.mean([r.series('regrowth')[rounds].mean() for r in of]):.3f}",
            f"{np.mean([r.series('mask_iou')[:10].mean() for r in of]):.3f}",
            f"{np.mean([r.series('mask_iou')[-10:].mean() for r in of]):.3f}",
            f"{np.mean([r.series('uplink_ratio')[:10].mean() for r in of]):.1f}",
            f"{np.mean([r.series('uplink_ratio')[-10:].mean() for r in of]):.1f}",
            f"{np.mean([_framed(r) for r in of]):.1f}",
            mean_and_spread([r.late_accuracy() for r in of]),
        ]
        rows.append([name, *cells])
    header = ["", "regrowth, % of weights a round", "IoU, first 10 rounds", "last 10"]
    print(markdown([*header, "uplink ratio, first 10", "last 10", "with framing", "accuracy %"], rows))


def resnet20(data: Path, out: Path, workers: int, seeds: int) -> None:
    """Compare with dense FedAvg on CIFAR-10; no run is chosen, all are printed."""
    jobs = {
        f"{method}-lr{lr}-seed{seed}": [
            f"strategy={method}", *RESNET20, f"dataset.root={data}", f"client.lr={lr}", f"client.lr_final={lr / 50}",
            f"seed={seed}",
        ]
        for method, grid in RESNET20_GRID.items()
        for lr in grid
        for seed in range(seeds)
    }  # fmt: skip
    runs = run_all(jobs, out / "resnet20", workers)
    print(f"\n### CIFAR-10, ResNet-20, 95 %, {seeds} seed(s)\n")
    rows = []
    for method, grid in RESNET20_GRID.items():
        for lr in grid:
            of = [runs[f"{method}-lr{lr}-seed{seed}"] for seed in range(seeds)]
            rows.append(
                [
                    method,
                    lr,
                    mean_and_spread([100 * run.summary["final_accuracy"] for run in of]),
                    *(
                        f"{np.mean(ratios):.1f}"
                        for way in ("uplink", "downlink")
                        for ratios in ([r.summary[f"{way}_ratio"] for r in of], [r.framed_ratio(way) for r in of])
                    ),
                ]
            )
    print(
        markdown(["method", "lr", "final accuracy %", "up ratio", "with framing", "down ratio", "with framing"], rows)
    )


def _up(run: Run) -> float:
    return float(run.summary["uplink_ratio"])


def _framed(run: Run) -> float:
    return run.framed_ratio("uplink")


CLAIMS = {"knob": knob, "regrowth": regrowth, "resnet20": resnet20}


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="root of the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/paper_claims"), help="where run folders go")
    parser.add_argument("--claim", nargs="*", choices=CLAIMS, default=list(CLAIMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    arguments = parser.parse_args()
    for claim in arguments.claim:
        CLAIMS[claim](arguments.data.resolve(), arguments.out.resolve(), arguments.workers, arguments.seeds)


if __name__ == "__main__":
    main()
