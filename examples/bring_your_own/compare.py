"""Run the app before and after, in one process each, and print what was sent.

python compare.py
python compare.py --sparsity 0.8 --rounds 30    # after the README's further change: sparse training
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
NUM_NODES = 10
TO_SPARSE = {
    "client_app.py": {
        "from flsparse.clients import CompressMod": "from flsparse.clients import SparsyFedMod\n"
        "from flsparse.sparsity import sparsify",
        "CompressMod()": "SparsyFedMod()",
        "Net()": "sparsify(Net())",
    },
    "server_app.py": {
        "from flsparse.strategies import Compressed": "from flsparse.sparsity import sparsify\n"
        "from flsparse.strategies import SparsyFed",
        "Net()": "sparsify(Net())",
        "Compressed(FedAvg(fraction_evaluate=fraction_evaluate))": "SparsyFed("
        "fraction_evaluate=fraction_evaluate, sparsity={sparsity})",
    },
}


def make_sparse(app: Path, sparsity: float) -> None:
    """Change a copy of the app as the README says."""
    for name, changes in TO_SPARSE.items():
        file = app / "pytorchexample" / name
        text = file.read_text()
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new.format(sparsity=sparsity))
        file.write_text(text)


def run(app: Path, rounds: int) -> dict[str, float]:
    """Run an app as it is, and count the bytes of its messages; 0 rounds: as many as it says itself."""
    import torch

    from flsparse.runtime import CountingGrid, InProcessGrid

    random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    sys.path.insert(0, str(app))
    from flwr.app import Context, RecordDict
    from pytorchexample import client_app, server_app

    config = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    config["num-server-rounds"] = rounds or config["num-server-rounds"]
    grid = CountingGrid(InProcessGrid(client_app.app, NUM_NODES, run_config=config))
    accuracy = [0.0]
    evaluate = server_app.global_evaluate

    def watched(server_round, arrays):
        metrics = evaluate(server_round, arrays)
        accuracy.append(metrics["accuracy"])
        return metrics

    server_app.global_evaluate = watched
    server_app.app(grid, Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config=config))
    return {"accuracy": accuracy[-1], "up": grid.uplink_wire_bytes, "down": grid.downlink_wire_bytes}


def main() -> None:
    """Run both, each in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=0, help="in place of what the apps say")
    parser.add_argument("--sparsity", type=float, help="train sparsely in the app after, to this fraction of zeros")
    parser.add_argument("--app", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.app:
        print(json.dumps(run(arguments.app, arguments.rounds)))
        return
    results = {}
    for which in ("before", "after"):
        with tempfile.TemporaryDirectory() as folder:
            app = Path(shutil.copytree(HERE / which, Path(folder) / which))
            if which == "after" and arguments.sparsity is not None:
                make_sparse(app, arguments.sparsity)
            command = [sys.executable, __file__, "--app", str(app), "--rounds", str(arguments.rounds)]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        results[which] = json.loads(done.stdout.splitlines()[-1])
    print(f"{'':8}{'accuracy':>10}{'bytes up':>12}{'bytes down':>12}")
    for which, row in results.items():
        print(f"{which:8}{row['accuracy']:>10.1%}{row['up']:>12,}{row['down']:>12,}")
    before, after = results["before"], results["after"]
    print(f"{'ratio':18}{before['up'] / after['up']:>11.1f}x{before['down'] / after['down']:>11.1f}x")


if __name__ == "__main__":
    main()
