"""Own data of three kinds, federated, by themselves and pooled: a regression, a drifting series, a rare defect.

``python benchmarks/own_kinds.py --data DIR``, where ``DIR/FashionMNIST/raw`` is Fashion-MNIST, writes the data below a
temporary folder, and runs a sweep of each kind by the command that it prints:

``diabetes``   scikit-learn's 442 patients, five nodes of equal size: how far has the disease progressed in a year?
``drift``      a made-up sensor of four machines that age: the next four values, from the last sixteen
``defects``    Fashion-MNIST with one kind of garment as the defect, 2 % of 4,000 images: F1, with and without weights
"""

import argparse
import csv
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from flsparse.tasks.datasets import fashion_mnist

BY_NODE = "strategy=fedavg,fedavg_4bit,local_only,pooled evaluate.by_node=true fraction_train=1.0"
DEFECT = 5  # sandals


def diabetes(folder: Path, data: str) -> list[str]:
    """Write the table; return the overrides of each sweep."""
    from sklearn.datasets import load_diabetes

    found = load_diabetes()
    header = ",".join([*found.feature_names, "progression"])
    rows = np.column_stack([found.data, found.target])
    np.savetxt(folder / "diabetes.csv", rows, "%.5f", ",", header=header, comments="")
    table = "dataset=table dataset.file=diabetes.csv dataset.target=progression partition.kind=iid num_clients=5"
    return [f"{BY_NODE} {table} model=mlp 'metrics=[mae,r2]' num_rounds=20 client.lr=0.02 client.lr_final=0.002"]


def drift(folder: Path, data: str) -> list[str]:
    """Write the series: a cycle that slows and a level that rises with age, each machine at another pace."""
    stream = np.random.default_rng(0)
    with (folder / "drift.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["machine", "hour", "load", "heat"])
        for machine in range(4):
            age = np.arange(800) / 800 * (1 + 0.5 * machine)
            turn = np.cumsum(0.5 - 0.15 * age)
            load = stream.normal(0, 1, 800)
            heat = np.sin(turn) + age + 0.2 * np.convolve(load, np.ones(4), "same") + stream.normal(0, 0.1, 800)
            out.writerows([machine, hour, f"{load[hour]:.3f}", f"{heat[hour]:.3f}"] for hour in range(800))
    series = (
        "dataset=series dataset.file=drift.csv dataset.target=heat dataset.group=machine dataset.time=hour "
        "dataset.window=16 dataset.horizon=4 dataset.test_fraction=0.25"
    )
    return [f"{BY_NODE} {series} model=mlp num_rounds=20 client.lr=0.05 client.lr_final=0.005"]


def defects(folder: Path, data: str) -> list[str]:
    """Write the images and who is a defect."""
    source, stream = fashion_mnist(root=data), np.random.default_rng(0)
    arrays = {}
    for part, images, labels, count in (
        ("train", source.train_inputs, source.train_targets.numpy(), 4000),
        ("test", source.test_inputs, source.test_targets.numpy(), 2000),
    ):
        bad = stream.choice(np.flatnonzero(labels == DEFECT), count // 50, replace=False)
        good = stream.choice(np.flatnonzero(labels != DEFECT), count - len(bad), replace=False)
        chosen = stream.permutation(np.concatenate([bad, good]))
        arrays |= {f"{part}_inputs": images.numpy()[chosen, 0], f"{part}_targets": np.isin(chosen, bad).astype(int)}
    np.savez(folder / "defects.npz", **arrays)
    images = (
        "dataset=arrays dataset.file=defects.npz dataset.validation_fraction=0 partition.kind=iid num_clients=5 "
        "fraction_train=1.0 metric=f1 'metrics=[recall,precision]' objective=classification num_rounds=12"
    )
    weighted = f"strategy=fedavg,sparsyfed {images} 'objective.class_weights=[1,10]'"
    return [f"strategy=fedavg,sparsyfed,local_only,pooled {images}", weighted]


KINDS = {"diabetes": diabetes, "drift": drift, "defects": defects}


def main() -> None:
    """Run the sweeps, and print each command with its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=".", help="folder of FashionMNIST/raw, for defects")
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], default=list(KINDS))
    args = parser.parse_args()
    data = str(Path(args.data).resolve())
    with TemporaryDirectory() as work:
        for kind in args.kinds:
            for number, overrides in enumerate(KINDS[kind](Path(work), data)):
                print(f"\n$ flsparse -m {overrides}", flush=True)
                command = [sys.executable, "-m", "flsparse", "-m", *shlex.split(overrides)]
                done = subprocess.run(
                    [*command, f"output_dir={kind}-{number}"], cwd=work, capture_output=True, text=True, check=False
                )
                said = done.stdout.splitlines()
                last = max((at for at, line in enumerate(said) if line.startswith("round ")), default=-1)
                print("\n".join(said[last + 1 :]) if done.returncode == 0 else done.stderr, flush=True)


if __name__ == "__main__":
    main()
