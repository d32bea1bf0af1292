"""The examples run, as their README files say."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flsparse.runtime.deployment import _free_ports

README = Path(__file__).resolve().parents[2] / "README.md"
EXAMPLES = README.parent / "examples"
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


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Return a function that runs a printed command beside a copy of the examples, and gives what it prints.

    What runs shares a local SuperLink, as ``flwr run`` starts it in a home without a configuration.
    """
    pytest.importorskip("ray")
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("clean")
    shutil.copytree(EXAMPLES, folder / "examples")
    (port,) = _free_ports(1)
    environment = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "FLSPARSE_STATE_DIR": str(home / "nodes"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }

    def run(command: str, *more: str) -> str:
        done = subprocess.run(
            [*shlex.split(command), *more], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    yield run
    end_listener(port)


def printed(command: str, *pages: Path) -> str:
    """Return a command, after looking that all the pages print it."""
    for page in pages:
        assert command in page.read_text().splitlines(), page
    return command


def test_the_quickstart_runs_as_it_is_printed(flower: Callable[..., str]) -> None:
    page = EXAMPLES / "quickstart" / "README.md"
    said = flower(printed("flwr run examples/quickstart --stream", page, README))
    line = re.compile(
        r"Round (\d)/5: accuracy ([\d.]+) %, sparsity [\d.]+ %, up \d+ B \((\d+)x smaller\), down \d+ B \(\d+x"
    )
    assert [each[0] for each in line.findall(page.read_text())] == ["1", "2", "5"]
    rounds = line.findall(said)
    assert [each[0] for each in rounds] == ["1", "2", "3", "4", "5"]
    assert float(rounds[-1][1]) > 85
    assert int(rounds[-1][2]) > 100
    assert "Run completed after 5 rounds" in said
    assert "No additional application dependencies needed installation." in said


def test_an_app_of_ones_own_runs_as_it_is_printed(flower: Callable[..., str]) -> None:
    """Its functions travel: what runs starts in a folder from which they cannot be imported."""
    page = EXAMPLES / "own-app" / "README.md"
    said = flower(printed("flwr run examples/own-app --stream", page))
    line = re.compile(r"Round (\d)/8: accuracy ([\d.]+) %, sparsity [\d.]+ %, up \d+ B \((\d+)x smaller\)")
    assert [each[0] for each in line.findall(page.read_text())] == ["1", "8"]
    rounds = line.findall(said)
    assert [each[0] for each in rounds] == [str(number) for number in range(1, 9)]
    assert float(rounds[-1][1]) > 85
    assert int(rounds[-1][2]) > 30
    assert "Run completed after 8 rounds" in said


def test_bring_your_own_runs_as_it_is_printed(flower: Callable[..., str]) -> None:
    pages = [EXAMPLES / "bring_your_own" / "README.md", EXAMPLES / "bring_your_own" / "after" / "README.md", README]
    command = printed("flwr run examples/bring_your_own/after --stream", *pages)
    said = flower(command, "--run-config", "num-server-rounds=2")
    assert said.count("aggregate_train: Received 2 results and 0 failures") == 2
    assert "Saving final model to disk" in said
    assert "No additional application dependencies needed installation." in said


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
