"""The compiled kernel for tests, made from its source as it is now."""

import importlib.util
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
INCLUDE = Path(sysconfig.get_paths()["include"])
BUILDS = (INCLUDE / "Python.h").exists() and not sysconfig.get_config_var("Py_GIL_DISABLED")  # that has no stable ABI
NAMES = (*str(sysconfig.get_config_var("CC") or "").split()[:1], "cc", "gcc", "clang")
COMPILER = next(filter(shutil.which, NAMES), "") if BUILDS else ""  # empty where the kernel cannot be built


def build(folder: Path, *flags: str) -> Path:
    """Compile the kernel into a folder, with the flags of ``pyproject.toml`` and more, and return its file."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    (extension,) = tools["ext-modules"]
    out = folder / "_kernel.abi3.so"
    sources = [str(ROOT / source) for source in extension["sources"]]
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-fPIC", "-shared"]
    command = [COMPILER, *extension["extra-compile-args"], *warnings, *flags, f"-I{INCLUDE}", *sources, "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def load(file: Path) -> ModuleType:
    """Load a kernel beside the one that may be installed."""
    spec = importlib.util.spec_from_file_location("flsparse.codec._kernel", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
