"""Run the app before and after, in one process each, and print what was sent: ``python compare.py``."""

import json
import random
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
NUM_NODES = 10


def run(which: str) -> dict[str, float]:
    """Run one of the two apps as it is, and count the bytes of its messages."""
    import torch

    from flsparse.runtime import CountingGrid, InProcessGrid

    random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    sys.path.insert(0, str(HERE / which))
    from flwr.app import Context, RecordDict
    from pytorchexample import client_app, server_app

    config = tomllib.loads((HERE / which / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
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
    results = {}
    for which in ("before", "after"):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, which]
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
    if len(sys.argv) > 1:
        print(json.dumps(run(sys.argv[1])))
    else:
        main()
