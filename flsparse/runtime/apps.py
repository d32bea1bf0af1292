"""The ready-made Flower components: ``serverapp = "flsparse.runtime.apps:server"``, ``clientapp = "...:client"``.

Both read the whole configuration from one run-config key, ``cfg``, a JSON text: two processes must agree, and a device
should not need Hydra. A node's owner sets the place of its data and the limits of a server's requests::

    FLSPARSE_MAX_LOCAL_EPOCHS=5 flower-supernode --node-config "partition-id=3 num-partitions=10 dataset-root='/data'"
"""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import lru_cache
from logging import INFO, WARNING
from typing import Any

import torch
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from flsparse._flwr import log
from flsparse.clients import Limits, device_app
from flsparse.clients.core.method import partition_id
from flsparse.clients.core.state import NodeState
from flsparse.kpi import kpi_of
from flsparse.runtime.federation import run_federation
from flsparse.runtime.owner import at_home, check_factories, tells_class_counts
from flsparse.runtime.survey import wait_for_nodes
from flsparse.tasks import Task, build_task
from flsparse.tasks.agreement import Agreement
from flsparse.tasks.own import is_own, own_task
from flsparse.wire.messages import AGREED

_EXIT_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def read_config(context: Context) -> dict[str, Any]:
    """Return the configuration that a run carries in ``context.run_config["cfg"]``.

    Raises
    ------
    ValueError
        There is none.
    """
    cfg: dict[str, Any] = json.loads(str(context.run_config.get("cfg", "{}")))
    if not cfg:
        raise ValueError(
            "the run carries no configuration: pass --run-config \"cfg='{...}'\" with the composed configuration as "
            "JSON, or let `flsparse runtime=deployment` start the run"
        )
    return cfg


def client_app(cfg: dict[str, Any]) -> ClientApp:
    """Return the device application of a configuration, for runtimes that pass none to the nodes."""
    return device_app(_constant(json.dumps(cfg)), owner_limits(), tells_class_counts=True)


def owner_limits() -> Limits:
    """Return the limits that a device's owner set as ``FLSPARSE_MAX_...`` in the environment; none by default.

    Raises
    ------
    ValueError
        One of them is not a whole number from 0.
    """
    limits = {}
    for name in (field.name for field in fields(Limits)):
        variable = f"FLSPARSE_{name.upper()}"
        if (text := os.environ.get(variable)) is not None:
            if not text.strip().isdecimal():
                raise ValueError(f"{variable}={text!r} is not a whole number from 0, such as 10485760; 0 is no limit")
            limits[name] = int(text)
    return Limits(**limits)


def _constant(cfg: str) -> Callable[[Context], Task]:
    def load(context: Context) -> Task:
        root = _root(context)
        if not root and is_own(config := json.loads(cfg)):
            root = str(config["partition"]["roots"][partition_id(context)])
        return _task_of(context, cfg, root)

    return load


def _from_run_config(context: Context) -> Task:
    cfg = read_config(context)
    if cfg.get("num_clients") is None:
        cfg["num_clients"] = int(context.node_config["num-partitions"])
    check_factories(cfg)
    return _task_of(context, json.dumps(cfg | {"dataset": at_home(cfg, _root(context))}), _root(context))


def _root(context: Context) -> str:
    return str(context.node_config.get("dataset-root", ""))


def _task_of(context: Context, cfg: str, root: str) -> Task:
    """Build the task once a process: a node is asked for it with every message."""
    config = json.loads(cfg)
    if not is_own(config):
        return _task(cfg, root)
    agreed = NodeState(context).values.get(AGREED)
    tasks = _own_tasks(cfg)
    if (root, agreed) not in tasks:
        torch.set_num_threads(int(config.get("threads") or 1))
        agreement = Agreement(**json.loads(agreed)) if isinstance(agreed, str) else None
        tasks[root, agreed] = own_task(config, root, agreement)
        if agreement is not None:
            tasks.pop((root, None), None)  # it has told what it holds
    return tasks[root, agreed]


@lru_cache(maxsize=1)
def _own_tasks(cfg: str) -> dict[tuple[str, object], Task]:
    """Return the tasks of the nodes of one run that are in this process, by their root and what is agreed."""
    return {}


@lru_cache(maxsize=2)
def _task(cfg: str, dataset_root: str) -> Task:
    config = json.loads(cfg)
    torch.set_num_threads(int(config.get("threads") or 1))
    if dataset_root and "root" in config["dataset"]:  # the embedded digits have none
        config["dataset"]["root"] = dataset_root
    return build_task(config)


client = device_app(_from_run_config, owner_limits(), tells_class_counts=tells_class_counts())

server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run's configuration asks for; without ``num_clients``, with the nodes there are."""
    cfg = read_config(context)
    check_factories(cfg)
    if cfg.get("num_clients") is None:
        cfg["num_clients"] = len(wait_for_nodes(grid, 1))
    with saves_before_exit():
        run_federation(grid, cfg, [RoundLog()])


@contextmanager
def saves_before_exit() -> Iterator[None]:
    """Turn a signal to exit into KeyboardInterrupt inside the block, and pass it on to its handler after the block.

    Flower's handler ends a ServerApp five seconds after the signal, whether its results are saved or not. Outside the
    main thread, which alone sees signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        received.append(number)
        if len(received) == 1:  # a second one must not interrupt the saving
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _EXIT_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


class RoundLog:
    """An observer that writes a line a round to Flower's log, which ``flwr run --stream`` and ``flwr log`` show."""

    def on_start(self, info: Mapping[str, Any]) -> None:
        """Nothing to say yet."""
        self._num_rounds, self._kpi = info["num_rounds"], kpi_of(info)
        self._said: set[str] = set()

    def on_note(self, text: str) -> None:
        """Log it."""
        log(INFO, text)

    def on_round(self, row: Mapping[str, Any]) -> None:
        """Log the KPI and bytes, and what is wrong with the model, once."""
        found = row.get(self._kpi.name)
        score = "not evaluated" if found is None else f"{self._kpi.name} {self._kpi.shown(found)}"
        text = "Round %d/%d: %s, sparsity %.1f %%, %s"
        log(INFO, text, row["server_round"], self._num_rounds, score, 100 * row["sparsity"], _sent(row))
        for warning in row["warnings"]:
            if warning not in self._said:
                self._said.add(warning)
                log(WARNING, "Round %d: %s", row["server_round"], warning)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Log the totals."""
        log(INFO, "Run %s after %d rounds: %s", summary["status"], summary["rounds"], _sent(summary))


def _sent(numbers: Mapping[str, Any]) -> str:
    """Return the bytes of a row or a summary, with their ratios unless the model has died."""
    ways = []
    for way, key in (("up", "uplink"), ("down", "downlink")):
        times = "" if numbers["warnings"] else f" ({numbers[f'{key}_ratio']:.0f}x smaller)"
        ways.append(f"{way} {numbers[f'{key}_bytes']} B{times}")
    return ", ".join(ways)
