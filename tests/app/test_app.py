"""The application from its command line: what is refused, what runs, where it leaves its folders, how it ends."""

import json
import subprocess
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pytest
from app_kit import Run

from flsparse.app import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["strategy=sparsifed"], "did you mean sparsyfed?"),
        (["dataset=difits"], "did you mean digits?"),
        (["num_round=3"], "did you mean num_rounds?"),
        (["sparsity=0.9"], "did you mean strategy.sparsity?"),
        (["codec.value=int8"], "did you mean codec.values"),
        (["strateg=topk"], "did you mean strategy"),
        (["+strategy.sparsit=0.9"], "did you mean sparsity?"),
        (["+foo=1"], "there is no key foo"),
        (["client.learning_rate=0.1"], "did you mean client.lr?"),
        (["+client.nesterov=true"], "there is no key client.nesterov"),
        (["+client.lr_finall=0.1"], "did you mean client.lr_final"),
        (["+evaluate.evry=5"], "did you mean evaluate.every"),
        (["+runtime.foo=1"], "there is no key runtime.foo"),
        (["+partition.kindd=iid"], "did you mean partition.kind"),
        (["+model.widht=8"], "widht"),
        (["+dataset.rot=x"], "rot"),
        (["+codec.value=int8"], "value"),
        (["device=cuda:99"], "device=cuda:99: PyTorch finds"),
        (["num_clients=null"], "num_clients=null is impossible"),
        (["seed=null"], "seed=null is impossible"),
        (["client.lr=null"], "client.lr=null is impossible: it is a number above 0"),
        (["strategy=null"], "strategy=None: it is one of"),
        (["strategy.name=bogus"], "strategy='bogus' is none of choco_sgd, d_psgd"),
        (
            ["parts=[nois]"],
            "parts=nois: it is one of clip, control_variates, masks, noise, norm_bound",
        ),
        (["parts=[topk_update]", "parts.topk_update.density=2"], "parts.topk_update.density=2 is not in (0, 1]"),
        (["parts=[noise]", "strategy=scaffold"], "parts: 'noise' cannot stand beside 'control_variates'"),
        (["parts=[topk_update]", "strategy=d_psgd"], "parts: 'topk_update' is for averaging methods"),
        (["runtime.name=cloud"], "runtime.name=cloud is impossible"),
        (["strategy.beta=0.5"], "strategy.beta=0.5 is neither"),
        (["strategy.scope=layers"], "strategy.scope='layers' is none of lamp, global, layer; did you mean layer?"),
        (["strategy.server_optimizer=sgd"], "strategy.server_optimizer='sgd' is none of none, momentum"),
        (["strategy.tiers={90-50:0.5}"], "'90-50' is not a range"),
        (["strategy.sparsity=1.2"], "strategy.sparsity=1.2 is not in [0, 1): it is the fraction of zeros"),
        (["strategy.sparsity=1"], "strategy.sparsity=1 is not in [0, 1)"),
        (["strategy.ramp=maybe"], "strategy.ramp='maybe' is not true or false"),
        (["strategy.min_replies=many"], "strategy.min_replies='many' is not a whole number"),
        (["+strategy.min_train_nodes=many"], "strategy.min_train_nodes='many' is not a whole number"),
        (["strategy=malcom_psgd", "strategy.mu=null"], "strategy.mu=None is not a number"),
        (["strategy=dppf", "strategy.alpha=2"], "strategy.alpha=2 is not in (0, 1]: it is the share of the way"),
        (["strategy=scaffold", "+strategy.server_lr=0.1"], "strategy.server_lr=0.1 cannot be chosen: it is 1.0"),
        (["strategy=d_psgd", "+strategy.values=int8"], "strategy.values='int8' cannot be chosen: it is 'raw'"),
        (["-m", "strategy.sparsity=0.5,1.2"], "strategy.sparsity=1.2 is not in [0, 1)"),
        (["fraction_train=1.5"], "fraction_train=1.5 is impossible"),
        (["+strategy.min_train_nodes=21"], "there are num_clients=20 nodes"),
        (["strategy.tiers={0-x:0.9}"], "0-x"),
        (["strategy=fedavg,topk"], "add -m"),
        (["strategy=[a"], ""),
        (["nonsense"], "nonsense"),
        (["resume=nowhere"], "no run folder there"),
        (["dataset=fashion_mnist", "dataset.root=nowhere", "dry_run=true"], "nowhere"),
        (["dataset=fashion_mnist", "dataset.root=nowhere"], "nowhere"),
        (["num_clients=5000"], "5000 is more than"),
        (["-m", "seed=0,1", "model.norm=layer"], "model.norm='layer' must be"),
        (["model.width=6"], "model.width=6 is not a multiple of model.groups=4"),
        (["model.width=0"], "model.width=0 is impossible"),
        (["device=tpu"], "device=tpu is impossible"),
        (["client.lr=inf"], "client.lr=inf is impossible: it is a number above 0, and finite"),
        (
            ["strategy=local_sgd", "strategy.qsr=0.1", "client.local_steps=0"],
            "strategy.qsr=0.1 needs client.local_steps above 0",
        ),
        (["model=char_lstm"], "does not read images"),
        (["strategy=split_ms", "cut=conv7"], "no layer 'conv7'"),
        (["strategy=split_ms", "cut=conv7", "dry_run=true"], "no layer 'conv7'"),
        (["strategy=split_ms", "cut=2", "strategy.bits=99"], "strategy.bits=99 is not"),
        (["runtime=deployment", "superlink=there"], "superlink=there is impossible: it is HOST:PORT"),
        (["runtime=simulation", "runtime.num_cpus=9999"], "runtime.num_cpus=9999 of one node is more than the "),
        (["runtime=simulation", "runtime.num_gpus=999"], "runtime.num_gpus=999 of one node is more than the "),
        (["runtime=simulation", "runtime.num_gpus=-1"], "runtime.num_gpus=-1 is impossible"),
        (["evaluate.on=validation", "dataset.validation_fraction=0"], "set dataset.validation_fraction above 0"),
        (["strategy=dppf", "strategy.valley_names=foo"], "strategy.valley_names='foo' is not a list, each a text"),
        (["output_dir="], "output_dir= is empty"),
        (["output_dir=/proc/none/run"], "/proc is not a folder that can be written to (No such file or directory)"),
        (["--config-dir", "nowhere"], "--config-dir nowhere: there is no such folder"),
        (["hydra.run.dir=/proc/none/run"], "/proc is not a folder that can be written to (No such file or directory)"),
        (["client.lr=a=b"], "client.lr=a=b is no override (mismatched input '='"),
        (["resume=runs/lr=0.1/x"], "resume=runs/lr=0.1/x: no run folder there"),
        (["resume=runs/a,b"], "resume=runs/a,b: no run folder there"),
        (["hydra/launcher=none"], "Could not find 'hydra/launcher/none': Hydra's plugin for it is not installed"),
        (["dataset.validation_fraction=1"], "dataset.validation_fraction=1.0 must be in [0, 1)"),
        ([f"output_dir={__file__}"], "is not a folder that can be written to"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_anything_starts(
    arguments: list[str], said: str, run: Run, launched: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("flsparse: ")
    assert said in error
    assert len(error.splitlines()) == 1
    assert not launched
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ended", ["summary.json", "metrics.jsonl"])
def test_a_folder_that_holds_a_run_is_left_as_it_is(
    ended: str, run: Run, launched: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / ended).touch()
    assert run("output_dir=done") == 2
    assert "go on with it (resume=done)" in capsys.readouterr().err
    assert [each.name for each in (tmp_path / "done").iterdir()] == [ended]
    assert not launched


def test_a_run_that_measured_nothing_may_be_tried_again_in_its_folder(
    run: Run, launched: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "metrics.jsonl").touch()
    (tmp_path / "failed" / "summary.json").write_text('{"status": "failed", "rounds": 0}')
    assert run("output_dir=failed") == 0
    assert len(launched) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cut=2"], "cut=2 has no effect on strategy=sparsyfed"),
        (["topology=torus"], "topology=torus has no effect on strategy=sparsyfed"),
        (["superlink=there:1"], "superlink=there:1 has no effect on runtime=inprocess"),
        (["strategy=d_psgd", "codec=int4"], "codec has no effect on strategy=d_psgd"),
        (
            ["strategy=d_psgd", "codec.rounding=stochastic"],
            "codec.rounding=stochastic has no effect on strategy=d_psgd",
        ),
        (["strategy=fedavg", "codec.rounding=stochastic"], "has no effect on codec.values=raw"),
        (["strategy=local_sgd", "client.local_epochs=5"], "has no effect beside client.local_steps=4"),
        (["strategy=split_ms", "client.local_steps=5"], "client.local_steps=5 has no effect on strategy=split_ms"),
        (["partition.kind=iid", "partition.alpha=0.01"], "partition.alpha=0.01 has no effect on partition.kind=iid"),
        (["strategy.tiers={0-4:0.5,1000-2000:0.5}"], "the tier 1000-2000 has no effect"),
    ],
)
def test_a_setting_without_effect_is_named(
    arguments: list[str], said: str, run: Run, launched: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 0
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("arguments", [["strategy=local_sgd"], ["strategy=d_psgd"], ["strategy.tiers={0:0.9}"]])
def test_a_default_without_effect_is_not_remarked(
    arguments: list[str], run: Run, launched: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 0
    assert capsys.readouterr().err == ""


def test_a_run_leaves_a_folder_that_its_configuration_names(
    run: Run, launched: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("strategy=topk", "num_rounds=2") == 0
    (folder,) = tmp_path.glob("runs/*/*-topk-digits")
    assert Path(launched[0]["output_dir"]) == folder
    assert (folder / "flsparse.log").exists()
    out = capsys.readouterr().out
    assert "topk on digits" in out
    assert f"run folder: {folder.relative_to(tmp_path)}" in out


def test_output_dir_names_the_folder_of_one_run(run: Run, launched: list[Any], tmp_path: Path) -> None:
    assert run("output_dir=here") == 0
    assert Path(launched[0]["output_dir"]) == tmp_path / "here"
    assert [each.name for each in tmp_path.iterdir()] == ["here"]


def test_a_failed_run_is_said_in_one_line_and_its_trace_is_in_the_log(
    run: Run, launched: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("num_rounds=13", "output_dir=bad") == 1
    error = capsys.readouterr().err
    assert "flsparse: thirteen rounds\n" in error
    assert "Traceback" not in error
    assert "and a second line" in (tmp_path / "bad" / "flsparse.log").read_text()


def test_an_interrupted_run_says_how_to_go_on_and_goes_on(
    run: Run, launched: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("strategy=topk", "num_rounds=7", "output_dir=half") == 130
    assert (
        "after round 3. To go on after round 2, the last that was saved: flsparse resume=half"
        in capsys.readouterr().err
    )
    assert run("resume=half", "num_rounds=2") == 0
    again = launched[-1]
    assert (again["strategy"]["name"], again["num_rounds"], again["resume"]) == ("topk", 2, "half")
    assert Path(again["output_dir"]) == Path("half")
    assert run("resume=half", "strategy=fedavg") == 2
    assert "goes on as it was" in capsys.readouterr().err


def test_dry_run_composes_counts_and_runs_nothing(
    run: Run, launched: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("dry_run=true", "-m", "strategy=fedavg,sparsyfed") == 0
    out = capsys.readouterr().out
    assert "name: fedavg" in out
    assert "name: sparsyfed" in out
    assert out.count("dense model, either way") == 2
    assert not launched
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["strategy=malcom_psgd", "topology=torus", "num_clients=9"], ["torus of 9 nodes, 18 links", "residual to a"]),
        (["strategy=d_psgd", "num_clients=5"], ["ring of 5 nodes"]),
        (["strategy=split_ms", "cut=2"], ["where to cut", "64x2x2"]),
        (["strategy=dppf"], ["up (an update, estimated)"]),
    ],
)
def test_dry_run_speaks_of_what_the_strategy_sends(
    run: Run, overrides: list[str], told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("dry_run=true", *overrides) == 0
    out = capsys.readouterr().out
    assert all(each in out for each in told)


def test_help_and_version_are_fast_to_load() -> None:
    script = (
        "import sys; sys.argv = ['flsparse', '--help']\n"
        "from flsparse.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'torchvision', 'flwr', 'ray', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    for part in ("Usage: flsparse", "strategy: choco_sgd, d_psgd, dppf, fedavg", "-m strategy=fedavg,topk,sparsyfed"):
        assert part in result.stdout


def test_version(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("flsparse 0.")


def test_a_simulation_without_ray_is_refused(
    run: Run, launched: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flsparse.runtime.simulation.find_spec", lambda name: None)
    assert run("runtime=simulation") == 2
    assert capsys.readouterr().err == "flsparse: runtime=simulation needs Ray: pip install 'flwr[simulation]'\n"
    assert not launched


def test_what_fails_before_the_start_is_one_line_of_whatever_type(
    run: Run, launched: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(cfg: object) -> None:
        raise ZeroDivisionError("division by zero\nand more")

    monkeypatch.setattr("flsparse.runtime.simulation.check_resources", broken)
    assert run("runtime=simulation") == 2
    assert capsys.readouterr().err == "flsparse: ZeroDivisionError: division by zero\n"
    assert not launched


def test_the_start_says_what_will_run(run: Run, launched: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("num_rounds=2", "num_clients=4", "runtime=simulation") == 0
    out = capsys.readouterr().out
    for part in (
        "sparsyfed: 2 rounds, 2 of 4 nodes in each",
        "data:  digits, 359 samples to evaluate on; to train on, each node has 323 to 324",
        "model: cnn, 40,506 parameters, 162 kB dense",
        "check: one training step and one evaluation work",
        "starting Ray, for 4 nodes",
    ):
        assert part in out.splitlines()


def test_ctrl_c_while_modules_load_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(MetaPathFinder):
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "flsparse.app.command":
                raise KeyboardInterrupt

    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "flsparse.app.command")
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130
    assert capsys.readouterr().err == "flsparse: stopped before the first round; there is nothing to go on with\n"


@pytest.mark.slow
def test_a_reader_that_goes_away_stops_no_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flsparse", "num_rounds=2", "num_clients=2", "output_dir=run"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("sparsyfed: 2 rounds")
        process.stdout.close()  # as head does
        error = process.stderr.read()
        assert process.wait(timeout=120) == 0
    assert error == ""
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "completed"
