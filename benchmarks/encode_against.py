"""Speed and bytes of this checkout's encoder beside another checkout's, call by call in turn.

    git worktree add /tmp/before COMMIT
    python benchmarks/encode_against.py /tmp/before [--model cnn resnet18] [--sparsity .9 .95 .99] [--repeat 9]

A process for each checkout has the same models of ``benchmarks/codec.py``; each encodes when it is asked, one after the
other, and tells its CPU time. Printed are the medians, the median of the ratios of neighboring calls, and whether all
payloads are equal byte for byte. "Own support" has a tenth of the reference's positions dropped.
"""

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROWS = ("int4, same support", "int4, own support", "int8, no reference")


def serve(model: str, sparsity: float) -> None:
    """Encode the row that each line names, and print CPU seconds and a hash of the payload."""
    import numpy as np
    from codec import cnn_shapes, make_model, prune, resnet18_shapes, train

    from flsparse.codec import Codec, Reference

    rng = np.random.default_rng(0)
    arrays = prune(make_model(resnet18_shapes() if model == "resnet18" else cnn_shapes(), rng), sparsity)
    same, reference = train(arrays, rng), Reference(arrays)
    own = prune(same, 1 - 0.9 * (1 - sparsity))
    jobs = [(Codec("int4"), same, reference), (Codec("int4"), own, reference), (Codec("int8"), own, None)]
    for line in sys.stdin:
        codec, update, known = jobs[int(line)]
        start = time.thread_time()
        payload = codec.encode(update, reference=known)
        print(time.thread_time() - start, hashlib.sha256(payload).hexdigest(), flush=True)


def ask(process: "subprocess.Popen[str]", row: int) -> tuple[float, str]:
    """Let a process encode a row."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{row}\n")
    process.stdin.flush()
    seconds, digest = process.stdout.readline().split()
    return float(seconds), digest


def compare(other: Path, model: str, sparsity: float, repeat: int) -> None:
    """Print the rows of one model."""
    command = [sys.executable, __file__, "--serve", model, str(sparsity)]
    trees = [other.resolve(), Path(__file__).resolve().parents[1]]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(tree)}, **pipes) for tree in trees]
    for row, name in enumerate(ROWS):
        pairs = [(ask(both[0], row), ask(both[1], row)) for _ in range(repeat + 1)][1:]  # the first fills caches
        before, after = (1e3 * statistics.median(pair[i][0] for pair in pairs) for i in (0, 1))
        ratio = statistics.median(a[0] / b[0] for a, b in pairs)
        equal = "equal bytes" if all(a[1] == b[1] for a, b in pairs) else "OTHER BYTES"
        print(f"{model:8} {100 * sparsity:g} %  {name:18} {before:6.1f} -> {after:6.1f} ms  {ratio:.2f}x  {equal}")
    for process in both:
        process.communicate()


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], float(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="another checkout")
    parser.add_argument("--model", nargs="+", choices=("resnet18", "cnn"), default=["cnn", "resnet18"])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.95, 0.99])
    parser.add_argument("--repeat", type=int, default=9)
    args = parser.parse_args()
    for model in args.model:
        for sparsity in args.sparsity:
            compare(args.other, model, sparsity, args.repeat)


if __name__ == "__main__":
    main()
