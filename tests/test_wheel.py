"""The built wheel and sdist hold everything that the tree holds; the linked folders are easily lost."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import kernel_kit
import pytest

ROOT = Path(__file__).parents[1]


def tracked_package_files() -> set[str]:
    """Return the package's files as a wheel names them, from the tree."""
    linked = {name: f"flsparse/{name}" for name in ("strategies", "clients", "conf")}
    folders = {"flsparse": "flsparse", **linked}
    found = set()
    for folder, target in folders.items():
        for path in (ROOT / folder).rglob("*"):
            inside = path.relative_to(ROOT / folder).as_posix()
            if path.suffix in (".py", ".yaml", ".npz", ".c", ".h") or path.name == "py.typed":
                found.add(f"{target}/{inside}")
    return {name for name in found if "__pycache__" not in name}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel and the sdist, built from a copy so that the tree stays clean."""
    folder = tmp_path_factory.mktemp("dist")
    build(tmp_path_factory.mktemp("tree"), folder)
    return folder


def build(copy: Path, folder: Path, *what: str, **variables: str) -> None:
    """Build from a copy of the tree that holds no kernel yet."""
    names = ("flsparse", "strategies", "clients", "conf", "pyproject.toml", "README.md", "LICENSE")
    subprocess.run(["cp", "-a", *(str(ROOT / name) for name in names), str(copy)], check=True)
    for kernel in (copy / "flsparse" / "codec").glob("_kernel.*"):
        kernel.unlink()
    command = [sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", str(folder), str(copy)]
    result = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr


def package_files(folder: Path) -> tuple[set[str], set[str]]:
    """Return the wheel's files, the compiled kernel apart."""
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    kernels = {name for name in names if name.startswith("flsparse/codec/_kernel.")}
    return names - kernels, kernels


@pytest.mark.slow
def test_the_wheel_is_complete(built: Path) -> None:
    names, kernels = package_files(built)
    assert len(kernels) == (1 if kernel_kit.COMPILER else 0)
    assert {name for name in names if name.startswith("flsparse/")} == tracked_package_files()
    assert {name for name in names if not name.startswith("flsparse/")} == {
        name for name in names if ".dist-info/" in name
    }, "the wheel must not install strategies, clients or conf beside flsparse"
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_without_a_compiler_all_but_the_kernel_is_there(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    build(tmp_path / "tree", tmp_path / "dist", "--wheel", CC="/no/compiler")
    names, kernels = package_files(tmp_path / "dist")
    assert not kernels
    assert {name for name in names if name.startswith("flsparse/")} == tracked_package_files()


@pytest.mark.slow
def test_the_sdist_is_complete(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked_package_files() <= names
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names


@pytest.mark.slow
def test_the_wheel_alone_runs_the_demo(built: Path, tmp_path: Path) -> None:
    """From a folder without the tree; the interpreter's own packages are there for what the wheel depends on."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    script = "import flsparse, runpy, sys; print(flsparse.__file__); runpy.run_module('flsparse', run_name='__main__')"
    command = [sys.executable, "-c", script, "experiment=demo", "num_rounds=2", "output_dir=run"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[0] == str(tmp_path / "site" / "flsparse" / "__init__.py")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] == 2
