"""Start a run where its configuration says."""

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flsparse.clients.core.state import STATE_DIR
from flsparse.runtime.federation import Observer, run_federation
from flsparse.runtime.inprocess import InProcessGrid

RUNTIMES = ("inprocess", "simulation", "deployment")


def launch(cfg: Mapping[str, Any], observers: Sequence[Observer] = ()) -> dict[str, Any]:
    """Run the federation of a composed configuration, and return its summary; SIGTERM ends it as Ctrl-C does.

    Parameters
    ----------
    cfg : mapping
        Plain values; ``runtime.name`` is one of ``inprocess``, ``simulation``, ``deployment``.
    observers : sequence of Observer
        See :class:`flsparse.runtime.federation.Observer`.

    Raises
    ------
    ValueError
        The configuration is impossible.
    flsparse.strategies.RoundFailed, flsparse.runtime.deployment.DeploymentError
        The run failed.
    """
    name = (cfg.get("runtime") or {}).get("name", "inprocess")
    if name not in RUNTIMES:
        raise ValueError(f"runtime.name={name!r} is none of {', '.join(RUNTIMES)}")
    if name == "deployment":
        from flsparse.runtime.deployment import run_deployed

        with _terminable():
            return run_deployed(cfg, observers)
    with _terminable(), node_files(cfg.get("resume") or cfg.get("output_dir")):
        if name == "simulation":
            from flsparse.runtime.simulation import run_simulated

            return run_simulated(cfg, observers)
        from flsparse.runtime.apps import client_app

        return run_federation(InProcessGrid(client_app(dict(cfg)), int(cfg["num_clients"])), cfg, observers)


@contextmanager
def node_files(run_folder: str | Path | None) -> Iterator[None]:
    """Let nodes keep large state below the run folder, or in a temporary one, for as long as the run lasts."""
    if STATE_DIR in os.environ:
        yield
        return
    folder = Path(run_folder).absolute() / "nodes" if run_folder else Path(tempfile.mkdtemp(prefix="flsparse-"))
    os.environ[STATE_DIR] = str(folder)
    try:
        yield
    finally:
        del os.environ[STATE_DIR]
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _terminable() -> Iterator[None]:
    """Take SIGTERM, by which schedulers end a job, for Ctrl-C as long as the block lasts; in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the saving
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
