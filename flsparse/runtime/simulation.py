"""Run a federation on Flower's simulation engine: nodes in parallel, as Ray actors, on one machine or a Ray cluster."""

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from flsparse.runtime.federation import Observer, run_federation
from flsparse.runtime.wrappers import StoppableGrid

_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
_STOP_S = 60.0


def run_simulated(cfg: Mapping[str, Any], observers: Sequence[Observer] = ()) -> dict[str, Any]:
    """Run a federation on Ray.

    Parameters
    ----------
    cfg : mapping
        The composed configuration. ``runtime``: ``num_cpus`` and ``num_gpus`` of one node (as many nodes run at a time
        as fit the machine), ``ray_address`` of a cluster to use (null: a local one is started).
    observers : sequence of Observer
        Called from the server's thread.

    Returns
    -------
    dict
        The summary.

    Raises
    ------
    ImportError
        Ray is not installed.
    ValueError
        A node wants more than this machine has.
    Exception
        Error of the server.
    """
    check_resources(cfg.get("runtime") or {})
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    from flwr.simulation import run_simulation

    from flsparse.runtime.apps import client_app  # it imports this package's siblings

    summaries: list[dict[str, Any]] = []
    stop, done = threading.Event(), threading.Event()
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            summaries.append(run_federation(StoppableGrid(grid, stop), cfg, observers))
        finally:
            done.set()

    with _no_deprecation_notes():
        try:
            run_simulation(
                server_app=server,
                client_app=client_app(dict(cfg)),
                num_supernodes=int(cfg["num_clients"]),
                backend_config=backend_config(cfg.get("runtime") or {}),
            )
        except (KeyboardInterrupt, SystemExit) as leave:
            if isinstance(leave, SystemExit):  # Ray makes it of SIGTERM, and aborts the process 3 s later: too soon
                signal.alarm(int(_STOP_S))
            stop.set()
            if not done.wait(_STOP_S) or not summaries:
                raise
            signal.alarm(0)
    return summaries[0]


def check_resources(runtime: Mapping[str, Any]) -> None:
    """Refuse a simulation without Ray, or a node that does not fit this machine: the engine would try for minutes.

    Raises
    ------
    ImportError
        Ray is not installed.
    ValueError
        ``num_cpus`` or ``num_gpus`` of one node is more than this machine has. A cluster's are not known here.
    """
    if find_spec("ray") is None:
        raise ImportError("runtime=simulation needs Ray: pip install 'flwr[simulation]'")
    if runtime.get("ray_address"):
        return
    for key, there, mend in (
        ("num_cpus", os.cpu_count() or 1, "a node needs 1 at least"),
        ("num_gpus", torch.cuda.device_count(), "0 trains on CPUs, a fraction shares a GPU among nodes"),
    ):
        wanted = runtime.get(key) or 0
        if wanted > there:
            raise ValueError(f"runtime.{key}={wanted} of one node is more than the {there} of this machine; {mend}")


def backend_config(runtime: Mapping[str, Any]) -> dict[str, Any]:
    """Return Flower's backend configuration for the ``runtime`` group of a configuration."""
    resources = {"num_cpus": runtime.get("num_cpus") or 1, "num_gpus": runtime.get("num_gpus") or 0.0}
    init_args: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address := runtime.get("ray_address"):
        init_args["address"] = address
    return {"client_resources": resources, "init_args": init_args}


@contextmanager
def _no_deprecation_notes() -> Iterator[None]:
    """Keep Flower's note that ``run_simulation`` is deprecated off the screen: it is the offline way to its engine."""

    def wanted(record: logging.LogRecord) -> bool:
        return "DEPRECATED" not in record.getMessage().upper()

    flower = logging.getLogger("flwr")
    flower.addFilter(wanted)
    try:
        yield
    finally:
        flower.removeFilter(wanted)
