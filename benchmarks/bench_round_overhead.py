"""What a round costs beside training: in process against Flower's Ray engine, and memory with 1,000 nodes.

    python benchmarks/bench_round_overhead.py [--rounds 5] [--nodes 10]

The app is a NumPy one that hands back what it gets, so that nothing but the runtime is measured; strategy and messages
are the same in both. Memory is the resident set after a round of FedAvg over all nodes, each of which sends a dense
model back; a runtime that kept all replies would grow by ``nodes x model``.
"""

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from flsparse.runtime import InProcessGrid
from flsparse.strategies import FedAvg

RESULTS = Path(__file__).parent / "results" / "round_overhead.json"
PARAMETERS = 90_000


def echo_app() -> ClientApp:
    """Return a ClientApp that sends the model back."""
    from flsparse.clients import CompressMod

    app = ClientApp(mods=[CompressMod()])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        content = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    return app


def run(grid: Grid, rounds: int, nodes: int) -> dict[str, Any]:
    """Run rounds over all nodes; return seconds and resident megabytes after each."""
    seconds: list[float] = []
    resident: list[float] = []
    strategy = FedAvg(values="raw", downlink_values="raw", min_train_nodes=nodes, min_available_nodes=nodes)

    def after_round(report: object) -> None:
        seconds.append(time.perf_counter())
        resident.append(resident_mb())

    strategy.callbacks.append(after_round)
    weights = np.random.default_rng(0).normal(size=PARAMETERS).astype(np.float32)
    started = time.perf_counter()
    strategy.start(grid, ArrayRecord([weights]), num_rounds=rounds)
    return {"round_seconds": np.diff([started, *seconds]).round(4).tolist(), "resident_mb": resident}


def resident_mb() -> float:
    """Return this process's resident set in megabytes (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def simulated(rounds: int, nodes: int) -> dict[str, Any]:
    """Run the same rounds on Ray."""
    from flwr.simulation import run_simulation

    results: list[dict[str, Any]] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        results.append(run(grid, rounds, nodes))

    started = time.perf_counter()
    run_simulation(server, echo_app(), nodes, backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
    return results[0] | {"total_seconds": round(time.perf_counter() - started, 2)}


def in_process(rounds: int, nodes: int) -> dict[str, Any]:
    """Run rounds in this process."""
    started = time.perf_counter()
    result = run(InProcessGrid(echo_app(), nodes), rounds, nodes)
    return result | {"total_seconds": round(time.perf_counter() - started, 2)}


def main() -> None:
    """Measure both, print ratios, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nodes", type=int, default=10)
    args = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.WARNING)

    many = in_process(args.rounds, 1000)
    here = in_process(args.rounds, args.nodes)
    ray = simulated(args.rounds, args.nodes)
    steady = {name: float(np.median(each["round_seconds"][1:])) for name, each in (("here", here), ("ray", ray))}
    print(f"{args.nodes} nodes, {args.rounds} rounds     in process      simulation      ratio")
    print(f"whole run [s]       {here['total_seconds']:>14}{ray['total_seconds']:>16}", end="")
    print(f"{ray['total_seconds'] / here['total_seconds']:>11.1f}")
    print(f"steady round [s]    {steady['here']:>14.3f}{steady['ray']:>16.3f}{steady['ray'] / steady['here']:>11.1f}")
    first, last = many["resident_mb"][0], many["resident_mb"][-1]
    dense = 1000 * PARAMETERS * 4 / 1e6
    print(f"1000 nodes in process: {first} MB after round 1, {last} MB after round {args.rounds}; ", end="")
    print(f"all replies of a round would be {dense:.0f} MB; {np.median(many['round_seconds']):.2f} s a round")
    result = {"nodes": args.nodes, "in_process": here, "simulation": ray, "in_process_1000_nodes": many}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result | {"python": sys.version.split()[0]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
