"""The apps that a run sends and the examples: in Flower Hub's format, and nothing for a SuperLink to install."""

import os
import shutil
import sys
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from flwr.supercore.superexec.dependency_installer import install_app_dependencies

from flsparse.runtime.sent_app import write_app

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ("quickstart", "own-app", "bring_your_own/before", "bring_your_own/after")
REQUIRED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
MATCHING = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # what Flower matches files by


def ignored(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "__pycache__"]


@pytest.fixture(params=("sent", *EXAMPLES))
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return the folder of an app: the one that a run sends, or a copy of an example with its links as they are."""
    if request.param == "sent":
        return write_app(tmp_path / "app")
    source = ROOT / "examples" / request.param
    return Path(shutil.copytree(source, tmp_path / source.name, symlinks=True, ignore=ignored))


def project(app: Path) -> dict[str, Any]:
    return tomllib.loads((app / "pyproject.toml").read_text())


@MATCHING
def test_flwr_build_packs_every_file(
    app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    import_module("flwr.cli.build").build(app)
    assert "missing" not in capsys.readouterr().out
    (fab,) = tmp_path.glob("*.fab")
    with zipfile.ZipFile(fab) as archive:
        packed = set(archive.namelist()) - {".info/CONTENT"}
    assert packed == {path.relative_to(app).as_posix() for path in app.rglob("*") if not path.is_dir()}


@MATCHING
def test_flower_hub_would_take_it(app: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish = import_module("flwr.cli.app_cmd.publish")
    files = publish._collect_file_paths(app)
    publish._validate_files(files)
    publish._validate_app_name(app.name, "folder")
    publish._validate_description(project(app)["project"]["description"])
    assert "Skip" not in capsys.readouterr().out
    assert not [path for path in app.rglob("*") if path.is_symlink()]  # they would be left out without a word


def test_its_format_is_the_first_that_is_checked(app: Path) -> None:
    flower = project(app)["tool"]["flwr"]["app"]
    assert flower["fab-format-version"] == 1
    assert flower["publisher"] == "flsparse"
    (bounds,) = (each.removeprefix("flwr") for each in REQUIRED if each.startswith("flwr"))
    (wanted,) = (each for each in project(app)["project"]["dependencies"] if each.startswith("flwr"))
    assert wanted.replace("[simulation]", "") == f"flwr{bounds}"


def test_a_superlink_installs_nothing_for_it(app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With neither an index nor a cache, what Flower does before it runs an app succeeds and leaves no package."""
    for name, value in {"UV_OFFLINE": "1", "UV_NO_CACHE": "1", "FLWR_HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    for name in ("PATH", "VIRTUAL_ENV"):  # it makes the new environment this process's own
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setattr(sys, "path", list(sys.path))
    environment = install_app_dependencies(app, run_id=1)
    assert not list(environment.rglob("*.dist-info"))


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_has_the_license_and_a_page(example: str) -> None:
    folder = ROOT / "examples" / example
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert "SuperNodes" in (folder / "README.md").read_text()
