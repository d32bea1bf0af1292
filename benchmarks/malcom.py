"""MALCOM-PSGD beside CHOCO-SGD and D-PSGD: accuracy against the bytes on the links of the graph.

    python benchmarks/malcom.py --data ROOT [--only main bits mu steps gamma main16] [--seeds 3] [--finished]

Fashion-MNIST, a net 784-64-10 (50,890 parameters), 9 and 16 nodes of equal size, batch 32, learning rate 0.1, 600
exchanges of one step each. The nodes run as one batched product (:mod:`gossip_simulation`), which a test holds against
the real rounds. Sizes are those of real payloads, headers included: one message every 25 rounds is encoded by every
coder. Finished runs are kept in --out and
not repeated; with --finished nothing is run, and only rows whose runs are there are printed.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from gossip_simulation import Setting, Trace, simulate
from sweep import markdown, mean_and_spread

from flsparse.codec.residuals.dither import Dither
from flsparse.tasks import Task, build_task
from flsparse.topology import make_topology

GRAPHS = ("torus", "ring", "complete")
ALPHAS = (0.1, float("inf"))
D_PSGD = Setting("d_psgd", coders=())
CHOCO = Setting("choco_sgd", Dither(4))
MALCOM = Setting("malcom_psgd", Dither(2, "rms"), mu=1e-5)
DITHERED = replace(MALCOM, dither=Dither(2))  # the paper's quantizer
ONE_LEVEL = replace(MALCOM, dither=Dither(1), gamma=0.3)
CHOCO_GAMMAS = (0.6, 1.0)
SMOOTH = 3  # evaluations averaged before an accuracy counts as reached


class Unfinished(Exception):
    """A run is not there, and none may be started."""


class Bench:
    """Runs settings, and keeps what came out."""

    def __init__(self, data: Path, out: Path, finished: bool) -> None:
        self.data, self.out, self.finished = data, out, finished
        out.mkdir(parents=True, exist_ok=True)

    def task(self, nodes: int, alpha: float, seed: int) -> Task:
        return build_task(
            {
                "dataset": {"name": "fashion_mnist", "root": str(self.data), "validation_fraction": 0.1},
                "model": {"name": "mlp"},
                "partition": {"kind": "dirichlet_equal", "alpha": alpha},
                "num_clients": nodes,
                "seed": seed,
            }
        )

    def run(self, nodes: int, graph: str, alpha: float, seed: int, setting: Setting) -> Trace:
        key = json.dumps([nodes, graph, alpha, seed, asdict(setting)], sort_keys=True)
        file = self.out / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        if not file.exists():
            if self.finished:
                raise Unfinished
            started = time.perf_counter()
            trace = simulate(self.task(nodes, alpha, seed), make_topology({"name": graph}, nodes, seed), setting, seed)
            file.write_text(json.dumps({"key": json.loads(key), "trace": asdict(trace)}))
            print(
                f"{nodes} {graph} {alpha} seed {seed} {setting.method} L={setting.dither and setting.dither.levels} "
                f"gamma={setting.gamma} mu={setting.mu} local steps={setting.local_steps}: "
                f"{time.perf_counter() - started:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        return Trace(**json.loads(file.read_text())["trace"])


def final(trace: Trace) -> float:
    """Return the accuracy in percent, mean over the last four evaluations; that of guessing after divergence."""
    return 10.0 if trace.diverged else 100 * float(np.mean(trace.accuracy[-4:]))


def reached(trace: Trace, target: float) -> int | None:
    """Return the round at which the smoothed accuracy first reaches a target in percent, None where it never does."""
    accuracy = 100 * np.array(trace.accuracy)
    for i in range(SMOOTH - 1, len(accuracy)):
        if accuracy[i - SMOOTH + 1 : i + 1].mean() >= target:
            return trace.rounds[i]
    return None


def choco(bench: Bench, nodes: int, graph: str, alpha: float, dither: Dither = CHOCO.dither) -> Setting:
    """Return CHOCO-SGD with the best gamma of its grid on seed 0."""
    settings = [replace(CHOCO, dither=dither, gamma=gamma) for gamma in CHOCO_GAMMAS]
    return max(settings, key=lambda setting: final(bench.run(nodes, graph, alpha, 0, setting)))


def main_table(bench: Bench, nodes: int, seeds: int) -> None:
    """Print accuracy, bytes and the bytes to D-PSGD's accuracy less one point."""
    rows = []
    for graph in GRAPHS:
        for alpha in ALPHAS:
            with suppress(Unfinished):
                rows += _main_rows(bench, nodes, graph, alpha, seeds)
    print(f"\n### {nodes} nodes, {seeds} seed(s)\n")
    header = [
        "graph, alpha", "method", "consensus model %", "nodes, mean %", "nodes, worst %", "consensus error",
        "bytes a message", "exchanges to target", "bytes to target / CHOCO fixed", "/ CHOCO coded",
    ]  # fmt: skip
    print(markdown(header, rows))


def _main_rows(bench: Bench, nodes: int, graph: str, alpha: float, seeds: int) -> list[list[object]]:
    methods = {"D-PSGD": D_PSGD}
    for name, dither in (("CHOCO L=4", Dither(4)), ("CHOCO L=2", Dither(2)), ("CHOCO rms", Dither(2, "rms"))):
        tuned = choco(bench, nodes, graph, alpha, dither)
        methods[f"{name} gamma {tuned.gamma}"] = tuned
    methods |= {"MALCOM L=2": DITHERED, "MALCOM L=1 gamma 0.3": ONE_LEVEL, "MALCOM rms": MALCOM}
    traces = {name: [bench.run(nodes, graph, alpha, s, m) for s in range(seeds)] for name, m in methods.items()}
    targets = [final(trace) - 1 for trace in traces["D-PSGD"]]
    when = {
        name: [reached(trace, target) for trace, target in zip(of, targets, strict=True)] for name, of in traces.items()
    }
    dense, middle, *others = methods
    rows: list[list[object]] = []
    variants = [(dense, "dense"), (middle, "fixed"), (middle, "coded"), *((name, "coded") for name in others)]
    for name, coder in variants:
        size = [_size(trace, coder) for trace in traces[name]]
        ratios = []
        for base in ("fixed", "coded"):
            pairs = [
                (n * b) / (m * _size(other, base))
                for n, b, m, other in zip(when[name], size, when[middle], traces[middle], strict=True)
                if n and m
            ]
            missed = seeds - len(pairs)
            ratios.append((mean_and_spread(pairs, 2) if pairs else "-") + (f" ({missed} missed)" if missed else ""))
        rows.append(
            [
                f"{graph}, {'IID' if np.isinf(alpha) else alpha}",
                f"{name}, {coder}",
                mean_and_spread([final(trace) for trace in traces[name]]),
                mean_and_spread([100 * trace.mean_node[-1] for trace in traces[name]]),
                mean_and_spread([100 * trace.worst_node[-1] for trace in traces[name]]),
                f"{np.mean([trace.consensus_error[-1] for trace in traces[name]]):.3f}",
                f"{np.mean(size):,.0f}",
                ", ".join("-" if n is None else str(n) for n in when[name]),
                *ratios,
            ]
        )
    return rows


def _size(trace: Trace, coder: str) -> float:
    if coder == "dense":
        return 4 * 50_890 + 11
    if coder == "coded":
        return min(trace.bytes_per_message("golomb"), trace.bytes_per_message("rans"))
    return trace.bytes_per_message(coder)


def bits_table(bench: Bench) -> None:
    """Print bits a parameter by the number of levels, beside d log2(2L+1) and the claimed shape."""
    rows = []
    d = 50_890
    for levels in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        setting = replace(DITHERED, dither=Dither(levels), rounds=200, sample_every=10)
        trace = bench.run(9, "torus", 0.1, 0, setting)
        entropy = trace.bytes_per_message("entropy")
        cells = [f"{8 * trace.bytes_per_message(coder) / d:.3f}" for coder in ("fixed", "golomb", "rans")]
        excess = min(trace.bytes_per_message(coder) for coder in ("golomb", "rans")) / entropy - 1
        rows.append(
            [
                levels, *cells, f"{8 * entropy / d:.3f}", f"{100 * excess:.1f} %", f"{np.log2(2 * levels + 1):.3f}",
                f"{np.exp(-1 / levels):.3f}", f"{final(trace):.1f}",
            ]
        )  # fmt: skip
    print("\n### Bits a parameter by the number of levels (9 nodes, torus, alpha 0.1, 200 rounds)\n")
    header = ["L", "fixed", "golomb", "rans", "entropy", "best over entropy", "log2(2L+1)", "exp(-1/L)", "accuracy %"]
    print(markdown(header, rows))


def mu_table(bench: Bench) -> None:
    """Print accuracy, sparsity and bytes by L and mu, then what a longer run or a later start of mu changes."""
    rows = []
    for levels in (2, 16):
        for mu in (0.0, 1e-5, 1e-4, 1e-3, 3e-3):
            with suppress(Unfinished):
                trace = bench.run(9, "torus", 0.1, 0, replace(DITHERED, dither=Dither(levels), mu=mu))
                rows.append([levels, f"{mu:g}", *_mu_cells(trace)])
    print("\n### L x mu (9 nodes, torus, alpha 0.1, 600 rounds, seed 0)\n")
    columns = ["accuracy %", "nodes, mean %", "sparsity of x", "of the mean", "bytes a message", "entropy"]
    print(markdown(["L", "mu", *columns], rows))
    rows = []
    for rounds in (600, 1500):
        for mu, begin in ((0.0, 0.0), (1e-3, 0.0), (1e-3, 0.5)):
            setting = replace(DITHERED, mu=mu, mu_from=begin, rounds=rounds)
            with suppress(Unfinished):
                rows.append([rounds, f"{mu:g}", begin, *_mu_cells(bench.run(9, "torus", 0.1, 0, setting))])
    print("\n### A longer run, or mu from half-time on (L = 2)\n")
    print(markdown(["rounds", "mu", "from", *columns], rows))


def _mu_cells(trace: Trace) -> list[object]:
    return [
        f"{final(trace):.1f}",
        f"{100 * trace.mean_node[-1]:.1f}",
        f"{trace.sparsity[-1]:.3f}",
        f"{trace.model_sparsity[-1]:.3f}",
        f"{_size(trace, 'coded'):,.0f}",
        f"{trace.bytes_per_message('entropy'):,.0f}",
    ]


def steps_table(bench: Bench) -> None:
    """Print what fewer exchanges cost: local steps between them, at equal gradient steps and at equal exchanges."""
    rows = []
    for steps in (1, 4, 16):
        for rounds in sorted({600, 600 // steps}):
            every = max(1, rounds // 24)
            setting = replace(DITHERED, local_steps=steps, rounds=rounds, evaluate_every=every, sample_every=every)
            try:
                trace = bench.run(9, "torus", 0.1, 0, setting)
            except Unfinished:
                continue
            total = rounds * _size(trace, "coded")
            rows.append(
                [
                    steps, rounds, steps * rounds, f"{final(trace):.1f}", f"{100 * trace.mean_node[-1]:.1f}",
                    f"{100 * trace.worst_node[-1]:.1f}", f"{_size(trace, 'coded'):,.0f}", f"{total / 1e6:.2f}",
                ]
            )  # fmt: skip
    print("\n### Local steps between exchanges (9 nodes, torus, alpha 0.1, seed 0)\n")
    header = [
        "local steps", "exchanges", "steps in all", "accuracy %", "nodes, mean %", "worst %", "bytes a message",
        "MB over each link",
    ]  # fmt: skip
    print(markdown(header, rows))


def gamma_table(bench: Bench) -> None:
    """Print the consensus error by quantizer, gamma and graph: where gossip is stable."""
    gammas = (0.1, 0.3, 0.6, 1.0, 1.3)
    quantizers = {
        "rms, layer, L=2": (Dither(2, "rms"), False),
        "max, layer, least squares, L=1": (Dither(1), False),
        "max, layer, least squares, L=2": (Dither(2), False),
        "max, layer, unbiased, L=1": (Dither(1, scaling="unbiased"), False),
        "max, layer, unbiased, L=2": (Dither(2, scaling="unbiased"), False),
        "max, layer, unbiased, L=16": (Dither(16, scaling="unbiased"), False),
        "max, layer, contractive, L=2": (Dither(2, scaling="contractive"), False),
        "l2, whole, unbiased, L=2": (Dither(2, "l2", "unbiased"), True),
        "l2, whole, contractive, L=2": (Dither(2, "l2", "contractive"), True),
        "l2, whole, least squares, L=2": (Dither(2, "l2"), True),
    }
    rows = []
    for graph in GRAPHS:
        for alpha in ALPHAS:
            with suppress(Unfinished):
                rows += _rate_rows(bench, graph, alpha)
    print("\n### The consensus rate of MALCOM-PSGD, L = 2 (9 nodes, 600 rounds, seed 0)\n")
    header = ["graph, alpha", "gamma", "consensus model %", "nodes, mean %", "nodes, worst %", "consensus error"]
    print(markdown([*header, "exchanges to target", "bytes to target / CHOCO fixed"], rows))
    for graph in GRAPHS:
        rows = []
        for name, (dither, whole) in quantizers.items():
            cells = []
            for gamma in gammas:
                setting = replace(
                    MALCOM, dither=dither, whole=whole, gamma=gamma, rounds=120, evaluate_every=40, coders=()
                )
                try:
                    trace = bench.run(9, graph, 0.1, 0, setting)
                except Unfinished:
                    cells.append("-")
                    continue
                cells.append("diverged" if trace.diverged else f"{trace.consensus_error[-1]:.2g}")
            rows.append([name, *cells])
        print(f"\n### Consensus error after 120 rounds on the {graph} (9 nodes, alpha 0.1)\n")
        print(markdown(["quantizer", *(f"gamma {gamma}" for gamma in gammas)], rows))


def _rate_rows(bench: Bench, graph: str, alpha: float) -> list[list[object]]:
    target = final(bench.run(9, graph, alpha, 0, D_PSGD)) - 1
    rival = bench.run(9, graph, alpha, 0, choco(bench, 9, graph, alpha))
    base, rows = reached(rival, target), []
    for gamma in (0.6, 0.8, 1.0):
        trace = bench.run(9, graph, alpha, 0, replace(DITHERED, gamma=gamma))
        when = reached(trace, target)
        ratio = when * _size(trace, "coded") / (base * _size(rival, "fixed")) if when and base else None
        rows.append(
            [
                f"{graph}, {'IID' if np.isinf(alpha) else alpha}", gamma, f"{final(trace):.1f}",
                f"{100 * trace.mean_node[-1]:.1f}", f"{100 * trace.worst_node[-1]:.1f}",
                f"{trace.consensus_error[-1]:.3f}", when or "-", f"{ratio:.2f}" if ratio else "-",
            ]
        )  # fmt: skip
    return rows


TABLES = ("main", "main16", "bits", "mu", "steps", "gamma")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="root of the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/malcom"), help="where finished runs are kept")
    parser.add_argument("--seeds", type=int, default=3, help="of the runs with 9 nodes")
    parser.add_argument("--seeds16", type=int, default=3, help="of the runs with 16 nodes")
    parser.add_argument("--finished", action="store_true", help="run nothing, print what is there")
    parser.add_argument("--only", nargs="*", choices=TABLES, default=list(TABLES))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bench = Bench(options.data, options.out, options.finished)
    chosen: Iterable[str] = options.only
    tables = {
        "main": lambda: main_table(bench, 9, options.seeds),
        "main16": lambda: main_table(bench, 16, options.seeds16),
        "bits": lambda: bits_table(bench),
        "mu": lambda: mu_table(bench),
        "steps": lambda: steps_table(bench),
        "gamma": lambda: gamma_table(bench),
    }
    for name in chosen:
        tables[name]()


if __name__ == "__main__":
    main()
