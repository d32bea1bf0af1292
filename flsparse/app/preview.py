"""Bytes of a run, without running it: the data are loaded, the initial model is coded, nothing is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from flsparse import rng
from flsparse.app.cut_adviser import advice_table, advise
from flsparse.clients.core.gossip import GossipLocal
from flsparse.codec import Codec, MaskEncoding, Reference
from flsparse.codec.residuals.residual import Stamp, copy_checksum
from flsparse.configs import sampled_nodes
from flsparse.nets.arrays import Arrays, state_arrays
from flsparse.report.tables import human_bytes, ratio
from flsparse.runtime.making import make_strategy
from flsparse.schedules import batches_of_a_pass
from flsparse.sparsity import prunable_names, sparsity_of
from flsparse.strategies.core.downlink import Broadcast
from flsparse.strategies.core.gossip import Gossip
from flsparse.strategies.core.loop import RoundLoop
from flsparse.strategies.parts.sparse import SparseModel
from flsparse.tasks import build_task

_CHANGE = 0.02  # of a weight's size: how far a local training is taken to move it
_SINCE_THE_SEED = 0.5  # the same, of all trainings


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
        The model as it is, with the control variates of a strategy that has them, in bytes.
    first_downlink_bytes : int
        The broadcast of round 1, to one node: it builds the initial model from the seed.
    downlink_bytes, uplink_bytes : int
        To and from one node, once the target sparsity is reached: the change since the initial model down, as to a new
        node, an update up.
    sparsity : float
        The target, 0 for strategies without one.
    run_downlink_bytes, run_uplink_bytes : int
        Of all nodes in all rounds, estimated: the sparsity rises as the strategy's does, sizes with the density, and
        every node is taken for new.
    """

    nodes: int
    sampled: int
    num_rounds: int
    parameters: int
    dense_bytes: int
    first_downlink_bytes: int
    downlink_bytes: int
    uplink_bytes: int
    sparsity: float
    run_downlink_bytes: int
    run_uplink_bytes: int


def no_preview(cfg: Mapping[str, Any]) -> Table:
    """Return the table of a run that sends no models."""
    table = Table(
        title=f"dry run: {sampled_nodes(cfg)} of {cfg['num_clients']} nodes a round, {cfg['num_rounds']} rounds"
    )
    table.add_column("one message to or from one node")
    table.add_column("bytes", justify="right")
    table.add_row(f"no model, either way: strategy={cfg['strategy']['name']}", human_bytes(0))
    return table


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
    parameters = sum(each.numel() for each in plain.parameters())  # without the buffers of batch norm
    arrays = state_arrays(strategy.prepare(plain))
    codec = cfg["codec"]
    up = Codec(values=codec["values"], rounding=codec["rounding"])
    stream = rng.stream(int(cfg["seed"]), 0, -1, "preview")
    first, middle = strategy.preview(arrays, stream)
    wire = strategy.wire

    def broadcast_of(model: Arrays) -> Broadcast:
        wire.describe(model)
        wire.downlink.set_model(model, wire.specs)
        return wire.downlink.to("", seeded=True)

    def update_of(received: Reference) -> int:
        model = dict(received.arrays)
        sent = strategy.preview_update(_moved(model, _CHANGE, stream), model)
        return len(up.encode(sent, reference=received, rng=stream))

    started = broadcast_of(first)
    dense, sparse = (broadcast_of(_moved(model, _SINCE_THE_SEED, stream)) for model in (first, middle))
    uplink, first_uplink = update_of(sparse.reference), update_of(started.reference)
    sampled, num_rounds = sampled_nodes(cfg), int(cfg["num_rounds"])
    shares = _dense_shares(strategy, num_rounds)
    return Preview(
        nodes=task.num_nodes,
        sampled=sampled,
        num_rounds=num_rounds,
        parameters=parameters,
        dense_bytes=sum(array.nbytes for array in first.values()),
        first_downlink_bytes=len(started.payload),
        downlink_bytes=len(sparse.payload),
        uplink_bytes=uplink,
        sparsity=float(sparsity_of(middle, names)),
        run_downlink_bytes=sampled
        * (len(started.payload) + _summed(shares[:-1], len(dense.payload), len(sparse.payload))),
        run_uplink_bytes=sampled * _summed(shares, first_uplink, uplink),
    )


def _dense_shares(strategy: RoundLoop, num_rounds: int) -> list[float]:
    """Return for each round how far its sparsity is from the target, in [0, 1]; 1 is dense."""
    sparse = next((part for part in strategy.parts if isinstance(part, SparseModel)), None)
    if sparse is None or not sparse.sparsity:
        return [0.0] * num_rounds
    return [1 - sparse.target(each, num_rounds) / sparse.sparsity for each in range(1, num_rounds + 1)]


def _summed(shares: Sequence[float], dense: int, sparse: int) -> int:
    return round(sum(sparse + share * (dense - sparse) for share in shares))


def preview_table(found: Preview) -> Table:
    """Return a preview as a table; estimates are marked."""
    each = f"{found.sampled} of {found.nodes} nodes a round, {found.num_rounds} rounds"
    dense = found.dense_bytes * found.sampled * found.num_rounds
    up, down = (f"{human_bytes(n)} ({ratio(dense / n)})" for n in (found.run_uplink_bytes, found.run_downlink_bytes))
    table = Table(
        title=f"dry run: {found.parameters:,} parameters; {each}",
        caption=f"the run, dense: {human_bytes(dense)} each way\nas configured: about {up} up, at most {down} down",
    )
    table.add_column("one message to or from one node")
    for column in ("bytes", "ratio", "a round"):
        table.add_column(column, justify="right")
    rows = [("dense model, either way", found.dense_bytes)]
    if found.sparsity:
        rows += [
            ("down, round 1 (the model of the seed)", found.first_downlink_bytes),
            ("down, at the target sparsity (to a new node, estimated)", found.downlink_bytes),
            ("up, at the target sparsity (an update, estimated)", found.uplink_bytes),
        ]
    else:
        rows += [
            ("down, to a new node (estimated)", found.downlink_bytes),
            ("up (an update, estimated)", found.uplink_bytes),
        ]
    for label, size in rows:
        table.add_row(label, human_bytes(size), ratio(found.dense_bytes / size), human_bytes(size * found.sampled))
    return table


def graph_preview(cfg: Mapping[str, Any]) -> Table:
    """Return the bytes of a round of decentralized training: residuals of a model that a training moves a little.

    Raises
    ------
    ValueError, FileNotFoundError
        As for :func:`preview`.
    """
    task = build_task(cfg)
    task.train_data(0), task.test_data()
    strategy = make_strategy(cfg, prunable_names(task.model()))
    assert isinstance(strategy, Gossip)
    method = strategy.method(1)
    assert isinstance(method, GossipLocal)
    arrays, stream = state_arrays(task.model()), rng.stream(int(cfg["seed"]), 0, -1, "preview")
    trained = _moved(arrays, _CHANGE, stream)
    floats = [name for name, array in arrays.items() if np.issubdtype(array.dtype, np.floating)]
    x, copy = (np.concatenate([a[name].ravel() for name in floats]).astype(np.float32) for a in (trained, arrays))
    codec = method.residual_codec([arrays[name].size for name in floats])
    payload, _ = codec.encode(x, copy, Stamp(0, 1, copy_checksum(copy)), stream)
    graph, dense = strategy.topology, sum(array.nbytes for array in arrays.values())
    links = int(graph.adjacency.sum())
    rounds, whole = int(cfg["num_rounds"]), len(payload) * links
    table = Table(
        title=f"dry run: {graph.name} of {graph.nodes} nodes, {links // 2} links, {rounds} rounds",
        caption=f"the run, dense: {human_bytes(dense * links * rounds)} over the links\nas configured: about "
        f"{human_bytes(whole * rounds)} ({ratio(dense * links / whole)}) over the links, without evaluations",
    )
    table.add_column("one message")
    for column in ("bytes", "ratio", "times a round", "a round"):
        table.add_column(column, justify="right")
    for label, size, times in (
        ("dense model over every link", dense, links),
        ("residual to the relay (estimated)", len(payload), graph.nodes),
        ("residual to a neighbor", len(payload), links),
        ("node's model, in an evaluation", dense, graph.nodes),
    ):
        table.add_row(label, human_bytes(size), ratio(dense / size), str(times), human_bytes(size * times))
    return table


def cut_preview(cfg: Mapping[str, Any]) -> Table:
    """Return the cost of each cut of the model on a device: an untrained model, a batch of the first node's data.

    Raises
    ------
    ValueError, FileNotFoundError
        As for :func:`preview`.
    """
    task = build_task(cfg)
    make_strategy(cfg, []).prepare(task.model())  # refuses a cut that does not exist
    data, wanted = task.train_data(0), int(cfg["client"]["batch_size"])
    chosen = data.index[:wanted]
    settings = cfg["strategy"]
    coding = MaskEncoding(float(settings["sparsity"]), int(settings["bits"]), str(settings["mask_rounding"]))
    inputs = data.prepare(data.all_inputs[chosen].to(task.device))
    rows = advise(task.model(), inputs, coding)
    table = advice_table(rows, len(chosen))
    if here := next((each for each in rows if each.cut == str(settings["cut"])), None):
        most = max(len(task.train_data(node)) for node in range(task.num_nodes))
        batches = settings["steps_per_round"] * settings["batches_per_message"] or batches_of_a_pass(most, wanted)
        times = batches * sampled_nodes(cfg) * int(cfg["num_rounds"])
        coded, dense = human_bytes(times * here.coded_bytes), human_bytes(times * here.dense_bytes)
        table.caption = f"{table.caption}\nthe run, cut at {here.cut}: about {coded} of activations up, {dense} dense"
    return table


def _moved(arrays: Arrays, change: float, stream: np.random.Generator) -> Arrays:
    """Move every weight that is not zero by a part of its size, as plain SGD does: the supports stay."""
    return {
        name: (array * (1 + change * stream.standard_normal(array.shape))).astype(array.dtype)
        if np.issubdtype(array.dtype, np.floating)
        else array
        for name, array in arrays.items()
    }
