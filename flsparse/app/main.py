"""The application: ``flsparse OVERRIDES...`` composes the configuration with Hydra and runs one federation, or a sweep.

With :mod:`flsparse.app.composing`, the only module that knows Hydra. Every job is composed and checked before the first
one starts; errors are one line each. Exit codes: 0 done, 1 a run failed, 2 the configuration is impossible,
130 interrupted.
"""

import logging
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.logging import RichHandler

from flsparse import __version__
from flsparse.app.composing import compose_jobs, parse_overrides, resumed_job, search_path
from flsparse.app.settings import SettingsError, check, without_effect
from flsparse.configs import open_parameters
from flsparse.report.display import Display
from flsparse.report.tables import comparison_table, read_summary, run_table
from flsparse.runs.checkpoint import CheckpointError
from flsparse.runs.folder import holds_a_run, read_checkpoint

log = logging.getLogger(__name__)
_console = Console()
_errors = Console(stderr=True)
_LOG = "flsparse.log"


def main() -> None:
    """Run the console script; leaves through ``sys.exit``."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    try:
        code = _run(sys.argv[1:])
    except SettingsError as error:
        print(f"flsparse: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt as stopped:
        if not stopped.args:  # else it has been said where the run stands
            print("flsparse: stopped before the first round; there is nothing to go on with", file=sys.stderr)
        code = 130
    sys.exit(code)


def _run(arguments: Sequence[str]) -> int:
    if "--version" in arguments:  # Hydra's parser would print its own
        print(f"flsparse {__version__}")
        return 0
    args = get_args_parser().parse_intermixed_args(arguments)
    overrides = list(args.overrides)
    arguments = [each for each in arguments if each not in overrides] + overrides  # Hydra wants flags first
    if args.help or args.hydra_help or args.shell_completion or args.info is not None:
        return _hand_over(arguments)
    with hydra.initialize_config_module("flsparse.conf", version_base="1.3"):
        given = {each.key_or_group: each for each in parse_overrides(overrides)}
        resumed = resumed_job(list(given.values())) if "resume" in given and given["resume"].value() else None
        jobs = [resumed] if resumed else compose_jobs([*overrides, *search_path(args)], sweep=args.multirun)
    for cfg in jobs:
        check(cfg)
    if args.cfg and resumed:
        return _print(resumed)
    if args.cfg:
        return _hand_over(arguments)
    notes: list[str] = []
    for cfg in jobs:
        notes += without_effect(cfg, given, _check_strategy(cfg))
        _check_machine(cfg)
    for note in dict.fromkeys(notes):
        _say(f"flsparse: note: {note}", _errors)
    if resumed:
        _check_saved(resumed)
    elif not jobs[0]["dry_run"]:
        _check_folder(_output_dirs(arguments), sweep=args.multirun)
    tasks = _rehearse(jobs)  # data loaded now are not loaded again
    if jobs[0]["dry_run"]:
        return _dry_run(jobs)
    try:
        if resumed:
            return 1 if _launch(resumed, show=True) is None else 0
        return _hand_over(_redirected(arguments))
    finally:
        tasks.clear()


def _check_strategy(cfg: Mapping[str, Any]) -> Collection[str]:
    """Build the strategy once, so that it refuses before anything starts; return the arguments that it leaves open."""
    from flsparse.runtime.federation import make_strategy

    try:
        return open_parameters(type(make_strategy(cfg, [])))
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _check_machine(cfg: Mapping[str, Any]) -> None:
    """Refuse a simulation with nodes that do not fit this machine."""
    from flsparse.runtime.simulation import check_resources

    try:
        if cfg["runtime"]["name"] == "simulation":
            check_resources(cfg["runtime"])
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _check_folder(folders: Sequence[str], *, sweep: bool) -> None:
    """Refuse an output_dir that holds runs or cannot be written to, before Hydra puts its own files there."""
    if folders and not folders[-1].strip("'\""):
        raise SettingsError("output_dir= is empty: it is the run's folder; leave it out for one below runs/")
    for folder in map(Path, folders[-1:]):
        jobs = sorted(each for each in folder.glob("*/") if holds_a_run(each)) if sweep else []
        for run in [folder] * holds_a_run(folder) + jobs[:1]:
            raise SettingsError(f"{folder} holds a run: choose another output_dir, or go on with it (resume={run})")
        there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise SettingsError(f"output_dir={folder}: {there} is not a folder that can be written to")


def _check_saved(cfg: Mapping[str, Any]) -> None:
    """Refuse to resume a run that is done, or that was another one when it was saved."""
    from flsparse.runtime.federation import refuse_changes

    if cfg["superlink"]:  # the checkpoint is there
        return
    folder = Path(cfg["resume"])
    try:
        state = read_checkpoint(folder)
        refuse_changes(folder, state["config"], cfg)
    except (CheckpointError, ValueError) as error:
        raise SettingsError(str(error)) from error
    done = state["round"]  # the last round's row is written before its checkpoint, and the summary after both
    if done >= cfg["num_rounds"] and (folder / "summary.json").is_file():
        raise SettingsError(f"resume={folder}: it has {done} rounds; to go on, ask for more (num_rounds={done + 10})")


def _rehearse(jobs: Sequence[Mapping[str, Any]]) -> list[object]:
    """Build each job's data, model and strategy, so that errors come before the first one starts."""
    from flsparse.app.preview import rehearse

    tasks: list[object] = []
    for cfg in jobs:
        if cfg["superlink"]:  # data and devices are elsewhere
            continue
        try:
            task = rehearse(cfg)
        except (ValueError, OSError, ImportError, RuntimeError, TypeError) as error:
            raise SettingsError((str(error).strip().splitlines() or [repr(error)])[0]) from error
        if len(jobs) == 1:
            tasks.append(task)
    return tasks


# -- running -----------------------------------------------------------------------------------------------------------


def _redirected(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with ``output_dir=X`` as Hydra's own folders: a sweep's jobs then get one each below it."""
    kept = [each for each in arguments if not each.startswith("output_dir=")]
    folders = _output_dirs(arguments)
    return kept + [f"hydra.{mode}.dir={folder}" for folder in folders[-1:] for mode in ("run", "sweep")]


def _output_dirs(arguments: Sequence[str]) -> list[str]:
    return [each.partition("=")[2] for each in arguments if each.startswith("output_dir=")]


def _hand_over(arguments: Sequence[str]) -> int:
    """Let Hydra's main run the job, or the sweep with whatever launcher and sweeper the user chose."""
    sys.argv[1:] = list(arguments)
    hydra.main(config_path="pkg://flsparse.conf", config_name="config", version_base="1.3")(_job)()
    return 0


def _job(config: DictConfig) -> float:
    """Run one job; return its final accuracy, which a sweeper may maximize."""
    settings = HydraConfig.get()
    sweeping = settings.mode == RunMode.MULTIRUN
    if sweeping:
        _console.rule(f"{settings.job.num}: {' '.join(settings.overrides.task)}", align="left")
    cfg: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    try:
        summary = _launch(cfg, show=not sweeping)
    except KeyboardInterrupt:
        if sweeping:
            _compare(Path(settings.sweep.dir))
        raise
    if summary is None:
        return math.nan if sweeping else sys.exit(1)
    accuracy = summary.get("final_accuracy")
    return math.nan if accuracy is None else float(accuracy)


def _launch(cfg: dict[str, Any], *, show: bool) -> dict[str, Any] | None:
    """Run a federation and show its table; return its summary, None when it failed."""
    from flsparse.runtime import launch

    folder = Path(cfg["output_dir"])
    _log_into(folder)
    try:
        with Display(_console) as display:
            summary: dict[str, Any] = launch(cfg, [display])
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        log.info("The run failed", exc_info=True)
        foreseen = isinstance(error, ValueError | RuntimeError | OSError | ImportError)
        first = (str(error).splitlines() or [""])[0]
        _say(
            f"flsparse: {first if foreseen else f'{type(error).__name__}: {first}'}\nThe log: {_shown(folder / _LOG)}",
            _errors,
        )
        return None
    if summary["status"] == "interrupted" and "rounds" not in summary:
        _say(f"Stopped; the run folder is where the SuperLink runs ({cfg['superlink']}), at {folder}", _errors)
        raise KeyboardInterrupt("said")
    if summary["status"] == "interrupted" and not summary["rounds"]:
        raise KeyboardInterrupt
    if summary["status"] == "interrupted":
        rounds, saved = summary["rounds"], summary.get("checkpoint_round", summary["rounds"])
        since = "" if saved == rounds else f" after round {saved}, the last that was saved"
        _say(f"Stopped after round {rounds}. To go on{since}: flsparse resume={_shown(folder)}", _errors)
        raise KeyboardInterrupt("said")
    if show and "strategy" in summary:
        _console.print(run_table(summary))
        _say(f"run folder: {_shown(folder)}")
    elif show:
        _say(f"completed; the run folder is where the SuperLink runs ({cfg['superlink']}), at {folder}")
    return summary


def _dry_run(jobs: Sequence[dict[str, Any]]) -> int:
    from flsparse.app.preview import dry_run_table

    for cfg in jobs:
        _print(cfg)
        try:
            _console.print(dry_run_table(cfg))
        except (ValueError, OSError, ModuleNotFoundError) as error:
            raise SettingsError(str(error)) from error
    return 0


def _print(cfg: dict[str, Any]) -> int:
    _console.print(OmegaConf.to_yaml(OmegaConf.create(cfg)), highlight=False)
    return 0


class Comparison(Callback):
    """Prints one table when a sweep has ended (a Hydra callback, named in ``conf/config.yaml``)."""

    started = 0.0

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the time: older jobs in the folder are not of this sweep."""
        Comparison.started = time.time() - 1.0  # file systems' clocks are coarse

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Compare the jobs; leave with exit code 1 when one of them failed."""
        done, jobs = _compare(Path(config.hydra.sweep.dir))
        if done < jobs:
            _say(f"{jobs - done} of {jobs} runs failed", _errors)
            sys.exit(1)


def _compare(sweep: Path) -> tuple[int, int]:
    """Print a table of a sweep's jobs that are done; return the numbers of jobs done and started."""

    def is_new(path: Path) -> bool:
        return path.is_file() and path.stat().st_mtime >= Comparison.started

    records = [path for path in sweep.glob("*/.hydra/overrides.yaml") if is_new(path)]
    jobs = sorted((path.parent.parent for path in records), key=_job_number)
    labels, what = _labels([list(OmegaConf.load(job / ".hydra" / "overrides.yaml")) for job in jobs])
    summaries = [read_summary(job) if is_new(job / "summary.json") else {} for job in jobs]
    done = {name: each for name, each in zip(labels, summaries, strict=True) if each.get("status") == "completed"}
    if done:
        _console.print(comparison_table(list(done.values()), list(done), what))
    _say(f"run folders: {_shown(sweep)}/\nplot: python -m flsparse.report {_shown(sweep)}")
    return len(done), len(jobs)


def _labels(overrides: Sequence[Sequence[str]]) -> tuple[list[str], str]:
    """Return labels of jobs, the overrides that they do not all share; only the values where it is one key.

    >>> _labels([["seed=1", "strategy=topk"], ["seed=1", "strategy=fedavg"]])
    (['topk', 'fedavg'], 'strategy')
    """
    shared = set.intersection(*(set(each) for each in overrides))
    own = [[each for each in job if each not in shared] for job in overrides]
    keys = {each.partition("=")[0] for job in own for each in job}
    if len(keys) == 1 and all(own):
        return [job[0].partition("=")[2] for job in own], keys.pop()
    return [" ".join(job) or f"job {number}" for number, job in enumerate(own)], "run"


def _job_number(folder: Path) -> int:
    number = folder.name.partition("-")[0]
    return int(number) if number.isdigit() else -1


def _shown(path: Path | str) -> str:
    """Return a path as the user would type it from here."""
    absolute, here = Path(path).absolute(), Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


def _say(text: str, console: Console = _console) -> None:
    """Print plain text, unwrapped and unstyled, so that it can be copied."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


class _FewOfAKind(logging.Filter):
    """Lets a message through three times, whatever its values: a federation of failing nodes would fill the screen."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the terminal is to show this record."""
        self._seen[str(record.msg)] += 1
        return self._seen[str(record.msg)] <= 3


def _log_into(folder: Path) -> None:
    """Write the log into the run folder and warnings to the terminal; Flower's own handler would tear the display."""
    folder.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(folder / _LOG, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    terminal = RichHandler(console=_errors, level=logging.WARNING, show_path=False, show_time=False)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    terminal.addFilter(_FewOfAKind())
    for handler in logging.getLogger().handlers:
        handler.close()
    logging.basicConfig(level=logging.INFO, handlers=[file, terminal], force=True)
    logging.getLogger("hydra").setLevel(logging.WARNING)  # its launcher would write about the next job
    flower = logging.getLogger("flwr")
    flower.handlers.clear()
    flower.propagate = True
