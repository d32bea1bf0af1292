"""Speed and bytes of this checkout's codec beside another's, or beside itself without its kernel, call by call in turn.

    python benchmarks/encode_against.py [--model cnn resnet18] [--sparsity .9 .95 .99] [--repeat 9]
    git worktree add /tmp/before COMMIT
    python benchmarks/encode_against.py --other /tmp/before

A process for each side has the same models of ``benchmarks/codec.py``; each encodes and decodes when it is asked, one
after the other, and tells its CPU time. Printed are the medians, the median of the ratios of neighboring calls, and
whether all payloads are equal byte for byte. "Own support" has a tenth of the reference's positions dropped. The last
row is zstd at level 1 over the dense bytes.
"""

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).resolve().parents[1]
ROWS = ("int4, same support", "int4, own support", "int8, no reference", "zstd-1 of dense fp32")


def serve(model: str, sparsity: float) -> None:
    """Encode and decode the row that each line names, and print the CPU seconds of each and a hash of the payload."""
    import numpy as np
    import zstandard
    from codec import cnn_shapes, make_model, prune, resnet18_shapes, train

    from flsparse.codec import Codec, Reference, decode_layers

    rng = np.random.default_rng(0)
    arrays = prune(make_model(resnet18_shapes() if model == "resnet18" else cnn_shapes(), rng), sparsity)
    same, reference = train(arrays, rng), Reference(arrays)
    own = prune(same, 1 - 0.9 * (1 - sparsity))
    dense = b"".join(array.tobytes() for array in own.values())
    jobs = [(Codec("int4"), same, reference), (Codec("int4"), own, reference), (Codec("int8"), own, None)]

    def there(row: int) -> bytes:
        if row == len(jobs):
            return zstandard.ZstdCompressor(level=1).compress(dense)
        codec, update, known = jobs[row]
        return codec.encode(update, reference=known)

    def back(row: int, payload: bytes) -> object:
        if row == len(jobs):
            return zstandard.ZstdDecompressor().decompress(payload)
        return decode_layers(payload, like=reference.specs, reference=jobs[row][2])

    for line in sys.stdin:
        row = int(line)
        encode_s, payload = timed(lambda row=row: there(row))
        decode_s, _ = timed(lambda row=row, payload=payload: back(row, payload))
        print(encode_s, decode_s, hashlib.sha256(payload).hexdigest(), flush=True)


def timed(call: Callable[[], bytes]) -> tuple[float, bytes]:
    """Return the CPU seconds of a call, and what it returns."""
    start = time.thread_time()
    out = call()
    return time.thread_time() - start, out


Answer = tuple[float, float, str]


def ask(process: "subprocess.Popen[str]", row: int) -> Answer:
    """Let a process encode and decode a row."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{row}\n")
    process.stdin.flush()
    encode_s, decode_s, digest = process.stdout.readline().split()
    return float(encode_s), float(decode_s), digest


def compare(sides: list[dict[str, str]], model: str, sparsity: float, repeat: int) -> None:
    """Print the rows of one model."""
    command = [sys.executable, __file__, "--serve", model, str(sparsity)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, env=os.environ | side, **pipes) for side in sides]
    for row, name in enumerate(ROWS):
        pairs = [(ask(both[0], row), ask(both[1], row)) for _ in range(repeat + 1)][1:]  # the first fills caches
        cells = []
        for i, what in enumerate(("encode", "decode")):
            before, after = (1e3 * statistics.median(pair[side][i] for pair in pairs) for side in (0, 1))
            ratio = statistics.median(a[i] / b[i] for a, b in pairs)
            cells.append(f"{what} {before:6.2f} -> {after:6.2f} ms {ratio:5.2f}x")
        equal = "equal bytes" if all(a[2] == b[2] for a, b in pairs) else "OTHER BYTES"
        print(f"{model:8} {100 * sparsity:g} %  {name:21} {'  '.join(cells)}  {equal}")
    for process in both:
        process.communicate()


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], float(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, help="another checkout; without it, this one without its compiled kernel")
    parser.add_argument("--model", nargs="+", choices=("resnet18", "cnn"), default=["cnn", "resnet18"])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.95, 0.99])
    parser.add_argument("--repeat", type=int, default=9)
    args = parser.parse_args()
    mine = {"PYTHONPATH": str(HERE)}
    other = {"PYTHONPATH": str(args.other.resolve())} if args.other else mine | {"FLSPARSE_KERNEL": "0"}
    for model in args.model:
        for sparsity in args.sparsity:
            compare([other, mine], model, sparsity, args.repeat)


if __name__ == "__main__":
    main()
