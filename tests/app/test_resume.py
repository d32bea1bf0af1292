"""Runs that go on: from which folders, with which changes, and what is refused."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from app_kit import Run, initial_state

from flsparse.runs.checkpoint import save_checkpoint
from flsparse.runs.folder import CHECKPOINT


def test_a_run_with_all_its_rounds_is_not_resumed(
    run: Run, launched: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "done").mkdir()
    assert run("num_rounds=3", "output_dir=done") == 0
    before = (tmp_path / "done" / "config.yaml").read_text()
    for rounds in ([], ["num_rounds=2"]):
        assert run("resume=done", *rounds) == 2
        assert "it has 3 rounds" in capsys.readouterr().err
    assert (tmp_path / "done" / "config.yaml").read_text() == before
    assert len(launched) == 1


@pytest.mark.parametrize(("saved", "ended"), [(2, True), (3, False)])
def test_a_run_that_was_killed_at_its_end_can_be_finished(
    saved: int, ended: bool, run: Run, launched: list[Any], tmp_path: Path
) -> None:
    """Killed while it wrote its last checkpoint, behind the row of that round; or its model and summary, after it."""
    (tmp_path / "killed").mkdir()
    assert run("num_rounds=3", "output_dir=killed") == 0
    (tmp_path / "killed" / "metrics.jsonl").write_text("".join(f'{{"server_round": {n}}}\n' for n in (1, 2, 3)))
    state = {"round": saved, "config": launched[0], **initial_state(launched[0])}
    save_checkpoint(tmp_path / "killed" / CHECKPOINT, state)
    if not ended:
        (tmp_path / "killed" / "summary.json").unlink()
    assert run("resume=killed") == 0
    assert len(launched) == 2


def test_a_run_without_a_checkpoint_is_not_resumed(
    run: Run, launched: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("num_rounds=3", "output_dir=run") == 0
    (tmp_path / "run" / CHECKPOINT).write_bytes(b"no checkpoint")
    assert run("resume=run", "num_rounds=5") == 2
    assert "flsparse: cannot read the checkpoint run/checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["experiment=sparsyfed_paper"], "goes on as it was"),
        (["codec=int8"], "goes on as it was"),
        (["~client.momentum"], "goes on as it was"),
        (["output_dir=there"], "goes on as it was"),
        (["evaluate.every=5"], "other settings of it follow from evaluate.every"),
        (["topology.name=torus"], "other settings of it follow from topology"),
        (["strategy.gamma=0.5"], "its strategy.gamma was 1.0"),
        (["seed=3"], "its seed was 0"),
        (["client.lr=0"], "client.lr=0 is impossible"),
        (["strategy.sparsity=0.9"], "there is no key strategy.sparsity"),
        (["+client.foo=1"], "there is no key client.foo"),
        (["seed=1,2"], "does not sweep"),
    ],
)
def test_what_cannot_change_with_resume_is_refused(
    overrides: list[str], said: str, run: Run, launched: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("strategy=malcom_psgd", "num_rounds=3", "output_dir=done") == 0
    before = (tmp_path / "done" / "config.yaml").read_text()
    assert run("resume=done", "num_rounds=9", *overrides) == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "done" / "config.yaml").read_text() == before
    assert len(launched) == 1


def test_a_resumed_run_is_checked_and_previewed_as_what_it_is(
    run: Run, launched: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("strategy=split_ms", "num_rounds=3", "output_dir=done") == 0
    capsys.readouterr()
    assert run("resume=done", "num_rounds=9", "cut=2", "client.local_steps=2", "dry_run=true") == 0  # cut is 2
    captured = capsys.readouterr()
    assert "name: split_ms" in captured.out
    assert "where to cut" in captured.out
    assert captured.err.count("note:") == 1
    assert "client.local_steps=2 has no effect on strategy=split_ms" in captured.err
    assert run("resume=done", "num_rounds=9", "cut=5") == 2
    assert "cut=5: a run goes on as it was, and other settings of it follow from cut" in capsys.readouterr().err
    assert len(launched) == 1
    assert run("resume=done", "num_rounds=9", "--cfg", "job") == 0
    assert "num_rounds: 9" in capsys.readouterr().out
    assert run("resume=done", "num_rounds=9", "strategy.bits=3") == 0
    assert (launched[-1]["num_rounds"], launched[-1]["strategy"]["name"], launched[-1]["cut"]) == (9, "split_ms", "2")


@pytest.mark.parametrize("folder", ["lr=0.1", "a,b", "übung", "with space", "it's", "5", "(x)"])
def test_a_folder_of_any_name_takes_a_run_that_goes_on(
    folder: str, run: Run, launched: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("strategy=topk", "num_rounds=7", f"output_dir={folder}") == 130
    said = capsys.readouterr().err.splitlines()[-1].partition("flsparse ")[2]
    assert shlex.split(said) == [f"resume={folder}"]  # as the shell would hand it over
    assert [each.name for each in tmp_path.iterdir()] == [folder]
    assert run(*shlex.split(said), "num_rounds=9") == 0
    assert launched[-1]["resume"] == folder


@pytest.mark.parametrize(
    ("text", "said"), [("a: [", "cannot be read (while parsing"), ("5", "cannot be read"), ("{}", "is not the config")]
)
def test_a_damaged_configuration_is_not_resumed(
    text: str, said: str, run: Run, launched: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("num_rounds=3", "output_dir=run") == 0
    (tmp_path / "run" / "config.yaml").write_text(text)
    capsys.readouterr()
    assert run("resume=run", "num_rounds=5") == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("flsparse: resume=run: its config.yaml ")
    assert said in error
