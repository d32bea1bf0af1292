"""Run a federation over a Flower SuperLink: real processes, real sockets.

Without an address, a SuperLink and one SuperNode per client are started on this machine, for the run alone. With one,
the run is handed to the SuperLink that listens there, whose nodes must have flsparse installed. Either way the app of
:mod:`flsparse.runtime.sent_app` is sent, and the configuration is one run-config key.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from logging import WARNING
from pathlib import Path
from typing import IO, Any

from flsparse._flwr import log
from flsparse.runs.folder import SCHEMA_VERSION, RunFolder, read_rows
from flsparse.runtime.federation import Observer
from flsparse.runtime.owner import FACTORIES, TELLS, at_home_here, named_factories, root_here
from flsparse.runtime.sent_app import write_app

_CONNECTION = "flsparse"
_SUPERLINK = "superlink"
_PATIENCE = 6  # looks in a row that a SuperLink may leave unanswered
_POLL_S, _STATUS_POLL_S, _START_S = 0.5, 10.0, 60.0
_REACH_S = 10.0  # for a SuperLink that is said to be up
_STOP_S = 60.0  # a ServerApp learns that it is to stop with its next request, or by its next heartbeat


class DeploymentError(RuntimeError):
    """A SuperLink, a SuperNode or the run on them failed."""


def run_deployed(cfg: Mapping[str, Any], observers: Sequence[Observer] = ()) -> dict[str, Any]:
    """Run a federation on a SuperLink.

    Parameters
    ----------
    cfg : mapping
        The composed configuration; ``output_dir`` must be set. ``superlink``: address of one that runs already,
        ``host:port`` (null: one is started). ``runtime.root_certificates``: certificate file of that SuperLink; null
        connects without TLS.
    observers : sequence of Observer
        Fed from the run folder, which the ServerApp writes where the SuperLink runs: on another machine, observers see
        only the end.

    Returns
    -------
    dict
        The summary, with ``flwr_inbound_bytes`` and ``flwr_outbound_bytes``: Flower's own counts, both ways,
        HTTP aside. The logs of the processes started here stay in ``logs/`` of the run folder.

    Raises
    ------
    DeploymentError
        A process ended early, or the run failed; the message names the log to read.
    """
    folder = Path(cfg.get("resume") or cfg["output_dir"]).absolute()
    with ExitStack() as stack:
        work = Path(tempfile.mkdtemp(prefix="flsparse-"))
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        processes = Processes(folder / "logs", work)
        stack.callback(processes.stop)
        theirs = str(cfg.get("superlink") or "")
        sent = (dict(cfg) if theirs else at_home_here(cfg)) | {"output_dir": str(folder)}
        if cfg.get("resume"):
            sent["resume"] = str(folder)
        else:  # refuses a folder that holds a run, before anything starts
            RunFolder(folder, cfg)
        info = {"first_round": 1, "num_rounds": cfg["num_rounds"], "num_nodes": cfg["num_clients"]}
        for observer in observers:
            observer.on_start(info | {"output_dir": str(folder), "config": dict(cfg)})
        certificates = (cfg.get("runtime") or {}).get("root_certificates")
        try:
            if theirs:
                _reach(theirs)
            address = theirs or _start_federation(processes, sent)
            cli = Cli(work, address, certificates, processes.environment)
            run_id = cli.start(sent, _REACH_S if theirs else _START_S)
            return _follow(cli, run_id, folder, processes, observers)
        except DeploymentError as error:
            _leave_summary(folder, cfg, error)
            raise


class Processes:
    """Child processes with their logs, ended together.

    Parameters
    ----------
    logs : Path
        Folder for their output.
    work : Path
        Folder for Flower's own state and the nodes'.
    """

    def __init__(self, logs: Path, work: Path) -> None:
        self.logs = logs
        self.environment = os.environ | {
            "FLWR_HOME": str(work / "flwr"),
            "FLSPARSE_STATE_DIR": str(work / "nodes"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }
        self._running: dict[str, tuple[subprocess.Popen[bytes], IO[bytes]]] = {}
        self._ended: set[str] = set()

    def start(self, name: str, *command: str) -> None:
        """Start a process in a session of its own: Ctrl-C reaches the launcher alone, which then ends it."""
        self.logs.mkdir(parents=True, exist_ok=True)
        file = open(self.logs / f"{name}.log", "wb")  # noqa: SIM115
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=self.environment, start_new_session=True
        )
        self._running[name] = process, file

    def check(self) -> None:
        """Warn of a node that has ended, the others go on; raise DeploymentError for the SuperLink or the last node."""
        codes = {name: process.poll() for name, (process, _) in self._running.items()}
        ended = [name for name, code in codes.items() if code is not None]
        nodes = [name for name in codes if name != _SUPERLINK]
        for name in ended:
            file = self.logs / f"{name}.log"
            what = f"{name} ended with exit code {codes[name]}; see {file}"
            if name == _SUPERLINK or set(nodes) <= set(ended):
                raise DeploymentError(f"{what}:\n{_tail(file)}")
            if name not in self._ended:
                self._ended.add(name)
                log(WARNING, "%s", what)

    def stop(self) -> None:
        """End all processes and their children, kindly at first."""
        for sign, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
            for process, _ in self._running.values():
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, sign)
            end = time.monotonic() + patience
            for process, _ in self._running.values():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.1, end - time.monotonic()))
        for _, file in self._running.values():
            file.close()
        self._running.clear()


class Cli:
    """Flower's command line, with a configuration of its own that knows one SuperLink."""

    def __init__(self, work: Path, address: str, root_certificates: str | None, environment: Mapping[str, str]) -> None:
        self._work, self._address, self._environment = work, address, dict(environment)
        security = f'root-certificates = "{root_certificates}"' if root_certificates else "insecure = true"
        home = Path(environment["FLWR_HOME"])
        home.mkdir(parents=True, exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{_CONNECTION}"\n\n[superlink.{_CONNECTION}]\naddress = "{address}"\n{security}\n'
        )

    def start(self, cfg: Mapping[str, Any], patience_s: float) -> str:
        """Send the app and start a run, with retries until a timeout; return its id."""
        app = write_app(self._work / "app")
        override = self._work / "override.toml"
        override.write_text(f"cfg = {json.dumps(json.dumps(cfg))}\n")  # a JSON string is a TOML basic string
        began, told = time.monotonic(), False
        while True:  # the SuperLink may still be starting
            answer = self._call("run", str(app), _CONNECTION, "--run-config", str(override))
            if answer.get("success"):
                return str(answer["run-id"])
            said = str(answer.get("error-message", answer)).splitlines()
            reason = " ".join(line.strip() for line in said if line.strip() and not line.startswith("Using SuperLink"))
            if time.monotonic() - began > patience_s:
                raise DeploymentError(f"the SuperLink at {self._address} did not take the run: {reason}")
            if not told:
                log(WARNING, "The SuperLink at %s has not taken the run yet, trying again: %s", self._address, reason)
                told = True
            time.sleep(1.0)

    def status(self, run_id: str) -> dict[str, Any]:
        """Return Flower's record of the run: ``status``, ``network-traffic``, ..."""
        runs = self._call("list", _CONNECTION, "--run-id", run_id).get("runs") or [{}]
        return dict(runs[0])

    def stop(self, run_id: str) -> None:
        """Ask the SuperLink to end the run."""
        self._call("stop", run_id, _CONNECTION)

    def _call(self, *arguments: str) -> dict[str, Any]:
        command = [shutil.which("flwr", path=self._environment["PATH"]) or "flwr", *arguments, "--format", "json"]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, check=False, start_new_session=True
        )
        start = done.stdout.find("{")
        try:
            answer: dict[str, Any] = json.loads(done.stdout[start:]) if start >= 0 else {}
        except ValueError:
            answer = {}
        said = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
        return answer or {"success": False, "error-message": said[-1] if said else f"exit code {done.returncode}"}


def _reach(address: str) -> None:
    """Wait a little for somebody to listen at an address; Flower's own tries are slow, and do not say why they fail.

    Raises
    ------
    DeploymentError
        Nobody does.
    """
    host, _, port = address.rpartition(":")
    began, told = time.monotonic(), False
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
            return
        except OSError as error:
            if time.monotonic() - began > _REACH_S:
                raise DeploymentError(
                    f"no SuperLink can be reached at {address}: {error.strerror or error}; start one there, or leave "
                    "superlink= out to have one for this run"
                ) from error
            if not told:
                log(WARNING, "Waiting for the SuperLink at %s: %s", address, error.strerror or error)
                told = True
        time.sleep(1.0)


def _leave_summary(folder: Path, cfg: Mapping[str, Any], error: DeploymentError) -> None:
    """Write that a run failed where its ServerApp has not written anything itself."""
    file = folder / "summary.json"
    if file.exists():
        return
    summary = {
        "schema_version": SCHEMA_VERSION,
        "status": "failed",
        "error": f"{type(error).__name__}: {error}",
        "strategy": cfg["strategy"]["name"],
        "dataset": cfg["dataset"]["name"],
        "model": cfg["model"]["name"],
        "seed": cfg["seed"],
        "num_clients": cfg["num_clients"],
        "rounds": len(read_rows(folder / "metrics.jsonl")),
        "final_accuracy": None,
    }
    file.write_text(json.dumps(summary, indent=2) + "\n")


def _start_federation(processes: Processes, cfg: Mapping[str, Any]) -> str:
    """Start a SuperLink and its SuperNodes on loopback; return the SuperLink's address.

    All of them are of whoever gave the configuration: they run the functions that it names, from the working folder.
    """
    num_nodes = int(cfg["num_clients"])
    processes.environment.setdefault(TELLS, "1")
    if functions := named_factories(cfg):
        modules = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(Path.cwd()))))
        processes.environment |= {FACTORIES: functions, "PYTHONPATH": modules}
    port, *node_ports = _free_ports(num_nodes + 1)
    address = f"127.0.0.1:{port}"
    processes.start(_SUPERLINK, "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port))
    end = time.monotonic() + _START_S
    while not _listens(port):
        processes.check()
        if time.monotonic() > end:
            raise DeploymentError(f"the SuperLink does not listen on {address}; see {processes.logs}/superlink.log")
        time.sleep(0.2)
    for partition, node_port in enumerate(node_ports):
        root = root_here(cfg, partition)
        config = f"partition-id={partition} num-partitions={num_nodes}" + f" dataset-root='{root}'" * bool(root)
        command = ["flower-supernode", "--insecure", "--superlink", address, "--port", str(node_port)]
        processes.start(f"supernode-{partition}", *command, "--node-config", config)
    return address


def _follow(cli: Cli, run_id: str, folder: Path, processes: Processes, observers: Sequence[Observer]) -> dict[str, Any]:
    """Show the run's rounds as they appear in its folder, until Flower says that it has ended."""
    started = time.time()
    shown, checked = 0, 0.0
    record: dict[str, Any] = {}
    interrupted, silent = False, 0
    while not str(record.get("status", "")).startswith("finished"):
        try:
            shown = _show(folder, shown, started, observers)
            processes.check()
            # The summary is written when the rounds are over: then the end need not wait for the next look.
            due = _STATUS_POLL_S if not _written_after(folder / "summary.json", started) else 0.0
            if time.monotonic() - checked > due:
                record, checked = cli.status(run_id), time.monotonic()
                silent = 0 if record else silent + 1
                if silent >= _PATIENCE:
                    raise DeploymentError(f"the SuperLink has not answered {silent} times in a row; is it still up?")
            time.sleep(_POLL_S)
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            cli.stop(run_id)
            end = time.monotonic() + _STOP_S
            while time.monotonic() < end and not _written_after(folder / "model.safetensors", started):  # the last file
                time.sleep(_POLL_S)
            record = cli.status(run_id)
            processes.stop()  # SIGTERM makes a ServerApp save its state; processes elsewhere go on
            break
    _show(folder, shown, started, observers)
    return _finish(record, folder, started, interrupted, processes, observers)


def _show(folder: Path, shown: int, started: float, observers: Sequence[Observer]) -> int:
    """Hand new rows to the observers; return how many have been shown."""
    if not _written_after(folder / "metrics.jsonl", started):
        return shown
    rows = read_rows(folder / "metrics.jsonl")
    for row in rows[shown:]:
        for observer in observers:
            observer.on_round(row)
    return len(rows)


def _finish(
    record: Mapping[str, Any],
    folder: Path,
    started: float,
    interrupted: bool,
    processes: Processes,
    observers: Sequence[Observer],
) -> dict[str, Any]:
    traffic = record.get("network-traffic") or {}
    measured = {f"flwr_{way}_bytes": traffic.get(f"{way}-bytes") for way in ("inbound", "outbound")}
    file = folder / "summary.json"
    if not _written_after(file, started):
        status = str(record.get("status", "unknown"))
        if interrupted or status == "finished:completed":  # the SuperLink is on another machine
            known = {"status": "interrupted" if interrupted else "completed", **measured}
            for observer in observers:
                observer.on_end(known)
            return known
        details = str(record.get("status-details", ""))
        if "No module named 'flsparse'" in details:
            details += ": install flsparse in the environment of the SuperLink"
        text = processes.logs / "superlink.log"
        where = f"{text}:\n{_tail(text)}" if text.exists() else "the logs where the SuperLink runs"
        raise DeploymentError(f"the run is {status} {details}; see {where}")
    summary: dict[str, Any] = json.loads(file.read_text()) | measured
    file.write_text(json.dumps(summary, indent=2) + "\n")
    for observer in observers:
        observer.on_end(summary)
    if summary["status"] == "failed":
        logs = f"in {processes.logs}" if processes.logs.exists() else "where the SuperLink runs"
        raise DeploymentError(f"the run failed: {summary['error']}; logs are {logs}")
    return summary


def _written_after(path: Path, moment: float) -> bool:
    try:
        return path.stat().st_mtime >= moment - 1.0
    except FileNotFoundError:
        return False


def _tail(log: Path, lines: int = 15) -> str:
    with suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    return ""


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
