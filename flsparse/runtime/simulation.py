"""Run a federation on Flower's simulation engine: nodes in parallel, as Ray actors, on one machine or a Ray cluster."""

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

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
    Exception
        What the server raised.
    """
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    try:
        import ray  # noqa: F401
        from flwr.simulation import run_simulation
    except ImportError as error:
        raise ImportError("runtime=simulation needs Ray: pip install 'flsparse[simulation]'") from error
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
        except KeyboardInterrupt:
            stop.set()
            if not done.wait(_STOP_S) or not summaries:
                raise
    return summaries[0]


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
