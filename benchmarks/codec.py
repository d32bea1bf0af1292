"""Bytes and speed (CPU time of one thread) of the codec beside the usual ways to send a sparse model, all in one run.

    python benchmarks/codec.py [--model resnet18|cnn] [--sparsity .9 .99 .999] [--json FILE]

The weights are synthetic with the traits that matter to a coder: heavy tails, scales that differ from channel to
channel (so that kept positions cluster), and changes of a local fit that are larger where weights are. The int8
baselines carry the very symbols of our int8 payload without a reference; "ideal" is the entropy of independent
positions and symbols, sum n H(p) + k H(symbols), with nothing else.
"""

import argparse
import json
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import zstandard
from rich.console import Console
from rich.table import Table

from flsparse.codec import Accumulator, Codec, Reference, decode, decode_layers, payload_info
from flsparse.codec.models.quantized import Quantizer, quantize_sparse

Arrays = dict[str, np.ndarray]


def resnet18_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of ResNet-18 with 10 classes and a CIFAR stem."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 3, 3), "bn1": (64,)}
    inside = 64
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            at = f"layer{stage}.{block}"
            shapes |= {f"{at}.conv1.weight": (width, inside, 3, 3), f"{at}.bn1": (width,)}
            shapes |= {f"{at}.conv2.weight": (width, width, 3, 3), f"{at}.bn2": (width,)}
            if inside != width:
                shapes |= {f"{at}.down.weight": (width, inside, 1, 1), f"{at}.down.bn": (width,)}
            inside = width
    return shapes | {"fc.weight": (10, 512), "fc.bias": (10,)}


def cnn_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of the network of the Fashion-MNIST experiments: 89,616 weights and 298 others."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, shape in enumerate(((16, 1, 5, 5), (32, 16, 3, 3), (64, 32, 3, 3)), 1):
        shapes |= {f"conv{i}.weight": shape, f"norm{i}.weight": shape[:1], f"norm{i}.bias": shape[:1]}
    return shapes | {"fc1.weight": (64, 1024), "fc1.bias": (64,), "fc2.weight": (10, 64), "fc2.bias": (10,)}


def make_model(shapes: dict[str, tuple[int, ...]], rng: np.random.Generator) -> Arrays:
    """Draw weights; a ``bn`` entry stands for weight, bias, mean, variance and the batch counter."""
    arrays: Arrays = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            spread = [np.exp(0.5 * rng.normal(size=[n if i == d else 1 for i, n in enumerate(shape)])) for d in (0, 1)]
            weights = rng.laplace(size=shape) * spread[0] * spread[1] / np.sqrt(np.prod(shape[1:]))
            arrays[name] = weights.astype(np.float32)
        elif "bn" in name:
            arrays[f"{name}.weight"] = (1 + 0.1 * rng.normal(size=shape)).astype(np.float32)
            arrays[f"{name}.bias"] = (0.1 * rng.normal(size=shape)).astype(np.float32)
            arrays[f"{name}.running_mean"] = (0.1 * rng.normal(size=shape)).astype(np.float32)
            arrays[f"{name}.running_var"] = np.exp(rng.normal(size=shape)).astype(np.float32)
            arrays[f"{name}.num_batches_tracked"] = np.array(100)
        else:
            arrays[name] = (float(name.endswith("weight")) + 0.1 * rng.normal(size=shape)).astype(np.float32)
    return arrays


def prune(arrays: Arrays, sparsity: float) -> Arrays:
    """Keep the largest weights of all kernels and matrices together."""
    every = np.concatenate([np.abs(a).ravel() for a in arrays.values() if a.ndim > 1])
    rank = int(sparsity * every.size)
    threshold = np.partition(every, rank)[rank] if rank else 0.0
    return {n: np.where(np.abs(a) >= threshold, a, 0).astype(a.dtype) if a.ndim > 1 else a for n, a in arrays.items()}


def train(arrays: Arrays, rng: np.random.Generator) -> Arrays:
    """Change every weight that is not zero a little, as a local fit with Powerpropagation does."""
    new = {}
    for name, a in arrays.items():
        if a.dtype.kind != "f":
            new[name] = a + 19
            continue
        change = 0.02 * (np.abs(a) + 0.3 * np.abs(a).mean()) * rng.laplace(size=a.shape)
        new[name] = np.where((a != 0) | (a.ndim < 2), a + change, 0).astype(a.dtype)
    return new


def entropy_bits(counts: np.ndarray) -> float:
    """Return n H of a histogram."""
    counts = counts[counts > 0]
    return float((counts * np.log2(counts.sum() / counts)).sum())


Symbols = list[tuple[np.ndarray, np.ndarray, int]]


def symbols_of(arrays: Arrays) -> Symbols:
    """Return positions, int8 symbols and size of every kernel, quantized as our int8 does."""
    parts = []
    for a in (a.ravel() for a in arrays.values() if a.ndim > 1):
        at = np.flatnonzero(a != 0)
        q = quantize_sparse(a[at], None, Quantizer(127)).q
        parts.append((at[q != 0], q[q != 0].astype(np.int8), a.size))
    return parts


def ideal_bytes(parts: Symbols) -> float:
    """Return the entropy of independent positions and symbols."""
    bits = 0.0
    for at, symbols, size in parts:
        bits += entropy_bits(np.array([at.size, size - at.size])) + entropy_bits(
            np.bincount(symbols.astype(np.int64) + 128)
        )
    return bits / 8


def delta_shuffle_zstd(parts: Symbols) -> bytes:
    """Code gaps as uint32, their bytes by plane, with zstd-3; symbols with zstd-3."""
    compressor = zstandard.ZstdCompressor(level=3)
    gaps = np.concatenate([np.diff(at, prepend=-1).astype(np.uint32) for at, _, _ in parts])
    planes = np.ascontiguousarray(gaps.view(np.uint8).reshape(-1, 4).T)
    return compressor.compress(planes.tobytes()) + compressor.compress(b"".join(s.tobytes() for _, s, _ in parts))


def best_of(call: Callable[[], object], repeat: int) -> float:
    """Return the smallest CPU seconds of some calls."""
    best = np.inf
    for _ in range(repeat):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best


def rows_of(arrays: Arrays, reference: Reference, update: Arrays, repeat: int) -> list[dict[str, object]]:
    """Measure every way to send one model."""
    dense = sum(a.nbytes for a in arrays.values())
    whole = b"".join(a.tobytes() for a in arrays.values())
    parts = symbols_of(arrays)
    leftovers = sum(a.nbytes for a in arrays.values() if a.ndim < 2)
    rows: list[dict[str, object]] = []

    def add(
        name: str, size: float, encode_s: float | None = None, decode_s: float | None = None, **more: object
    ) -> None:
        speeds = {
            "encode_mbps": encode_s and dense / encode_s / 1e6,
            "decode_mbps": decode_s and dense / decode_s / 1e6,
        }
        rows.append({"name": name, "bytes": round(size), "ratio": dense / size, **speeds, **more})

    add("dense fp32", dense)
    squeezed = zstandard.ZstdCompressor(level=1).compress(whole)
    add(
        "zstd-1 of dense fp32",
        len(squeezed),
        best_of(lambda: zstandard.ZstdCompressor(level=1).compress(whole), repeat),
        best_of(lambda: zstandard.ZstdDecompressor().decompress(squeezed), repeat),
    )
    nnz = sum(at.size for at, _, _ in parts)
    add("index + value (int32, fp32)", 8 * nnz + leftovers)
    shuffled = len(delta_shuffle_zstd(parts))
    add("int8: delta + shuffle + zstd-3, dense fp32", shuffled + leftovers)
    add("int8: the same, kernels only", shuffled, best_of(lambda: delta_shuffle_zstd(parts), repeat))
    add("int8: ideal, kernels only", ideal_bytes(parts))
    for values in ("fp32", "fp16", "int8", "int4"):
        for known, model in ((None, arrays), (reference, update)):
            codec = Codec(values)
            payload = codec.encode(model, reference=known)
            accumulator = Accumulator(reference.specs)
            layers = decode_layers(payload, like=reference.specs, reference=known)
            add(
                f"flsparse {values}, {'reference' if known else 'no reference'}",
                len(payload),
                best_of(lambda c=codec, m=model, k=known: c.encode(m, reference=k), repeat),
                best_of(lambda p=payload, k=known: decode_layers(p, like=reference.specs, reference=k), repeat),
                sections=payload_info(payload).sections,
                rms_error=_rms_error(decode(payload, like=model, reference=known), model, arrays if known else None),
                accumulate_ms=1e3 * best_of(lambda a=accumulator, x=layers: a.add(x, 1.0), repeat),
            )
    return rows


def _rms_error(out: Arrays, wanted: Arrays, base: Arrays | None) -> float:
    """Root of the squared error of the kernels over the square of what was sent: weights, or changes."""
    miss = sum(float(((out[n] - a) ** 2).sum()) for n, a in wanted.items() if a.ndim > 1)
    sent = sum(float(((a - (0 if base is None else base[n])) ** 2).sum()) for n, a in wanted.items() if a.ndim > 1)
    return float(np.sqrt(miss / sent))


def show(console: Console, title: str, rows: list[dict[str, object]]) -> None:
    """Print one table."""
    table = Table(title=title)
    for column in (
        "",
        "bytes",
        "ratio",
        "encode MB/s",
        "decode MB/s",
        "error",
        "add ms",
        "header/positions/values/dense",
    ):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        sections = row.get("sections")
        cells = [f"{row[k]:.0f}" if row.get(k) else "" for k in ("encode_mbps", "decode_mbps")]
        error = f"{row['rms_error']:.4f}" if "rms_error" in row else ""
        add = f"{row['accumulate_ms']:.2f}" if "accumulate_ms" in row else ""
        split = "/".join(str(v) for v in list(sections.values())[:4]) if isinstance(sections, dict) else ""
        table.add_row(str(row["name"]), f"{row['bytes']:,}", f"{row['ratio']:.1f}", *cells, error, add, split)
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("resnet18", "cnn"), default="resnet18")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.95, 0.99, 0.999])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeat", type=int, default=3, help="the best of this many runs is taken")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there as well")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    model = make_model(resnet18_shapes() if args.model == "resnet18" else cnn_shapes(), rng)
    console, results = Console(width=150), {}
    for sparsity in args.sparsity:
        arrays = prune(model, sparsity)
        rows = rows_of(arrays, Reference(arrays), train(arrays, rng), args.repeat)
        results[str(sparsity)] = rows
        show(console, f"{args.model}, {100 * sparsity:g} % sparse", rows)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"model": args.model, "seed": args.seed, "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
