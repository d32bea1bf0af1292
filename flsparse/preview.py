"""What a run would send, without running it: the data are loaded, the initial model is coded, nothing is trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from flsparse import rng
from flsparse.clients.base import Arrays, state_arrays
from flsparse.codec import Codec, MaskEncoding, Reference, decode
from flsparse.cut_adviser import advice_table, advise
from flsparse.report.tables import human_bytes, ratio
from flsparse.runtime.federation import make_strategy
from flsparse.sparsity import prunable_names, prune_global
from flsparse.tasks import build_task

_CHANGE = 0.02  # of a weight's size: how far a local training is taken to move it


@dataclass(frozen=True)
class Preview:
    """A run before it runs.

    Attributes
    ----------
    nodes, sampled, num_rounds : int
        Nodes there are, nodes asked each round, rounds.
    parameters : int
        Parameters of the model.
    dense_bytes : int
        The model as it is, in bytes.
    first_downlink_bytes : int
        The broadcast of round 1, to one node.
    downlink_bytes, uplink_bytes : int
        To and from one node, once the target sparsity is reached: the whole sparse model down, an update up.
    """

    nodes: int
    sampled: int
    num_rounds: int
    parameters: int
    dense_bytes: int
    first_downlink_bytes: int
    downlink_bytes: int
    uplink_bytes: int


def preview(cfg: Mapping[str, Any]) -> Preview:
    """Load the data, build strategy and model, and code the initial model as the run would.

    Parameters
    ----------
    cfg : Mapping[str, Any]
        The composed configuration.

    Raises
    ------
    ValueError, FileNotFoundError
        The configuration is impossible, or the data set's files are missing.
    """
    task = build_task(cfg)
    task.train_data(0), task.test_data()
    plain = task.model()
    names = prunable_names(plain)
    strategy = make_strategy(cfg, names)
    arrays = state_arrays(strategy.prepare(plain))
    pruned = prune_global(arrays, getattr(strategy, "sparsity", 0.0), names)

    codec = cfg["codec"]
    down, up = Codec(values=codec["downlink_values"]), Codec(values=codec["values"], rounding=codec["rounding"])
    stream = rng.stream(int(cfg["seed"]), 0, -1, "preview")
    broadcast = down.encode(pruned, rng=stream)
    received = decode(broadcast, like=pruned)
    update = up.encode(_trained(received, stream), reference=Reference(received), rng=stream)
    return Preview(
        nodes=task.num_nodes,
        sampled=strategy.min_available_nodes,
        num_rounds=int(cfg["num_rounds"]),
        parameters=sum(array.size for array in arrays.values()),
        dense_bytes=sum(array.nbytes for array in arrays.values()),
        first_downlink_bytes=len(down.encode(arrays, rng=stream)),
        downlink_bytes=len(broadcast),
        uplink_bytes=len(update),
    )


def preview_table(found: Preview) -> Table:
    """Return a preview as a table; what is estimated says so."""
    each = f"{found.sampled} of {found.nodes} nodes a round, {found.num_rounds} rounds"
    table = Table(title=f"dry run: {found.parameters:,} parameters; {each}")
    table.add_column("one message to or from one node")
    for column in ("bytes", "ratio", "a round"):
        table.add_column(column, justify="right")
    for label, size in (
        ("dense model, either way", found.dense_bytes),
        ("down, round 1 (whole model, not yet sparse)", found.first_downlink_bytes),
        ("down, at the target sparsity (whole model, to a new node)", found.downlink_bytes),
        ("up, at the target sparsity (an update, estimated)", found.uplink_bytes),
    ):
        table.add_row(label, human_bytes(size), ratio(found.dense_bytes / size), human_bytes(size * found.sampled))
    return table


def cut_preview(cfg: Mapping[str, Any]) -> Table:
    """Return what each cut of the model would cost a device: an untrained model, a batch of the first node's data.

    Raises
    ------
    ValueError, FileNotFoundError
        As for :func:`preview`.
    """
    task = build_task(cfg)
    make_strategy(cfg, [])
    data, wanted = task.train_data(0), int(cfg["client"]["batch_size"])
    chosen = data.index[:wanted]
    settings = cfg["strategy"]
    coding = MaskEncoding(float(settings["sparsity"]), int(settings["bits"]), str(settings["mask_rounding"]))
    inputs = data.prepare(data.all_inputs[chosen].to(task.device))
    return advice_table(advise(task.model(), inputs, coding), len(chosen))


def _trained(arrays: Arrays, stream: np.random.Generator) -> Arrays:
    """Move every weight that is not zero a little, as plain SGD does: the supports stay."""
    return {
        name: (array * (1 + _CHANGE * stream.standard_normal(array.shape))).astype(array.dtype)
        if np.issubdtype(array.dtype, np.floating)
        else array
        for name, array in arrays.items()
    }
