"""Exact global magnitude top-k over the layers of a ResNet-18: ours against torch.topk and numpy's partition.

Medians of interleaved rounds, one thread.

    python benchmarks/bench_topk.py
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flsparse.sparsity import kept_count, prune_global, prune_lamp, top_k

RESULTS = Path(__file__).parent / "results" / "topk.json"


def layers(seed: int, sparsity: float) -> dict[str, np.ndarray]:
    """Build the 21 weight matrices of ResNet-18 (11.2 M values), normal with a scale by fan-in, some of them zeros."""
    rng = np.random.default_rng(seed)
    sizes = [(64, 3, 3, 3), *[(64, 64, 3, 3)] * 4, (10, 512)]
    for inner, outer in ((64, 128), (128, 256), (256, 512)):
        sizes += [(outer, inner, 3, 3), *[(outer, outer, 3, 3)] * 3, (outer, inner, 1, 1)]
    arrays = {}
    for index, shape in enumerate(sizes):
        array = rng.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:]), dtype=np.float32)
        array[rng.random(shape, np.float32) < sparsity] = 0.0
        arrays[f"layer{index}"] = array
    return arrays


def by_torch(arrays: dict[str, np.ndarray], k: int) -> Any:
    """Select with torch.topk of the concatenation."""
    return torch.cat([torch.from_numpy(array).flatten() for array in arrays.values()]).abs().topk(k)


def by_numpy(arrays: dict[str, np.ndarray], k: int) -> Any:
    """Select with numpy's argpartition of the concatenation."""
    flat = np.abs(np.concatenate([array.reshape(-1) for array in arrays.values()]))
    return np.argpartition(flat, flat.size - k)[flat.size - k :]


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    rows = []
    print("weights     kept   top_k ms  prune_global ms  prune_lamp ms  torch.topk ms  np.argpartition ms")
    for name, zeros in (("dense", 0.0), ("95 % zero", 0.95)):
        arrays = layers(0, zeros)
        names = list(arrays)
        size = sum(array.size for array in arrays.values())
        for sparsity in (0.9, 0.951, 0.99):
            k = kept_count(size, sparsity)
            contenders: dict[str, Callable[[], Any]] = {
                "top_k": lambda arrays=arrays, k=k: top_k(list(arrays.values()), k),
                "prune_global": lambda arrays=arrays, s=sparsity, names=names: prune_global(arrays, s, names),
                "prune_lamp": lambda arrays=arrays, s=sparsity, names=names: prune_lamp(arrays, s, names),
                "torch.topk": lambda arrays=arrays, k=k: by_torch(arrays, k),
                "np.argpartition": lambda arrays=arrays, k=k: by_numpy(arrays, k),
            }
            times: dict[str, list[float]] = {contender: [] for contender in contenders}
            for _ in range(rounds):
                for contender, run in contenders.items():
                    start = time.perf_counter()
                    run()
                    times[contender].append(1e3 * (time.perf_counter() - start))
            row = {contender: statistics.median(values) for contender, values in times.items()}
            rows.append({"weights": name, "sparsity": sparsity, "size": size, "milliseconds": row})
            print(f"{name:9} {1 - sparsity:6.1%} {row['top_k']:10.1f} {row['prune_global']:16.1f}", end="")
            print(f" {row['prune_lamp']:14.1f} {row['torch.topk']:14.1f} {row['np.argpartition']:19.1f}", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
