"""The server's side of one run, whatever it runs on: task, strategy and model from a configuration, rounds, results.

Everything around the rounds (display, trackers, the run folder) is an observer. The configuration is the
composed one as plain values; nothing here knows where it came from.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from logging import ERROR, WARNING
from pathlib import Path
from typing import Any, Protocol

import torch
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid

from flsparse._flwr import log
from flsparse.clients.core.state import state_dir
from flsparse.clients.parts.questions import NUM_EXAMPLES, SUMS
from flsparse.configs import AUTO, keys_of, lookup
from flsparse.metering.clock import VirtualClock
from flsparse.nets.arrays import Arrays, load_arrays, state_arrays
from flsparse.runs.baseline import Baseline
from flsparse.runs.folder import RunFolder, read_checkpoint, read_rows, restore_node_files
from flsparse.runs.health import Health
from flsparse.runs.scores import Scores
from flsparse.runs.target import Target
from flsparse.runtime.inprocess import InProcessGrid
from flsparse.runtime.learning import evaluates_on_nodes, guess_of, told
from flsparse.runtime.making import prepare
from flsparse.runtime.rate_search import Found, search, train_config, with_rate
from flsparse.runtime.survey import survey, wait_for_nodes
from flsparse.sparsity import export_dense, prunable_names, sparsity_of
from flsparse.strategies import RoundLoop, RoundReport
from flsparse.tasks import Task, build_task
from flsparse.tasks.own import is_own, server_task
from flsparse.wire.messages import to_numpy, to_record

_CHECKPOINT_SHARE = 0.05  # of the run's time, at most, goes into checkpoints
_MUST_MATCH = (
    "seed",
    "num_clients",
    "dataset",
    "model",
    "objective",
    "metric",
    "partition",
    "strategy",
    "codec",
    "parts",
    "pace",
    "link",
)
# Keys of every row; null where a method does not measure one.
ROW_KEYS = (
    *("accuracy", "loss", "prediction_share", "warnings"),
    *("uplink_bytes", "downlink_bytes", "uplink_wire_bytes", "downlink_wire_bytes"),
    *("uplink_ratio", "downlink_ratio", "to_target", "sparsity", "broadcast_sparsity", "mask_iou", "regrowth"),
    *("step_seconds", "peak_memory_bytes", "encode_ms", "flops_dense", "flops_sparse"),
    *("train_loss", "train_accuracy", "replies", "failures", "rejected_payloads", "round_seconds"),
    *("modelled_seconds", "modelled_cost"),
)


class Observer(Protocol):
    """Sees a run from outside. All values are plain.

    One with a method ``on_note(text)`` is also told in a line what goes on before round 1; one with ``on_nodes(rows)``
    takes, before each row of a round, those of its nodes (:class:`flsparse.strategies.core.node_table.NodeTable`).
    """

    def on_start(self, info: dict[str, Any]) -> None:
        """Take ``first_round``, ``num_rounds``, ``num_nodes``, ``output_dir``, ``metric`` and ``config``."""

    def on_round(self, row: dict[str, Any]) -> None:
        """Take a round's metrics: ``server_round`` and at least the keys of ``ROW_KEYS``."""

    def on_end(self, summary: dict[str, Any]) -> None:
        """Take the run in numbers; ``status`` is completed, interrupted or failed."""


def run_federation(grid: Grid, cfg: Mapping[str, Any], observers: Sequence[Observer] = ()) -> dict[str, Any]:
    """Run all rounds over a grid.

    Parameters
    ----------
    grid : Grid
        Its nodes run :data:`flsparse.runtime.apps.client`, or another app of :func:`flsparse.clients.device_app`.
    cfg : mapping
        The composed configuration. With ``output_dir`` the run leaves its folder there; with ``resume``, a run folder,
        it goes on in that one.
    observers : sequence of Observer
        Called in this order, after the run folder.

    Returns
    -------
    dict
        The summary, as in ``summary.json``. Ctrl-C ends the run with its rounds so far, ``status`` "interrupted".

    Raises
    ------
    flsparse.strategies.RoundFailed
        A round had too few valid replies. The folder is complete and can be resumed from.
    ValueError
        The configuration is impossible, or differs from the resumed run's.
    """
    return _Run(grid, cfg, observers).run()


def refuse_changes(run_folder: Path | str, saved: Mapping[str, Any], cfg: Mapping[str, Any]) -> None:
    """Refuse to go on with a run under another configuration than its checkpoint was ``saved`` with.

    Raises
    ------
    ValueError
        One of the values that must stay has changed.
    """
    kept = [key for key in _MUST_MATCH if key in saved]  # of an earlier version a few are not
    was, now = ({key: each.get(key) for key in kept} for each in (saved, cfg))
    for key in dict.fromkeys(keys_of(was) + keys_of(now)):
        before, after = lookup(was, key), lookup(now, key)
        if before != after and not (isinstance(before, Mapping) and isinstance(after, Mapping)):
            raise ValueError(f"cannot resume {run_folder}: its {key} was {before}")


class _Run:
    """One run, from configuration to summary."""

    def __init__(self, grid: Grid, cfg: Mapping[str, Any], observers: Sequence[Observer]) -> None:
        torch.set_num_threads(int(cfg.get("threads") or 1))
        self.grid = grid
        self.cfg: dict[str, Any] = json.loads(json.dumps(dict(cfg)))  # as it is saved: every key a string
        found = survey(grid, self.cfg) if is_own(cfg) else None
        self.task: Task = build_task(cfg) if found is None else server_task(self.cfg, found.agreement)
        self.num_rounds = int(cfg["num_rounds"])
        self.evaluation_data = self._evaluation_data()
        self.strategy, self.model = prepare(cfg, self.task, self.evaluation_data)
        self.prunable = prunable_names(self.task.model())
        self.arrays: Arrays = state_arrays(self.model)
        self.strategy.callbacks.append(self._after_round)
        self.on_nodes = not self.strategy.central or evaluates_on_nodes(self.task, self.evaluation_data)
        if found is not None:
            for way, size in (("downlink", found.downlink_wire_bytes), ("uplink", found.uplink_wire_bytes)):
                self.strategy.ledger.count(way, 1, payload_bytes=0, wire_bytes=size, dense_bytes=0)  # type: ignore[arg-type]
        self.last_round, self.seconds_before = 0, 0.0
        self.searched: Found | None = None
        self.counts: dict[str, int] = {}
        self.scores = Scores(self.task.kpi)
        self.health = Health(guess_of(self.task, self.evaluation_data), cfg["strategy"])
        target = (cfg.get("evaluate") or {}).get("target")
        self.target = None if target is None else Target(float(target), self.task.kpi)
        self.baseline = Baseline(self.dense_bytes)
        self.started = self.saved = time.monotonic()
        self.save_seconds, self.saved_round = 0.0, 0
        self.folder: RunFolder | None = None
        resume = cfg.get("resume")
        if resume:
            self._resume(resume)
        if resume or cfg.get("output_dir"):
            self.folder = RunFolder(resume or cfg["output_dir"], self.cfg, resume=bool(resume))
        self.observers: list[Observer] = [*([self.folder] if self.folder else []), *observers]

    def run(self) -> dict[str, Any]:
        info = {
            "first_round": self.last_round + 1,
            "num_rounds": self.num_rounds,
            "num_nodes": int(self.cfg["num_clients"]),
            "output_dir": str(self.folder.path) if self.folder else None,
            "metric": self.task.kpi.name,
            "config": self.cfg,
        }
        status = "completed"
        error: Exception | None = None
        leave: BaseException | None = None
        try:
            for observer in self.observers:
                observer.on_start(info)
            wait_for_nodes(self.grid, int(self.cfg["num_clients"]), self.strategy.min_available_nodes)
            if self.cfg["client"]["lr"] == AUTO:
                self._search_rate()
            self.strategy.start(
                grid=self.grid,
                initial_arrays=to_record(self.arrays),
                num_rounds=self.num_rounds,
                train_config=train_config(self.cfg, self.task.frozen_digest),
                evaluate_fn=self._evaluate,
            )
        except (KeyboardInterrupt, SystemExit) as stop:  # Flower ends a ServerApp that is to stop by SystemExit
            status, leave = "interrupted", stop if isinstance(stop, SystemExit) else None
        except Exception as problem:
            status, error, leave = "failed", problem, problem
        summary = self._summary(status, error)
        ends: list[Callable[[], None]] = [partial(observer.on_end, summary) for observer in self.observers]
        for end in (*ends, self._save_models):
            try:
                end()
            except Exception as problem:
                if leave is None:
                    leave = problem
                else:  # the user has to see the first error
                    log(ERROR, "After the run had failed: %s", problem)
        if leave is not None:
            raise leave
        return summary

    def _search_rate(self) -> None:
        """Find the learning rate that the run goes on with; its bytes are round 1's."""
        validation = None if self.on_nodes else self.task.validation_data()

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            if validation is None or server_round == 0:
                return None
            load_arrays(self.model, to_numpy(arrays))
            return MetricRecord({"loss": self.task.evaluate(self.model, validation)["loss"]})

        def tell(text: str) -> None:
            for observer in self.observers:
                if note := getattr(observer, "on_note", None):
                    note(text)

        def make(cfg: Mapping[str, Any]) -> RoundLoop:
            return prepare(cfg, self.task, self.evaluation_data)[0]

        start, frozen = to_record(self.arrays), self.task.frozen_digest
        found = self.searched = search(self.grid, self.cfg, make, start, evaluate, tell, frozen)
        self.cfg = with_rate(self.cfg, found.rate)
        sent = sum(traffic.wire_bytes for traffic in found.traffic.values())
        tell(f"client.lr=auto: {found.rate:g} it is, found in {found.seconds:.0f} s with {sent:,} bytes, framed")
        if self.folder:
            self.folder.write_config(self.cfg)
        for way, sums in found.traffic.items():
            self.strategy.ledger.count(
                way, 1, payload_bytes=sums.payload_bytes, wire_bytes=sums.wire_bytes, dense_bytes=0
            )

    def _save_models(self) -> None:
        """Save the weights into the run folder, the model's last: when it is there, all is."""
        if self.folder:
            for partition, arrays in self.strategy.node_models.items():
                self.folder.save_model(arrays | self.task.frozen_arrays, f"node-models/{partition}.safetensors")
            self.folder.save_model(self.weights() | self.task.frozen_arrays)

    @property
    def dense_bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def weights(self) -> Arrays:
        """Return the plain weights ``w`` of the current model."""
        model = self.strategy.prepare(self.task.model())
        load_arrays(model, self.arrays)
        return state_arrays(export_dense(model))

    def _evaluation_data(self) -> Any:
        where = (self.cfg.get("evaluate") or {}).get("on", "test")
        if where not in ("test", "validation"):
            raise ValueError(f"evaluate.on={where!r} is neither test nor validation")
        return self.task.test_data() if where == "test" else self.task.validation_data()

    def _evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        every = int((self.cfg.get("evaluate") or {}).get("every", 1))
        if self.on_nodes or server_round == 0 or (server_round % every and server_round != self.num_rounds):
            return None
        load_arrays(self.model, to_numpy(arrays))
        found = self.task.evaluate(self.model, self.evaluation_data)
        return MetricRecord({key: each for key, each in found.items() if not key.startswith((NUM_EXAMPLES, SUMS))})

    def _after_round(self, report: RoundReport) -> None:
        self.arrays, self.last_round = to_numpy(report.arrays), report.server_round
        row: dict[str, Any] = {"server_round": report.server_round, **dict.fromkeys(ROW_KEYS)}
        row |= {key: value for key, value in told(report.metrics, self.task).items() if key != "server_round"}
        of_the_run = ("evaluate_",) if self.on_nodes else ("evaluate_mean_node_", "evaluate_worst_node_")
        row |= {key.removeprefix("evaluate_"): row[key] for key in list(row) if key.startswith(of_the_run)}
        row["sparsity"] = sparsity_of(self.arrays, self.prunable)
        row["broadcast_sparsity"] = row["broadcast_sparsity"] or row["sparsity"]
        counts = dict(self.strategy.wire.counts)  # the strategy counts over the run
        row |= {key: total - self.counts.get(key, 0) for key, total in counts.items()}
        self.counts = counts
        row |= self.baseline.take(row)
        row |= self.clock.lap() if self.clock else {}
        row["wall_seconds"] = self.wall_seconds
        row["to_target"] = self.target.take(row) if self.target else None
        self.scores.take(row)
        is_last = report.server_round == self.num_rounds
        row["warnings"] = self.health.examine(row, self.arrays, self.prunable, is_last=is_last)
        for observer in self.observers:
            if take := getattr(observer, "on_nodes", None):
                take(report.nodes)
            observer.on_round(row)
        self._save(is_last)

    @property
    def clock(self) -> VirtualClock | None:
        return self.strategy.wire.clock

    @property
    def wall_seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def _save(self, is_last: bool) -> None:
        """Save a checkpoint, unless that would take too large a share of the time."""
        now = time.monotonic()
        if self.folder is None or not (is_last or (now - self.saved) * _CHECKPOINT_SHARE >= self.save_seconds):
            return
        in_process = isinstance(self.grid, InProcessGrid)
        self.folder.save_checkpoint(
            self.last_round,
            {
                "arrays": self.arrays,
                "strategy": self.strategy.state_dict(),
                "nodes": self.grid.state_dict() if isinstance(self.grid, InProcessGrid) else None,
                **self.scores.state_dict(),
                "health": self.health.state_dict(),
                "wall_seconds": self.wall_seconds,
                "config": {key: self.cfg.get(key) for key in _MUST_MATCH},
                "agreed": None if self.task.agreement is None else json.dumps(self.task.agreement.plain()),
            },
            self._node_files if in_process else None,
        )
        self.saved, self.saved_round = time.monotonic(), self.last_round
        self.save_seconds = self.saved - now

    def _resume(self, run_folder: Path | str) -> None:
        state = read_checkpoint(run_folder)
        refuse_changes(run_folder, state["config"], self.cfg)
        self.last_round = self.saved_round = state["round"]
        self.arrays = state["arrays"]
        self.scores.load_state_dict(state)
        if "health" in state:  # older checkpoints lack it
            self.health.load_state_dict(state["health"])
        for row in read_rows(Path(run_folder) / "metrics.jsonl")[: self.last_round]:
            self.baseline.take(row)
            if self.clock:
                self.clock.go_on(row)
            if self.target:
                self.target.take(row)
        self.seconds_before = state["wall_seconds"]
        self.strategy.load_state_dict(state["strategy"])
        self.counts = dict(self.strategy.wire.counts)
        if isinstance(self.grid, InProcessGrid) and state["nodes"] is not None:
            self.grid.load_state_dict(state["nodes"])
            restore_node_files(run_folder, state["round"], self._node_files)
        else:
            self.strategy.nodes_are_new()
            if self.task.local:
                log(
                    WARNING,
                    "Nodes kept their own arrays for the run before: those start again from the seed's values",
                )

    @property
    def _node_files(self) -> Path:
        """Folder of this run's node state that is too large for a message."""
        return state_dir() / f"run-{self.grid.run.run_id}"

    def _summary(self, status: str, error: Exception | None) -> dict[str, Any]:
        up, down = (self.strategy.ledger.total(direction) for direction in ("uplink", "downlink"))
        beside = self.strategy.ledger.total("evaluation").payload_bytes
        return {
            "status": status,
            "error": None if error is None else f"{type(error).__name__}: {error}",
            "strategy": self.strategy.name,
            "dataset": self.cfg["dataset"]["name"],
            "model": self.cfg["model"]["name"],
            "seed": int(self.cfg["seed"]),
            "num_clients": int(self.cfg["num_clients"]),
            "rounds": self.last_round,
            "checkpoint_round": self.saved_round,
            **self.scores.summary(),
            "warnings": self.health.warnings,
            "dense_bytes_per_model": self.dense_bytes,
            "uplink_bytes": up.payload_bytes,
            "downlink_bytes": down.payload_bytes,
            "uplink_wire_bytes": up.wire_bytes,
            "downlink_wire_bytes": down.wire_bytes,
            **self.baseline.ratios,
            "target": self.target.value if self.target else None,
            "to_target": self.target.found if self.target else None,
            **({"evaluation_bytes": beside} if beside else {}),
            "uplink_messages": up.messages,
            "downlink_messages": down.messages,
            "final_sparsity": float(sparsity_of(self.arrays, self.prunable)),
            **({} if self.searched is None else {"lr_search": self.searched.plain()}),
            "wall_seconds": self.wall_seconds,
            "modelled_seconds": self.clock.now_s if self.clock else None,
            "modelled_cost": self.clock.cost if self.clock else None,
            "failures": int(self.strategy.wire.counts["failures"]),
            "rejected_payloads": int(self.strategy.wire.counts["rejected_payloads"]),
            "runtime": str((self.cfg.get("runtime") or {}).get("name", "inprocess")),
            "versions": {name: version(name) for name in ("flsparse", "flwr", "torch", "numpy")},
        }
