"""Memory that coding a model takes on top of the arrays themselves, in dense models: peak resident set of a process.

    python benchmarks/codec_memory.py [--parameters 100e6] [--sparsity 0 .95] [--values int4 int8]

A net of square matrices (2048 x 2048) and vectors, whose update drops a tenth of the reference's support. Each step is
taken alone, in a process of its own: what it holds at the peak beyond what was there before it (Linux, VmHWM). The
aggregation is of two payloads, decoded and summed one after the other; the mean is a dense model by itself.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sweep import markdown

from flsparse.codec import Accumulator, ArraySpec, Codec, Reference, decode_layers

SIDE = 2048
STEPS = ("encode", "decode", "decode and accumulate")


def status(field: str) -> int:
    """Return a field of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def extra_bytes(call: Callable[[], object]) -> int:
    """Return what a call takes at its peak on top of what is resident before."""
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    call()
    return status("VmHWM") - before


def model(parameters: float, sparsity: float) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the reference's arrays and those of an update."""
    rng, old, new = np.random.default_rng(0), {}, {}
    for i in range(max(1, round(parameters / SIDE**2))):
        weights = rng.standard_normal((SIDE, SIDE), np.float32)
        weights *= rng.random((SIDE, SIDE), np.float32) >= sparsity
        change = np.float32(0.01) * rng.standard_normal((SIDE, SIDE), np.float32)
        change[weights == 0] = 0
        update = weights + change
        update[rng.random((SIDE, SIDE), np.float32) < 0.1 * (sparsity > 0)] = 0
        old |= {f"{i}.weight": weights, f"{i}.bias": rng.standard_normal(SIDE, np.float32)}
        new |= {f"{i}.weight": update, f"{i}.bias": old[f"{i}.bias"] + np.float32(0.01)}
    return old, new


def measure(step: str, values: str, sparsity: float, parameters: float, known: bool) -> float:
    """Return the memory of one step, in dense models."""
    old, new = model(parameters, sparsity)
    reference = Reference(old) if known else None
    old.clear()
    dense = sum(array.nbytes for array in new.values())
    codec = Codec(values)
    small = {"weight": new["0.weight"][:64, :64].copy()}
    codec.encode(small)  # tables and modules are there
    if step == "encode":
        return extra_bytes(lambda: codec.encode(new, reference=reference)) / dense
    payload = codec.encode(new, reference=reference)
    specs = reference.specs if reference else {name: ArraySpec(array.shape, array.dtype) for name, array in new.items()}
    new.clear()
    if step == "decode":
        return extra_bytes(lambda: decode_layers(payload, like=specs, reference=reference)) / dense

    def aggregate() -> Accumulator:
        accumulator = Accumulator(specs)
        for _ in range(2):
            accumulator.add(decode_layers(payload, like=specs, reference=reference), 1.0)
        return accumulator

    return extra_bytes(aggregate) / dense


def main() -> None:
    """Measure each step in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=100e6)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.0, 0.95])
    parser.add_argument("--values", nargs="+", default=["int4", "int8"])
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        step, values, sparsity, known = arguments.one
        print(measure(step, values, float(sparsity), arguments.parameters, known == "reference"))
        return
    rows = []
    for sparsity in arguments.sparsity:
        for values in arguments.values:
            for known in ("reference", "no reference"):
                cells = []
                for step in STEPS:
                    one = [sys.executable, __file__, "--parameters", str(arguments.parameters)]
                    one += ["--one", step, values, str(sparsity), known]
                    # what is freed goes back to the system, so that a process holds no room from before a step
                    given_back = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
                    done = subprocess.run(one, capture_output=True, text=True, check=True, env=given_back)
                    cells.append(f"{float(done.stdout):.2f}")
                rows.append([f"{values}, {known}, {sparsity:.0%} zeros", *cells])
    print(markdown(["dense models", *STEPS], rows))


if __name__ == "__main__":
    main()
