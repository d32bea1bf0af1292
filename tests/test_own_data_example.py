"""The four cases of examples/own_data run as their page says, in every runtime."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_snippets import blocks

from flsparse.app import main
from flsparse.runs.folder import read_checkpoint, read_rows

pytest.importorskip("pyarrow")

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_data"
CASES = ("images", "table", "series", "torch")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the example with its data, those of each line and machine in a folder of its own, too."""
    folder = tmp_path_factory.mktemp("own") / "own_data"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("data", "runs", "__pycache__"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile((folder / "make_data.py").read_text(), "make_data.py", "exec"), {"__name__": "__main__"})
    for file, key, name in (("press.csv", "line", "lines"), ("machines.csv", "machine", "machines")):
        header, *rows = (folder / "data" / file).read_text().splitlines()
        place = header.split(",").index(key)
        for node in {row.split(",")[place] for row in rows}:
            (folder / "data" / name / node).mkdir(parents=True)
            kept = [row for row in rows if row.split(",")[place] == node]
            (folder / "data" / name / node / file).write_text("\n".join([header, *kept]))
    return folder


@pytest.fixture
def flsparse(example: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a function that runs the console script in the example's folder, and gives the run's rows and model."""
    monkeypatch.chdir(example)
    monkeypatch.setenv("HOME", str(tmp_path))  # decoded images are kept there

    def run(*arguments: str, name: str = "run") -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
        output = tmp_path / name
        monkeypatch.setattr(sys, "argv", ["flsparse", "--config-dir", "conf", *arguments, f"output_dir={output}"])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
        return read_rows(output / "metrics.jsonl"), read_checkpoint(output)["arrays"]

    yield run
    sys.modules.pop("own_torch", None)


@pytest.mark.parametrize(
    ("case", "rounds", "key", "limit"),
    [("images", 8, "loss", 0.8), ("table", 3, "rmse", 0.4), ("series", 2, "loss", 0.4), ("torch", 3, "loss", 0.3)],
)
def test_each_case_learns(case: str, rounds: int, key: str, limit: float, flsparse: Any) -> None:
    rows, _ = flsparse(f"experiment={case}", f"num_rounds={rounds}")
    assert rows[-1][key] < limit
    assert rows[-1]["failures"] == 0


def test_a_case_takes_thirty_lines_at_most() -> None:
    files = [EXAMPLE / "own_torch.py", *(EXAMPLE / "conf" / "experiment" / f"{case}.yaml" for case in CASES)]
    for file in files:
        assert len(file.read_text().splitlines()) <= 30, file


def test_the_page_runs_every_case() -> None:
    commands = "".join(text for kind, text in blocks(EXAMPLE / "README.md") if kind == "console")
    assert re.findall(r"experiment=(\w+)$", commands, re.MULTILINE) == list(CASES)


def own(case: str, rounds: int, *folders: str, file: str = "") -> tuple[str, ...]:
    """Return the overrides of a case whose nodes keep their data in folders of their own."""
    kept = (f"dataset.file={file}",) if file else ()
    roots = f"partition.roots=[{','.join(folders)}]"
    return (f"experiment={case}", "partition.kind=own", roots, *kept, f"num_rounds={rounds}")


OWN = {
    "images": own("images", 2, "data/defects/east", "data/defects/north"),
    "table": own("table", 1, "data/lines/A", "data/lines/B", file="press.csv"),
    "series": own("series", 1, "data/machines/1", "data/machines/2", file="machines.csv"),
    "torch": own("torch", 1, "data/defects/east", "data/defects/west"),
}


@pytest.mark.parametrize("case", CASES)
def test_nodes_that_keep_their_data(case: str, flsparse: Any) -> None:
    rows, _ = flsparse(*OWN[case])
    assert rows[-1]["replies"] == 2
    assert rows[-1]["loss"] is not None
    assert (rows[-1]["accuracy"] is None) == (case == "table")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.parametrize("overrides", [*OWN.values(), ("experiment=torch", "num_rounds=1")], ids=[*OWN, "one_folder"])
def test_the_same_on_ray(overrides: tuple[str, ...], flsparse: Any) -> None:
    pytest.importorskip("ray")
    here, model = flsparse(*overrides, name="here")
    there, same = flsparse(*overrides, "runtime=simulation", name="there")
    assert_alike(here, there, model, same)


@pytest.mark.e2e
@pytest.mark.timeout(900)
@pytest.mark.parametrize("overrides", [*OWN.values(), ("experiment=torch", "num_rounds=1")], ids=[*OWN, "one_folder"])
def test_the_same_on_supernodes(overrides: tuple[str, ...], flsparse: Any) -> None:
    here, model = flsparse(*overrides, name="here")
    there, same = flsparse(*overrides, "runtime=deployment", name="there")
    assert_alike(here, there, model, same)


def assert_alike(
    here: list[dict[str, Any]],
    there: list[dict[str, Any]],
    model: dict[str, np.ndarray],
    same: dict[str, np.ndarray],
) -> None:
    for key in ("accuracy", "loss", "uplink_bytes", "downlink_bytes", "replies", "failures"):
        assert [row[key] for row in here] == [row[key] for row in there], key
    for name, array in model.items():
        assert array.tobytes() == same[name].tobytes()
