"""What the check before the start costs, where data and modules, which a run needs too, are loaded already.

python benchmarks/check_before_start.py --data DIR    DIR as dataset.root, with Fashion-MNIST and CIFAR-10
"""

import argparse
import time

from hydra import initialize_config_module  # noqa: TID251

from flsparse.app.composing import compose_jobs
from flsparse.app.rehearsal import rehearse

RUNS = (
    "dataset=digits",
    "dataset=digits strategy=dppf",
    "dataset=digits strategy=malcom_psgd",
    "dataset=fashion_mnist num_clients=100",
    "dataset=fashion_mnist num_clients=1000",
    "dataset=cifar10 model=resnet20 num_clients=100",
    "dataset=cifar10 model=resnet18 num_clients=100",
)


def main() -> None:
    """Print a line a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DIR")
    root = parser.parse_args().data
    print("| run | parameters | seconds |\n|---|---|---|")
    for run in RUNS:
        where = [] if "digits" in run else [f"dataset.root={root}"]
        with initialize_config_module("flsparse.conf", version_base="1.3"):
            (cfg,) = compose_jobs([*run.split(), *where], sweep=False)
        kept = rehearse(cfg)  # its task holds the data
        started = time.perf_counter()
        rehearse(cfg)
        print(f"| `{run}` | {kept.parameters:,} | {time.perf_counter() - started:.2f} |", flush=True)


if __name__ == "__main__":
    main()
