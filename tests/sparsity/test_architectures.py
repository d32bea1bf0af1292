"""Public architectures through sparsify, the wire and export_dense: the tables of docs/compatibility.md.

After a change of what is treated, ``python tests/sparsity/test_architectures.py`` writes the tables again.
"""

import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from architectures import Architecture, hugging_face_architectures, torchvision_architectures

from flsparse.clients import SparsyFedMod
from flsparse.runtime import InProcessGrid
from flsparse.sparsity import (
    begin_fit,
    check_outputs,
    export_dense,
    prunable_names,
    prune_global,
    sparsify,
    sparsity_of,
)
from flsparse.sparsity.plan import plan_of
from flsparse.strategies import SparsyFed

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
HEAD = "| architecture | treated | left dense | outputs | round | export |\n|---|---|---|---|---|---|\n"
LIBRARIES = {"torchvision": torchvision_architectures, "transformers": hugging_face_architectures}
SPARSITY = 0.5


def tensors(output: Any) -> Iterator[Tensor]:
    """Yield the floating tensors of a model's output."""
    if isinstance(output, Tensor) and output.is_floating_point():
        yield output
    elif isinstance(output, Mapping | tuple | list):
        for each in output.values() if isinstance(output, Mapping) else output:
            yield from tensors(each)


def evaluated(model: nn.Module, batch: Any) -> list[Tensor]:
    with torch.no_grad():
        return run(model.eval(), batch)


def run(model: nn.Module, batch: Any) -> list[Tensor]:
    return list(tensors(model(**batch) if isinstance(batch, dict) else model(batch)))


def bound(before: list[Tensor], after: list[Tensor]) -> str:
    """Return a bound of the largest difference, as a fraction of the largest output."""
    scale = max(float(each.abs().max()) for each in before) or 1.0
    error = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True)) / scale
    assert np.isfinite(error)
    return next((f"≤ {limit}" for limit in ("1e-5", "1e-4", "1e-3") if error <= float(limit)), "differ")


def put(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays into a sparsified model; MNASNet's load_state_dict wants a version that records do not carry."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(torch.from_numpy(arrays[name]))
    begin_fit(model)


def app_of(architecture: Architecture, updates: list[dict[str, np.ndarray]]) -> ClientApp:
    app = ClientApp(mods=[SparsyFedMod()])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        torch.manual_seed(1)
        model = sparsify(architecture.make()).train()
        received = {name: array.numpy() for name, array in message.content.array_records["arrays"].items()}
        put(model, received)
        torch.manual_seed(2 + int(context.node_config["partition-id"]))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        loss = torch.stack([each.square().mean() for each in run(model, architecture.batch())]).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        state = dict(model.state_dict())
        pruned = prune_global({name: value.numpy() for name, value in state.items()}, SPARSITY, prunable_names(model))
        updates.append({name: array - received[name] for name, array in pruned.items()})
        metrics = MetricRecord({"loss": float(loss.detach()), "num-examples": 1})
        return Message(RecordDict({"arrays": ArrayRecord(state), "metrics": metrics}), reply_to=message)

    return app


def federated_round(architecture: Architecture, model: nn.Module) -> str:
    """Train two nodes for a step, and average what they send over the wire; return what came of it."""
    random.seed(0)
    updates: list[dict[str, np.ndarray]] = []
    names = prunable_names(model)
    strategy = SparsyFed(sparsity=SPARSITY, ramp=False, scope="global", prunable=names, values="int8")
    result = strategy.start(
        grid=InProcessGrid(app_of(architecture, updates), num_nodes=2),
        initial_arrays=ArrayRecord(dict(model.state_dict())),
        num_rounds=1,
        train_config=ConfigRecord({"lr": 1e-3}),
    )
    arrays = {name: array.numpy() for name, array in result.arrays.items()}
    assert arrays.keys() == model.state_dict().keys()
    assert len(updates) == 2
    assert sparsity_of(arrays, names) >= SPARSITY - 1e-3
    for name, array in arrays.items():
        mean = model.state_dict()[name].numpy() + np.mean([each[name] for each in updates], 0)
        kept = array != 0 if name in names else np.ones(array.shape, bool)
        assert np.abs(array - mean)[kept].max(initial=0) <= 0.01 * np.abs(mean).max(initial=0) + 1e-6, name
    put(model, arrays)
    return "averaged"


def row(name: str, architecture: Architecture) -> str:
    """Return the line of an architecture in the table."""
    torch.manual_seed(0)
    model, batch = architecture.make(), architecture.batch()
    plan = plan_of(model)
    dense = Counter(label.partition(" (")[2].replace(")", "", 1) for label in plan.dense)
    before = evaluated(model, batch)
    sparsify(model, example=batch)
    changed = bound(before, evaluated(model, batch))
    averaged = federated_round(architecture, model)
    plain = export_dense(model)
    check_outputs(plain, model, batch)  # of every module
    exported = bound(evaluated(model, batch), evaluated(plain, batch))
    alone = f", {len(plan.alone)} without activation pruning" if plan.alone else ""
    left = "; ".join(f"{count} {label}" for label, count in sorted(dense.items())) or "none"
    return f"| {name} | {len(plan.weights)}{alone} | {left} | {changed} | {averaged} | {exported} |"


def rows_of(library: str, page: str) -> list[str]:
    """Return the rows of a library's table as the page has them."""
    found = re.search(rf"<!-- {library} -->\n(.*?)<!-- end -->", page, re.DOTALL)
    assert found
    return found[1].splitlines()[2:]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the libraries' own, of what they deprecate
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_page_tells_what_comes_out(library: str) -> None:
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    found = [row(name, each) for name, each in LIBRARIES[library]().items()]
    assert found == rows_of(library, PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    for library, architectures in LIBRARIES.items():
        lines = []
        for name, each in architectures().items():
            lines.append(row(name, each))
            print(lines[-1], flush=True)
        table = HEAD + "".join(f"{line}\n" for line in lines)
        page = re.sub(rf"(<!-- {library} -->\n).*?(<!-- end -->)", lambda m: m[1] + table + m[2], page, flags=re.DOTALL)  # noqa: B023
    PAGE.write_text(page, encoding="utf-8")
