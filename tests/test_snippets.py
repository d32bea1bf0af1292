"""The snippets of the pages run: Python is executed, commands compose and build, refusals are in the words shown."""

import re
import shlex
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hydra import initialize_config_module
from safetensors.numpy import load_file
from small_federation import small_config

from flsparse.app import main
from flsparse.app.composing import compose_jobs
from flsparse.app.settings import SettingsError, check
from flsparse.clients import CompressMod
from flsparse.runtime import launch
from flsparse.runtime.making import make_strategy
from flsparse.strategies import FedAvg
from flsparse.tasks import build_task
from flsparse.wire.messages import to_record

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("README.md")),
]
STANDS_FOR = {"HOST:PORT": "localhost:9093"}  # what the reader fills in; DIR is a folder as good as any


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return the language and the text of each fenced block of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


SNIPPETS = [
    pytest.param(page, text, id=f"{named(page)}-{number}")
    for page in PAGES
    for number, (language, text) in enumerate(blocks(page))
    if language == "python"
]


def lines(text: str) -> list[str]:
    """Return the lines of a block, those that go on in the next one joined to it."""
    return text.replace("\\\n", " ").splitlines()


LINES = [
    (page, line) for page in PAGES for kind, text in blocks(page) if kind in ("console", "") for line in lines(text)
]
REFUSED = [
    pytest.param(before.removeprefix("$ "), line, id=f"{named(page)}: {before}")
    for (page, before), (_, line) in pairwise(LINES)
    if line.startswith("flsparse: ") and before.startswith("$ flsparse ")
]
COMMANDS = [
    pytest.param(page, line, id=f"{named(page)}: {line}")
    for (page, line), (_, after) in pairwise([*LINES, (ROOT, "")])
    if re.match(r"(\$ )?(flsparse|python) ", line) and not after.startswith("flsparse: ")
]


def own_app() -> ClientApp:
    """Return an app such as the reader's: its training changes nothing."""
    app = ClientApp(mods=[CompressMod()])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)

    return app


def given() -> dict[str, Any]:
    """Return what the pages take for given, by the names that they use."""
    task = build_task(small_config(num_clients=2))
    stream = np.random.default_rng(0)
    arrays = {name: value.numpy() for name, value in task.model().state_dict().items()}
    return {
        "arrays": arrays,
        "trained": {
            name: array + np.float32(0.01) * stream.random(array.shape, np.float32) for name, array in arrays.items()
        },
        "model": task.model(),
        "batch": task.sample(task.train_data(0), 8)[0][0],
        "activations": np.maximum(stream.standard_normal((8, 16, 4, 4)).astype(np.float32), 0),
        "client_app": own_app(),
        "strategy": FedAvg(fraction_train=0.02, min_train_nodes=1),
        "initial_arrays": to_record(arrays),
    }


@pytest.fixture
def folder_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder that holds ``run``, a run of the default model on the digits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLSPARSE_FACTORIES", "")  # a page sets it
    launch(small_config(model={"name": "cnn"}, num_rounds=1, output_dir="run"))
    return tmp_path / "run"


@pytest.mark.parametrize(("page", "text"), SNIPPETS)
def test_python_runs(page: Path, text: str, folder_of_a_run: Path) -> None:
    exec(compile_of(page, text), given())


def compile_of(page: Path, text: str) -> Any:
    return compile(text, named(page), "exec")


def test_a_trained_model_is_what_the_page_loads(folder_of_a_run: Path) -> None:
    page = ROOT / "docs" / "application.md"
    names: dict[str, Any] = {}
    exec(compile_of(page, next(text for kind, text in blocks(page) if kind == "python")), names)
    weights = load_file(folder_of_a_run / "model.safetensors")
    for name, value in names["model"].state_dict().items():
        np.testing.assert_array_equal(value.numpy(), weights[name])


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_compose_and_build(page: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flsparse.app.composing.count_nodes", lambda cfg: 2)
    for word, value in STANDS_FOR.items():
        command = command.replace(word, value)
    program, *arguments = shlex.split(command.removeprefix("$ "), comments=True)
    if program == "flsparse":
        composes(arguments, page)
    else:
        where = arguments[1].replace(".", "/") if arguments[0] == "-m" else arguments[0]
        files = (where, f"{where}.py", f"{where}/__main__.py")
        assert any((folder / each).is_file() for each in files for folder in (ROOT, page.parent)), where


def composes(arguments: list[str], page: Path = ROOT) -> None:
    """Compose, check and build a command line of ours; a run to go on with, and the reader's data, are elsewhere."""
    if {"--help", "--cfg"} & set(arguments) or any(each.startswith("resume=") for each in arguments):
        return
    ours = [each for each in arguments if not each.startswith(("-", "hydra"))]
    if "--config-dir" in arguments and (page.parent / (place := arguments[1])).is_dir():
        ours = [each for each in ours if each != place] + [f"hydra.searchpath=[file://{page.parent / place}]"]
    with initialize_config_module("flsparse.conf", version_base="1.3"):
        jobs = compose_jobs(ours, sweep="-m" in arguments)
    for cfg in jobs:
        check(cfg)
        make_strategy(cfg, [])


@pytest.mark.parametrize(("command", "said"), REFUSED)
def test_refusals_are_in_the_words_shown(
    command: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err == f"{said}\n"


def test_snippets_are_found() -> None:
    assert len(SNIPPETS) >= 7
    assert len(COMMANDS) >= 50
    assert len(REFUSED) >= 8
    with pytest.raises(SettingsError):
        composes(["strategy=sparsifed"])
