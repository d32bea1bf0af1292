"""Damaged payloads and senseless buffers through the compiled kernel, under the address and undefined sanitizers.

``python tests/fuzz_kernel.py [FOLDER] [--count 3000]`` builds the sanitized kernel in the folder and starts itself
again with the sanitizers' libraries loaded first; a fault ends it with their report.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import kernel_kit
import numpy as np
from damaged_payloads import attack, corpus

from flsparse.codec import Codec, kernel

FLAGS = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


def senseless(count: int, seed: int) -> None:
    """Call every function of the kernel with buffers of any length and contents."""
    rng, compiled, done = np.random.default_rng(seed), kernel.compiled, [0] * 12
    assert compiled is not None

    def integers() -> np.ndarray:
        top = int(rng.choice([2, 100, 1 << 14, 1 << 40]))
        own = rng.integers(int(rng.choice([0, -1])), top, int(rng.integers(0, 40)))
        if own.size and rng.random() < 0.7:  # a table, most of the time
            own = np.abs(own) % (1 + (1 << 14) // own.size)
            own[0] += (1 << 14) - int(own.sum())
        return own

    def small() -> int:
        return int(rng.integers(-2, 300))

    for _ in range(count):
        a, b, n = integers(), integers(), int(rng.integers(0, 40))
        calls = (
            lambda a=a, n=n: compiled.rans_encode(
                rng.integers(0, max(1, a.size) + int(rng.random() < 0.1), n, np.int32), a,
                int(rng.choice([a.size, small()])), int(rng.integers(0, n + 2)),
            ),
            lambda a=a, n=n: compiled.rans_decode(
                np.empty(n, np.uint16), rng.integers(0, 1 << 32, n // 7 + 1, np.uint32), rng.bytes(small() % 80), a,
                a.size, None if rng.random() < 0.5 else rng.integers(0, 2, n, np.uint16),
            ),
            lambda a=a, b=b: compiled.choose(np.empty(a.size, np.int64), a, None if rng.random() < 0.5 else b, True),
            lambda a=a: compiled.choose(np.empty(a.size, np.int64), a, None if rng.random() < 0.5 else a, False),
            lambda a=a: compiled.entropy(a),
            lambda n=n: compiled.rice_unpack(np.empty(n, np.int64), rng.bytes(n), small() % 9, small()),
            lambda n=n: compiled.parametric(np.empty(n, np.int64), small() % 3, small()),
            lambda a=a: compiled.geometric(np.empty(max(0, a.size - 1), np.int64), a, float(rng.uniform(-0.1, 1.1))),
            lambda n=n: compiled.least_squares(
                rng.normal(size=n) * 10.0 ** small(), rng.random(n + int(rng.random() < 0.1)), 64 * small(), small()
            ),
            lambda n=n: compiled.group_split(
                np.empty(n // 3 + 1, np.uint8), np.empty(n, np.int16), rng.integers(-(1 << 15), 1 << 15, n, np.int16),
                small() % 40, int(rng.integers(0, 9)),
            ),
            lambda n=n: compiled.rank_one_classes(
                np.empty(n, np.uint8), np.empty(n, np.int8), rng.integers(-(1 << 15), 1 << 15, n, np.int16),
                rng.integers(0, 9, 3 * n + int(rng.random() < 0.1), np.int32), 9 - int(rng.random() < 0.1),
            ),
            lambda a=a, n=n: compiled.rank_one_decode(
                np.empty(n, np.int16), rng.integers(0, 9, 3 * n, np.int32), 9 - int(rng.random() < 0.1),
                rng.integers(0, 1 << 32, 1, np.uint32), rng.bytes(small() % 80), np.tile(a, int(rng.integers(4, 18))),
                a.size, int(rng.integers(-1, 16)),
            ),
        )  # fmt: skip
        for i, call in enumerate(calls):
            with contextlib.suppress(ValueError):
                call()
                done[i] += 1
    assert min(done) > count / 100, done  # what is refused at the door tests nothing


def main() -> None:
    """Build, start again, and attack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--kernel", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kernel is None:
        folder = arguments.folder or Path(tempfile.mkdtemp())
        file = kernel_kit.build(folder, *FLAGS)
        runtimes = [
            subprocess.run(
                [kernel_kit.COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True
            )
            for name in ("libasan.so", "libubsan.so")
        ]
        preload = " ".join(done.stdout.strip() for done in runtimes)
        environment = os.environ | {
            "LD_PRELOAD": preload,
            "PYTHONMALLOC": "malloc",
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        }
        again = [sys.executable, __file__, "--kernel", str(file), "--count", str(arguments.count)]
        sys.exit(subprocess.run(again, env=environment, check=False).returncode)
    kernel.compiled = kernel_kit.load(arguments.kernel)
    senseless(arguments.count, seed=3)
    for payload, like, reference in corpus(scale=30, sparsities=(0.5, 0.9), codecs=("int4", "int8")):
        assert payload  # made by the sanitized encoder, many lanes included
        Codec("int4").encode(
            {name: np.zeros(spec.shape, spec.dtype) for name, spec in like.items()}, reference=reference
        )
    survived = attack(arguments.count, seed=5)
    print(f"{arguments.count} damaged payloads, {survived} of them still decoded")


if __name__ == "__main__":
    main()
