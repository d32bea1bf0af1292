"""Run a federation on Flower's simulation engine: nodes in parallel, as Ray actors, on one machine or a Ray cluster."""

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from flsparse import _flwr
from flsparse.runtime.federation import Observer, run_federation

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


class StoppableGrid(Grid):
    """A grid whose server can be stopped from another thread: the next wait for replies raises KeyboardInterrupt."""

    def __init__(self, grid: Grid, stop: threading.Event) -> None:
        self._grid, self._stop = grid, stop

    def set_run(self, run: _flwr.Run) -> None:
        """Pass on."""
        self._grid.set_run(run)

    @property
    def run(self) -> _flwr.Run:
        """The run that messages belong to."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Pass on."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Pass on."""
        self._check()
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on."""
        self._check()
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pass on."""
        self._check()
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Pass on."""
        self._check()
        return self._grid.send_and_receive(messages, timeout=timeout)

    def _check(self) -> None:
        if self._stop.is_set():
            raise KeyboardInterrupt


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
