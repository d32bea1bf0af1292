"""Sweeps: a folder a job, one table at the end, failed jobs among its rows."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from app_kit import Run


@pytest.mark.parametrize(("held", "mend"), [("sweep", "resume=sweep"), ("sweep/0-topk", "resume=sweep/0-topk")])
def test_a_sweep_leaves_a_folder_that_holds_runs_as_it_is(
    held: str, mend: str, run: Run, launched: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / held).mkdir(parents=True)
    (tmp_path / held / "metrics.jsonl").touch()
    before = sorted(tmp_path.rglob("*"))
    assert run("-m", "seed=1,2", "output_dir=sweep") == 2
    assert f"sweep holds a run: choose another output_dir, or go on with it ({mend})" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    assert not launched


def test_the_table_of_a_sweep_is_of_its_own_jobs(
    run: Run, launched: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What an earlier sweep left there that measured nothing is none of them."""
    assert run("-m", "num_rounds=13", "seed=1,2,3", "output_dir=sweep") == 1
    for record in tmp_path.glob("sweep/*/.hydra/overrides.yaml"):
        os.utime(record, (1e9, 1e9))
    capsys.readouterr()
    assert run("-m", "seed=5,6", "output_dir=sweep") == 0
    captured = capsys.readouterr()
    assert "failed" not in captured.err
    assert "2 seeds" in captured.out


def test_a_sweep_gives_each_job_a_folder_and_ends_with_one_table(
    run: Run, launched: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("-m", "strategy=fedavg,topk", "seed=1,2", "output_dir=sweep") == 0
    assert [(cfg["strategy"]["name"], cfg["seed"]) for cfg in launched] == [
        ("fedavg", 1),
        ("fedavg", 2),
        ("topk", 1),
        ("topk", 2),
    ]
    assert len({cfg["output_dir"] for cfg in launched}) == 4
    assert all(Path(cfg["output_dir"]).parent == tmp_path / "sweep" for cfg in launched)
    out = capsys.readouterr().out
    assert out.count("run folder") == 1
    assert "python -m flsparse.report sweep" in out


def test_a_sweep_goes_on_after_a_failed_run_and_ends_with_an_error(
    run: Run, launched: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("-m", "num_rounds=13,2,3", "output_dir=sweep") == 1
    assert len(launched) == 3
    captured = capsys.readouterr()
    assert "num_rounds" in captured.out
    assert "1 of 3 runs failed" in captured.err


def test_a_sweep_that_is_interrupted_shows_what_is_done(
    run: Run, launched: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("-m", "num_rounds=2,7,3", "output_dir=sweep") == 130
    assert len(launched) == 2
    captured = capsys.readouterr()
    assert "90.0 %" in captured.out
    assert "flsparse resume=sweep/1-" in captured.err


@pytest.mark.skipif(find_spec("hydra_plugins") is not None, reason="a plugin of Hydra is installed")
def test_a_sweeper_that_is_missing_is_named_with_its_package(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-m", "hydra/sweeper=optuna", "seed=0,1") == 2
    assert "pip install hydra-optuna-sweeper" in capsys.readouterr().err


def test_a_failed_job_of_a_sweep_is_a_row_with_its_reason(
    run: Run, launched: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("-m", "num_rounds=13,2", "seed=0,1", "output_dir=sweep") == 1
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in out if "failed" in line][:2] == [["13", "failed"], ["13", "failed"]]
    assert any(line.startswith("0-sparsyfed-digits-seed0: failed; its log is") for line in out)
    assert any(line.split()[:2] == ["2", "90.0"] for line in out)
