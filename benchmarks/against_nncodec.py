"""Bytes of a sparse model without a reference beside NNCodec's (ISO/IEC 15938-17), at equal integers.

    python benchmarks/against_nncodec.py FOLDER
    python benchmarks/against_nncodec.py FOLDER --code      where NNCodec is installed, which wants NumPy below 2

The first command trains a CNN of 189 k parameters and a ResNet-18 for a few steps on noisy images of ten prototypes,
prunes, quantizes as our codec does, and leaves the integers in the folder. The second codes the same integers with
NNCodec (its own optimized contexts, rows of zeros skipped) and prints both. Its bytes hold no steps, ours do.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np

SPARSITIES = (0.9, 0.99, 0.999)
BOUNDS = {"int8": 127, "int4": 7}


def kernels(model: str) -> dict[str, np.ndarray]:
    """Train a model, and return its kernels and matrices."""
    import torch
    from torch import nn

    from flsparse.tasks.models import build_model

    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    coarse = torch.tensor(generator.normal(size=(10, 3, 4, 4)), dtype=torch.float32)
    prototypes = nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    if model == "resnet18":
        net, steps, size = build_model({"name": "resnet18"}, (3, 32, 32), 10), 30, 16
    else:
        widths, blocks = (3, 32, 64, 64), []
        for inside, outside in pairwise(widths):
            blocks += [nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        net = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 10))
        steps, size = 50, 32
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    for _ in range(steps):
        labels = torch.randint(0, 10, (size,))
        images = prototypes[labels] + 0.3 * torch.randn(size, 3, 32, 32)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return {name: p.detach().numpy() for name, p in net.named_parameters() if p.ndim > 1}


def make(folder: Path) -> None:
    """Write the integers of every cell, and the bytes of our payloads."""
    from codec import prune

    from flsparse.codec import Codec, payload_info
    from flsparse.codec.models.quantized import Quantizer, quantize_sparse

    folder.mkdir(parents=True, exist_ok=True)
    sizes = {}
    for model in ("resnet18", "cnn"):
        arrays = kernels(model)
        for values, bound in BOUNDS.items():
            for sparsity in SPARSITIES:
                cell, pruned = f"{model} {values} {sparsity}", prune(arrays, sparsity)
                payload = Codec(values).encode(pruned)
                sizes[cell] = len(payload)
                integers = {}
                for name, array in pruned.items():
                    at, q = np.flatnonzero(array), np.zeros(array.size, np.int32)
                    if at.size:
                        q[at] = quantize_sparse(array.ravel()[at], None, Quantizer(bound)).q
                    integers[name] = q.reshape(array.shape)
                np.savez(folder / f"{cell}.npz", **integers)
                print(f"{cell:20} {len(payload):9,} B, format version {payload_info(payload).version}")
    (folder / "ours.json").write_text(json.dumps(sizes))


def code(folder: Path) -> None:
    """Code the same integers with NNCodec, and print both."""
    from nncodec import nnc

    for cell, ours in json.loads((folder / "ours.json").read_text()).items():
        with np.load(folder / f"{cell}.npz") as stored:
            integers = {name: stored[name] for name in stored.files}
        stream = nnc.compress(
            integers,
            bitstream_path=str(folder / "stream.nnc"),
            use_dq=False,
            param_opt=True,
            row_skipping=True,
            return_bitstream=True,
        )
        print(f"| {cell} | {ours:,} | {len(stream):,} | {ours / len(stream):.3f} |")


def main() -> None:
    """Make the integers, or code them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--code", action="store_true")
    arguments = parser.parse_args()
    (code if arguments.code else make)(arguments.folder)


if __name__ == "__main__":
    main()
