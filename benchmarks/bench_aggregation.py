"""Server aggregation: decode and accumulate sparse payloads, against Flower's FedAvg on the same updates, dense.

    python benchmarks/bench_aggregation.py [--nodes 10 100] [--sparsity 0.95]

ResNet-18 (CIFAR stem). Replies are in memory as they arrive: coded payloads on our side, Flower's dense records on the
other. Ours twice: supports that all nodes share, as once masks have settled, and supports of each node's own inside the
broadcast's, as before that. Times are CPU time of the aggregation alone; the peak is what it allocates on top of the
replies.
"""

import argparse
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from flsparse.sparsity import default_prunable, prune_global

RESULTS = Path(__file__).parent / "results" / "aggregation.json"
DISTINCT = 10  # updates that are made; more nodes repeat them
DROPPED = 0.2  # of the broadcast's support, by each node whose support is its own
SIDES = {"flowers": "Flower FedAvg, dense", "settled": "flsparse, one support", "moving": "flsparse, own supports"}


def updates(num_nodes: int, sparsity: float, dropped: float = 0.0):
    """Yield (reference arrays, trained arrays) of each node: values moved a little, some of the weights dropped."""
    from flsparse.clients import state_arrays
    from flsparse.tasks.models import build_model

    model = build_model({"name": "resnet18"}, (3, 32, 32), 10)
    arrays = state_arrays(model)
    received = prune_global(arrays, sparsity, default_prunable(arrays))
    for node in range(num_nodes):
        generator = np.random.default_rng(node)
        yield received, {name: _moved(array, generator, dropped) for name, array in received.items()}


def _moved(array: np.ndarray, generator: np.random.Generator, dropped: float) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    step = generator.laplace(scale=0.002, size=array.shape).astype(array.dtype)
    kept = (array != 0) & ((array.ndim < 2) | (generator.random(array.shape) >= dropped))
    return np.where(kept, array + step, 0).astype(array.dtype)


def measured(aggregate: Callable[[], object], num_nodes: int, replies: int) -> dict[str, float]:
    """Time an aggregation, and then trace its memory."""
    aggregate()  # caches and pages are warm
    started = time.process_time()
    aggregate()
    seconds = time.process_time() - started
    tracemalloc.start()
    aggregate()
    peak = tracemalloc.get_traced_memory()[1]
    return {"ms a node": 1e3 * seconds / num_nodes, "more MB": peak / 1e6, "replies MB": replies / 1e6}


def ours(num_nodes: int, sparsity: float, dropped: float) -> dict[str, float]:
    """Decode and accumulate coded payloads."""
    from flsparse.codec import Accumulator, Codec, Reference, decode_layers

    codec, distinct = Codec(values="int4"), []
    for received, trained in updates(min(num_nodes, DISTINCT), sparsity, dropped):
        if not distinct:
            reference = Reference(received)
        distinct.append(codec.encode(trained, reference=reference))
    payloads = [distinct[node % DISTINCT] for node in range(num_nodes)]

    def aggregate() -> object:
        accumulator = Accumulator(reference.specs)
        for payload in payloads:
            accumulator.add(decode_layers(payload, like=reference.specs, reference=reference), 1.0)
        return accumulator.mean()

    return measured(aggregate, num_nodes, sum(map(len, payloads)))


def flowers(num_nodes: int, sparsity: float) -> dict[str, float]:
    """Aggregate dense records with Flower's own function."""
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    distinct = [trained for _, trained in updates(min(num_nodes, DISTINCT), sparsity)]
    records = []
    for node in range(num_nodes):
        arrays = ArrayRecord({name: Array(a) for name, a in distinct[node % DISTINCT].items()})
        records.append(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}))
    replies = sum(len(array.data) for record in records for array in record["arrays"].values())
    return measured(lambda: aggregate_arrayrecords(records, "num-examples"), num_nodes, replies)


def main() -> None:
    """Measure both sides and print their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="*", default=[10, 100])
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side == "flowers":
        print(json.dumps(flowers(arguments.nodes[0], arguments.sparsity)))
        return
    if arguments.side:
        print(json.dumps(ours(arguments.nodes[0], arguments.sparsity, DROPPED if arguments.side == "moving" else 0.0)))
        return
    table = Table("nodes", "side", "ms a node", "replies in memory, MB", "more at the peak, MB", "ratio of times")
    rows = []
    for nodes in arguments.nodes:
        results: dict[str, dict[str, float]] = {}
        for side, label in SIDES.items():
            command = [sys.executable, __file__, "--side", side, "--nodes", str(nodes)]
            command += ["--sparsity", str(arguments.sparsity)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            of = results[side] = json.loads(done.stdout)
            ratio = results["flowers"]["ms a node"] / of["ms a node"]
            cells = (f"{of['ms a node']:.1f}", f"{of['replies MB']:.1f}", f"{of['more MB']:.0f}", f"{ratio:.1f}x")
            table.add_row(str(nodes), label, *cells)
            rows.append({"nodes": nodes, "sparsity": arguments.sparsity, "side": label, **of, "ratio": ratio})
    Console().print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
