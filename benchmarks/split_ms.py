"""Split learning: what mask encoding and its rivals cost and keep, at shallow, medium and deep cuts.

    python benchmarks/split_ms.py --data data                        everything: hours on one core
    python benchmarks/split_ms.py --data data --part codecs          sizes, errors, bias, milliseconds: a minute or two
    python benchmarks/split_ms.py --data data --part accuracy --cuts 2 --rows none ms topk

Accuracy and bytes come from whole federations over Flower messages in this process; a run that has finished is not
repeated. Entropy coding changes no decoded tensor, so the accuracies of all seeds stand for both; it takes most of the
time, so only the first ``--coded`` seeds use it, and bits and bytes are theirs.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sweep import markdown, mean_and_spread
from torch.nn.functional import cross_entropy

from flsparse.app.cut_adviser import relative_error
from flsparse.codec import decode_activations, make_activation_codec
from flsparse.codec.activations.envelope import sections_of
from flsparse.codec.coders import contexts
from flsparse.nets.cutting import cut_model
from flsparse.runtime import launch
from flsparse.tasks import build_task

CUTS = {"2": "shallow", "5": "medium", "8": "deep"}
EQUAL_SIZE = 0.95875  # 1 + 32 (1 - r) = 2.32 bits, as mask encoding with r = 0.99 and b = 2
CODECS: dict[str, dict[str, Any]] = {
    "none": {"compressor": "none"},
    "ms (.99, 2)": {"compressor": "ms", "sparsity": 0.99, "bits": 2},
    "ms (.99, 2) floor": {"compressor": "ms", "sparsity": 0.99, "bits": 2, "mask_rounding": "floor"},
    "ms (.999, 3)": {"compressor": "ms", "sparsity": 0.999, "bits": 3},
    "topk": {"compressor": "topk", "sparsity": EQUAL_SIZE},
    "randtopk": {"compressor": "randtopk", "sparsity": EQUAL_SIZE},
    "uniform 3 bits": {"compressor": "uniform", "bits": 3},
}
ROWS: dict[str, dict[str, Any]] = {
    "none": CODECS["none"] | {"gradient": "fp32"},
    "ms": CODECS["ms (.99, 2)"] | {"gradient": "fp32"},
    "ms-floor": CODECS["ms (.99, 2) floor"] | {"gradient": "fp32"},
    "ms-999-3": CODECS["ms (.999, 3)"] | {"gradient": "fp32"},
    "topk": CODECS["topk"] | {"gradient": "fp32"},
    "randtopk": CODECS["randtopk"] | {"gradient": "fp32"},
    "uniform": CODECS["uniform 3 bits"] | {"gradient": "fp32"},
    "ms+int4": CODECS["ms (.99, 2)"] | {"gradient": "int4"},
    "ms-999-3+int4": CODECS["ms (.999, 3)"] | {"gradient": "int4"},
    "uniform+int4": CODECS["uniform 3 bits"] | {"gradient": "int4"},
}


def configuration(arguments: argparse.Namespace, cut: str, row: str, seed: int) -> dict[str, Any]:
    """Return the configuration of one federation."""
    return {
        "seed": seed,
        "num_rounds": arguments.rounds,
        "num_clients": arguments.nodes,
        "fraction_train": 1.0,
        "threads": 1,
        "dataset": {
            "name": arguments.dataset,
            "root": str(arguments.data),
            "mean": 0.5,
            "std": 0.5,
            "validation_fraction": 0.0,
            "train_samples": arguments.samples,
        },
        "partition": {"kind": "iid"},
        "model": {"name": "cnn", "width": 16},
        "client": {"lr": arguments.lr, "lr_final": arguments.lr / 20, "batch_size": arguments.batch, "momentum": 0.9}
        | {"weight_decay": 0.0005},
        "codec": {"values": "int8", "rounding": "nearest", "downlink_values": "int8"},
        "strategy": {
            "name": "split_ms",
            "cut": cut,
            "entropy": seed < arguments.coded,
            "steps_per_round": arguments.steps,
        }
        | ROWS[row],
        "evaluate": {"every": arguments.every, "on": "test"},
        "output_dir": None,
    }


class Rows:
    """Keeps the rows of a run."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_start(self, info: dict[str, Any]) -> None:
        """Nothing to do."""

    def on_round(self, row: dict[str, Any]) -> None:
        """Keep a row."""
        self.rows.append(row)

    def on_end(self, summary: dict[str, Any]) -> None:
        """Nothing to do."""


def federation(arguments: argparse.Namespace, cut: str, row: str, seed: int) -> dict[str, Any]:
    """Run one federation, or read what it gave."""
    a = arguments
    size = f"{a.samples}x{a.rounds}x{a.steps}-n{a.nodes}b{a.batch}lr{a.lr}"
    name = f"{a.dataset}-{size}-{'coded' if seed < a.coded else 'packed'}"
    file = a.out / f"{name}-cut{cut}-{row}-seed{seed}.json"
    if not file.exists():
        started, watch = time.perf_counter(), Rows()
        launch(configuration(a, cut, row, seed), [watch])
        found = {"rows": watch.rows, "seconds": time.perf_counter() - started}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, default=float))
        print(f"{file.stem}: {100 * watch.rows[-1]['accuracy']:.1f} % in {found['seconds']:.0f} s", flush=True)
    result: dict[str, Any] = json.loads(file.read_text())
    return result


def accuracy(arguments: argparse.Namespace) -> None:
    """Print accuracy, bits and bytes of each compressor at each cut."""
    print(f"\n### {arguments.dataset}: {arguments.samples} samples, {arguments.rounds} rounds of ", end="")
    print(f"{arguments.steps} steps, {arguments.seeds} seed(s)\n")
    for cut in arguments.cuts:
        runs = {row: [federation(arguments, cut, row, s) for s in range(arguments.seeds)] for row in arguments.rows}
        best = [run["rows"][-1]["accuracy"] for run in runs.get("none", [])]
        table = []
        for row, of in runs.items():
            last, coded = [run["rows"][-1] for run in of], of[: max(1, arguments.coded)]
            bits = [
                [np.mean([row[f"{way}_bits_per_element"] for row in run["rows"]]) for run in coded]
                for way in ("uplink", "downlink")
            ]
            cells = [
                mean_and_spread([100 * each["accuracy"] for each in last]),
                *(f"{np.mean(each):.2f}" for each in bits),
                f"{np.mean(np.sum(bits, axis=0)):.2f}",
                *_until(of, len(coded), [accuracy - 0.01 for accuracy in best]),
            ]
            lost = [100 * (each["accuracy"] - exact) for each, exact in zip(last, best, strict=False)]
            cells.insert(1, f"{np.mean(lost):+.1f}" if lost else "")
            table.append([row, *cells])
        print(f"\ncut={cut} ({CUTS[cut]})\n")
        header = [
            "",
            "accuracy %",
            "minus none",
            "bits up",
            "bits down",
            "both",
            "steps to target",
            "MB up to target",
            "MB both ways",
        ]
        print(markdown(header, table))


def _until(runs: list[dict[str, Any]], coded: int, targets: list[float]) -> list[str]:
    """Return the steps of all runs to their seed's target, and the bytes of the first, coded ones."""
    steps, sizes = [], []
    for number, (run, target) in enumerate(zip(runs, targets, strict=False)):
        reached = [i for i, row in enumerate(run["rows"]) if row["accuracy"] and row["accuracy"] >= target]
        if not reached:
            continue
        rows = run["rows"][: reached[0] + 1]
        steps.append(sum(row["steps"] for row in rows))
        if number < coded:
            up, down = (sum(row[f"{way}_bytes"] for row in rows) for way in ("uplink", "downlink"))
            sizes.append((up / 1e6, (up + down) / 1e6))
    missed = f" ({len(runs) - len(steps)} missed)" if len(steps) < len(runs) else ""
    up_both = [f"{each:.2f}" for each in np.mean(sizes, axis=0)] if sizes else ["", ""]
    return [f"{np.mean(steps):.0f}{missed}" if steps else "never", *up_both]


def trained(arguments: argparse.Namespace, seed: int) -> tuple[Any, torch.nn.Module]:
    """Train the uncut model a little on all training data, so that activations are those of a model in training."""
    config = configuration(arguments, "2", "none", seed)
    task = build_task({**config, "num_clients": 1})
    model, data = task.model().train(), task.train_data(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=arguments.lr, momentum=0.9, weight_decay=5e-4)
    order = torch.Generator().manual_seed(seed)
    for _ in range(arguments.warm_steps):
        chosen = data.index[torch.randint(len(data), (64,), generator=order)]
        loss = cross_entropy(model(data.prepare(data.all_inputs[chosen])), data.all_targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return data, model


def codecs(arguments: argparse.Namespace) -> None:
    """Print size, error, gradient bias and milliseconds of each compressor on real activations."""
    data, model = trained(arguments, 0)
    order = torch.Generator().manual_seed(1)
    batches = [
        data.index[torch.randint(len(data), (arguments.batch,), generator=order)] for _ in range(arguments.batches)
    ]
    print(f"\n### {arguments.dataset}: activations of the CNN after {arguments.warm_steps} steps, ", end="")
    print(f"{arguments.batches} batches of {arguments.batch}, one thread\n")
    for cut in arguments.cuts:
        bottom, top = cut_model(model, [cut])
        tensors = []
        for chosen in batches:
            with torch.no_grad():
                tensors.append((bottom(data.prepare(data.all_inputs[chosen])).numpy(), data.all_targets[chosen]))
        table = [_measure(name, settings, tensors, top) for name, settings in CODECS.items() if name != "none"]
        shape = "x".join(map(str, tensors[0][0].shape[1:]))
        print(f"\ncut={cut} ({CUTS[cut]}, {shape})\n")
        header = ["", "bits packed", "bits coded", "ratio coded", "mask over H(m given 2)", "error", "gradient bias"]
        print(markdown([*header, "encode ms", "packed ms", "decode ms"], table))


def _measure(name: str, settings: dict[str, Any], tensors: list[Any], top: torch.nn.Module) -> list[str]:
    arguments = {key.replace("mask_", ""): value for key, value in settings.items() if key != "compressor"}
    coded = make_activation_codec(settings["compressor"], **arguments)
    packed = make_activation_codec(settings["compressor"], **arguments, entropy=False)
    sizes: dict[str, list[float]] = {
        key: [] for key in ("packed", "coded", "error", "over", "encode", "pack", "decode")
    }
    exact_sum, coded_sum, norms = 0.0, 0.0, []
    for number, (array, labels) in enumerate(tensors):
        started = time.perf_counter()
        payload = coded.encode(array, rng=np.random.default_rng(number))
        sizes["encode"].append(1e3 * (time.perf_counter() - started))
        started = time.perf_counter()
        plain = packed.encode(array, rng=np.random.default_rng(number))
        sizes["pack"].append(1e3 * (time.perf_counter() - started))
        started = time.perf_counter()
        decoded, codes = decode_activations(payload, array.shape)
        sizes["decode"].append(1e3 * (time.perf_counter() - started))
        np.testing.assert_array_equal(decoded, decode_activations(plain, array.shape)[0])
        sizes["packed"].append(8 * len(plain) / array.size)
        sizes["coded"].append(8 * len(payload) / array.size)
        sizes["error"].append(relative_error(decoded, array))
        alphabet = 1 << payload[9]
        entropy = contexts.conditional_entropy(codes, array.shape, alphabet)
        sizes["over"].append(8 * sections_of(payload).masks / array.size / entropy)
        exact, biased = (_top_gradient(top, each, labels) for each in (array, decoded))
        exact_sum, coded_sum = exact_sum + exact, coded_sum + biased
        norms.append(float(np.linalg.norm(exact)))
    means = {key: float(np.mean(values)) for key, values in sizes.items()}
    # the error of the mean gradient: what does not average out over batches
    bias = float(np.linalg.norm(coded_sum - exact_sum) / len(tensors) / np.mean(norms))
    cells = [f"{means['packed']:.3f}", f"{means['coded']:.3f}", f"{32 / means['coded']:.1f}"]
    cells += [f"{100 * (means['over'] - 1):+.1f} %", f"{means['error']:.3f}", f"{bias:.3f}"]
    return [name, *cells, *(f"{np.median(sizes[key]):.1f}" for key in ("encode", "pack", "decode"))]


def _top_gradient(top: torch.nn.Module, array: np.ndarray, labels: torch.Tensor) -> np.ndarray:
    """Return the gradient at the cut, summed over the batch by position in a sample."""
    smashed = torch.from_numpy(array).requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(top(smashed), labels), smashed)
    return gradient.sum(0).double().numpy()


def choices(arguments: argparse.Namespace) -> None:
    """Print what the chooser picks for some target errors."""
    from rich.console import Console

    from flsparse.app.cut_adviser import advice_table, advise, choose_settings

    data, model = trained(arguments, 0)
    inputs = data.prepare(data.all_inputs[data.index[: arguments.batch]])
    Console(width=110).print(advice_table(advise(model, inputs), len(inputs)))
    table = []
    for cut in arguments.cuts:
        with torch.no_grad():
            array = cut_model(model, [cut])[0](inputs).numpy()
        for target in (0.3, 0.2, 0.1):
            settings, size, error = choose_settings(array, target)
            found = f"({settings.sparsity:g}, {settings.bits})"
            table.append([f"{cut} ({CUTS[cut]})", target, found, f"{8 * size / array.size:.2f}", f"{error:.3f}"])
    print(markdown(["cut", "target error", "chosen (r, b)", "bits", "error"], table))


PARTS = {"codecs": codecs, "choices": choices, "accuracy": accuracy}


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="root of the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/split_ms"), help="where finished runs are kept")
    parser.add_argument("--part", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--dataset", choices=("fashion_mnist", "cifar10"), default="fashion_mnist")
    parser.add_argument("--cuts", nargs="*", choices=CUTS, default=list(CUTS))
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=8000, help="training images")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=31, help="steps a round, half a pass over 8,000 images")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--every", type=int, default=1, help="rounds between evaluations")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--coded", type=int, default=1, help="the first seeds, whose federations code what they send")
    parser.add_argument("--warm-steps", type=int, default=150, help="training steps before activations are taken")
    parser.add_argument("--batches", type=int, default=6, help="batches that --part codecs measures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for part in arguments.part:
        PARTS[part](arguments)


if __name__ == "__main__":
    main()
