"""Every strategy and every mod of the installed Flower over the packed wire, beside the same without it.

``python tests/strategies/test_compatibility.py`` rewrites the tables of docs/compatibility.md.
"""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flwr.clientapp.mod
import flwr.serverapp.strategy
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Strategy

from flsparse.clients import CompressMod
from flsparse.runtime import InProcessGrid
from flsparse.strategies import Compressed, RoundFailed

DOCS = Path(__file__).parents[2] / "docs" / "compatibility.md"
NODES, ROUNDS = 7, 3
DP = {"noise_multiplier": 0.01, "num_sampled_clients": NODES}
# arguments that a strategy needs, beside the inner strategy
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "Bulyan": lambda: _of("Bulyan", num_malicious_nodes=1),
    "DifferentialPrivacyClientSideAdaptiveClipping": lambda: _of(
        "DifferentialPrivacyClientSideAdaptiveClipping", FedAvg(), **DP
    ),
    "DifferentialPrivacyClientSideFixedClipping": lambda: _of(
        "DifferentialPrivacyClientSideFixedClipping", FedAvg(), clipping_norm=0.5, **DP
    ),
    "DifferentialPrivacyServerSideAdaptiveClipping": lambda: _of(
        "DifferentialPrivacyServerSideAdaptiveClipping", FedAvg(), **DP
    ),
    "DifferentialPrivacyServerSideFixedClipping": lambda: _of(
        "DifferentialPrivacyServerSideFixedClipping", FedAvg(), clipping_norm=0.5, **DP
    ),
    "FedProx": lambda: _of("FedProx", proximal_mu=0.1),
    "Krum": lambda: _of("Krum", num_malicious_nodes=1),
    "MultiKrum": lambda: _of("MultiKrum", num_malicious_nodes=1, num_nodes_to_select=3),
    "QFedAvg": lambda: _of("QFedAvg", client_learning_rate=0.1),
}
MODS = {
    "DifferentialPrivacyClientSideAdaptiveClipping": "adaptiveclipping_mod",
    "DifferentialPrivacyClientSideFixedClipping": "fixedclipping_mod",
}
TREES = {"FedXgbBagging", "FedXgbCyclic"}
LOSSLESS = {"values": "fp32", "downlink_values": "fp32"}


def _of(name: str, *arguments: Any, **options: Any) -> Strategy:
    made: Strategy = getattr(flwr.serverapp.strategy, name)(*arguments, **options)
    return made


def _mod(name: str) -> Any:
    if name == "LocalDpMod":
        return flwr.clientapp.mod.LocalDpMod(clipping_norm=1.0, sensitivity=0.01, epsilon=1.0, delta=1e-5)
    return getattr(flwr.clientapp.mod, name)


def initial() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {"w": generator.normal(size=(40, 30)).astype(np.float32), "b": np.zeros(30, np.float32)}


def regression_app(mods: list[Any], behind: Sequence[Any]) -> ClientApp:
    """Return an app that fits a linear map of its node's own, two gradient steps a round."""
    app = ClientApp(mods=mods)

    def run(message: Message, context: Context, steps: int) -> tuple[dict[str, np.ndarray], MetricRecord]:
        node = int(context.node_config["partition-id"])
        generator = np.random.default_rng(node)
        x = generator.normal(size=(16, 40)).astype(np.float32)
        y = x @ np.random.default_rng(99).normal(size=(40, 30)).astype(np.float32) + 0.1 * node
        w, b = (message.content.array_records["arrays"][name].numpy() for name in ("w", "b"))
        loss = float(((x @ w + b - y) ** 2).mean())
        for _ in range(steps):
            error = (x @ w + b - y) / 16
            w, b = w - 0.1 * (x.T @ error), b - 0.1 * error.sum(0)
        return {"w": w, "b": b}, MetricRecord({"train_loss": loss, "num-examples": 10 + node})

    @app.train(mods=list(behind))
    def train(message: Message, context: Context) -> Message:
        arrays, metrics = run(message, context, 2)
        record = ArrayRecord({name: Array(np.asarray(array, np.float32)) for name, array in arrays.items()})
        return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": run(message, context, 0)[1]}), reply_to=message)

    return app


def tree_app(mods: list[Any], behind: Sequence[Any]) -> ClientApp:
    """Return an app that answers with trees: bytes in the JSON of XGBoost, as many as it likes."""
    app = ClientApp(mods=mods)

    @app.train(mods=list(behind))
    def train(message: Message, context: Context) -> Message:
        node = int(context.node_config["partition-id"])
        trees = [{"id": i, "split_conditions": [0.1 * node] * (3 + node)} for i in range(1 + node % 2)]
        count = {"num_trees": str(len(trees)), "num_parallel_tree": str(len(trees))}
        model = {"gbtree_model_param": count, "iteration_indptr": [0, len(trees)], "trees": trees, "tree_info": []}
        data = json.dumps({"learner": {"gradient_booster": {"model": model}}}).encode()
        content = RecordDict({"metrics": MetricRecord({"num-examples": 10 + node})})
        content["arrays"] = ArrayRecord([np.frombuffer(data, np.uint8)])
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        size = message.content.array_records["arrays"]["0"].numpy().size
        return Message(RecordDict({"metrics": MetricRecord({"size": size, "num-examples": 1})}), reply_to=message)

    return app


def final(
    name: str, wire: dict[str, str] | None, before: Sequence[Any] = (), behind: Sequence[Any] = ()
) -> list[np.ndarray]:
    """Return the arrays after three rounds; without a wire, over plain Flower."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - what Flower's strategies draw from
    strategy = STRATEGIES.get(name, lambda: _of(name))()
    make = tree_app if name in TREES else regression_app
    app = make([*before, *([] if wire is None else [CompressMod()])], behind)
    if name in TREES:
        arrays = ArrayRecord([np.frombuffer(b"", np.uint8)])
    else:
        arrays = ArrayRecord({key: Array(array) for key, array in initial().items()})
    grid = InProcessGrid(app, NODES)
    over = strategy if wire is None else Compressed(strategy, **wire)
    result = over.start(grid, arrays, num_rounds=ROUNDS)
    assert len(result.evaluate_metrics_clientapp) == ROUNDS
    return [array.numpy() for array in result.arrays.values()]


def distance(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    return float(np.sqrt(sum(((a.astype(float) - b) ** 2).sum() for a, b in zip(one, other, strict=True))))


def outcome(name: str, before: Sequence[str] = (), behind: Sequence[str] = ()) -> list[str]:
    """Return whether the lossless codec ends where plain Flower does, and how far off the default one ends."""
    chain = {"before": [_mod(each) for each in before], "behind": [_mod(each) for each in behind]}
    plain = final(name, None, **chain)
    lossless, default = final(name, LOSSLESS, **chain), final(name, {}, **chain)
    if name in TREES:
        same = all(np.array_equal(a, b) for a, b in zip(plain, default, strict=True))
        return ["yes" if same else "no", "0" if same else "other bytes"]
    exact = distance(plain, lossless) <= 1e-5 * distance(plain, list(initial().values()))
    off = distance(plain, default) / distance(plain, list(initial().values()))
    return ["yes" if exact else "no", f"< {next(each for each in (5, 10, 20, 50, 100) if 100 * off < each)} %"]


def strategies() -> list[str]:
    return [name for name in flwr.serverapp.strategy.__all__ if name not in ("Strategy", "Result")]


def table_of_strategies() -> list[str]:
    rows = ["| strategy | lossless: equal to plain | default codec: off by |", "|---|---|---|"]
    for name in strategies():
        behind = [MODS[name]] if name in MODS else []
        shown = f"{name}{' with ' + behind[0] if behind else ''}"
        rows.append(f"| {shown} | {' | '.join(outcome(name, behind=behind))} |")
    return rows


def table_of_mods() -> list[str]:
    rows = ["| mod | behind ours: equal to plain | default codec: off by | before ours |", "|---|---|---|---|"]
    needs = {mod: strategy for strategy, mod in MODS.items()}
    for mod in flwr.clientapp.mod.__all__:
        name = needs.get(mod, "FedAvg")
        rows.append(f"| {mod} | {' | '.join(outcome(name, behind=[mod]))} | {before_ours(name, mod)} |")
    return rows


def before_ours(name: str, mod: str) -> str:
    """Return what happens where a mod sees the packed message."""
    try:
        final(name, {}, before=[_mod(mod)])
    except RoundFailed as error:
        known = mod in str(error) or "flsparse.v1" in str(error)
        return "refused: it reads plain arrays" if known else f"fails: {error}"
    return "works, on the packed message"


def parts(name: str) -> tuple[str, str, str]:
    """Return the page before a table, the table, and the page behind it."""
    before, begin, rest = DOCS.read_text().partition(f"<!-- {name}: begin -->\n")
    table, end, behind = rest.partition(f"\n<!-- {name}: end -->")
    return before + begin, table, end + behind


def rewrite() -> None:
    for name, rows in (("strategies", table_of_strategies()), ("mods", table_of_mods())):
        before, _, behind = parts(name)
        DOCS.write_text(before + "\n".join(rows) + behind)


@pytest.mark.slow
def test_the_table_of_strategies_is_what_happens():
    assert parts("strategies")[1] == "\n".join(table_of_strategies())


@pytest.mark.slow
def test_the_table_of_mods_is_what_happens():
    assert parts("mods")[1] == "\n".join(table_of_mods())


if __name__ == "__main__":
    rewrite()
