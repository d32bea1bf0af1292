"""The examples run, as their README files say."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_bring_your_own_before_and_after() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "bring_your_own" / "compare.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    table = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
    before, after = ([float(re.sub("[%,]", "", cell)) for cell in table[which]] for which in ("before", "after"))
    assert before[0] > 90
    assert after[0] > before[0] - 3
    assert before[1] > 10 * after[1]
    assert before[2] > 4 * after[2]


def test_bring_your_own_sparsely() -> None:
    command = [sys.executable, str(EXAMPLES / "bring_your_own" / "compare.py"), "--sparsity", "0.5", "--rounds", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ratio = done.stdout.splitlines()[-1].split()
    assert float(ratio[1].rstrip("x")) > 15


def test_the_sparse_change_is_the_one_that_the_readme_shows() -> None:
    text = (EXAMPLES / "bring_your_own" / "README.md").read_text()
    shown = {line.lstrip("+ ").strip() for line in text.splitlines() if line.startswith("+")}
    for line in ("SparsyFedMod()", "sparsify(Net())", "SparsyFed(fraction_evaluate=fraction_evaluate, sparsity=0.8)"):
        assert any(line in each for each in shown)


def test_after_differs_from_before_by_one_mod_and_one_strategy() -> None:
    before, after = EXAMPLES / "bring_your_own" / "before", EXAMPLES / "bring_your_own" / "after"
    changed = []
    for file in sorted(after.rglob("*")):
        if file.suffix not in (".py", ".toml"):
            continue
        old = set((before / file.relative_to(after)).read_text().splitlines())
        changed += [line.strip() for line in file.read_text().splitlines() if line not in old and file.suffix == ".py"]
    assert changed == [
        "from flsparse.clients import CompressMod",
        "app = ClientApp(mods=[CompressMod()])",
        "from flsparse.strategies import Compressed",
        "strategy = Compressed(FedAvg(fraction_evaluate=fraction_evaluate))",
    ]


def test_flwr_run_quickstart(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = os.environ | {
        "FLWR_HOME": str(tmp_path),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": port,
        "FLSPARSE_STATE_DIR": str(tmp_path / "nodes"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    try:
        done = subprocess.run(
            ["flwr", "run", EXAMPLES / "quickstart", "--stream"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=800,
        )
        assert "Round 5/5: accuracy" in done.stdout + done.stderr
        assert "Run completed after 5 rounds" in done.stdout + done.stderr
    finally:
        end_listener(int(port))


def end_listener(port: int) -> None:
    """End the local SuperLink that ``flwr run`` leaves behind (Linux)."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "flower-superlink" in command and str(port) in command:
            os.kill(int(entry.parent.name), signal.SIGTERM)
    time.sleep(1.0)
