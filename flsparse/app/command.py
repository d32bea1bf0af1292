"""``flsparse OVERRIDES...``: composes the configuration with Hydra and runs one federation, or a sweep.

With :mod:`flsparse.app.composing`, the only module that knows Hydra. Every job is composed and checked before the first
one starts; errors are one line each.
"""

import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from flsparse import __version__
from flsparse.app.checks import check_folder, check_machine, check_saved, check_strategy, rehearse_all
from flsparse.app.composing import compose_jobs, filled_in, parse_overrides, quoted, resumed_job, search_path
from flsparse.app.job import run_job
from flsparse.app.settings import SettingsError, check, without_effect
from flsparse.app.terminal import doing, errors, in_one_line, out, say, shown
from flsparse.kpi import final
from flsparse.report.comparison import Job, comparison, read_job, targets
from flsparse.report.nodes import who_gains


def run(arguments: Sequence[str]) -> int:
    """Run a command line, the program's name left out; return the exit code.

    Raises
    ------
    KeyboardInterrupt
        With an argument, it has been said where the run stands.
    """
    if "--version" in arguments:  # Hydra's parser would print its own
        print(f"flsparse {__version__}")
        return 0
    args = get_args_parser().parse_intermixed_args(arguments)
    overrides = [quoted(each) for each in args.overrides]
    arguments = [each for each in arguments if each not in args.overrides] + overrides  # Hydra wants flags first
    if args.help or args.hydra_help or args.shell_completion or args.info is not None:
        return _hand_over(arguments)
    try:
        jobs, resumed, tasks = _planned(arguments, overrides, args)
        if args.cfg and resumed:
            return _print(resumed)
        if jobs[0]["dry_run"] and not args.cfg:
            return _dry_run(jobs)
    except Exception as error:  # of any type: nothing has started
        if os.environ.get("HYDRA_FULL_ERROR") == "1" and not isinstance(error, SettingsError):
            raise
        say(f"flsparse: {in_one_line(error)}", errors)
        return 2
    try:
        if resumed:
            return 1 if run_job(resumed, show=True) is None else 0
        return _hand_over(arguments if args.cfg else _redirected(overrides, arguments))
    finally:
        tasks.clear()


def _planned(
    arguments: Sequence[str], overrides: Sequence[str], args: Any
) -> tuple[list[dict[str, Any]], dict[str, Any] | None, list[object]]:
    """Compose and check all jobs; return them, the run to go on with, if any, and what keeps its data loaded."""
    with hydra.initialize_config_module("flsparse.conf", version_base="1.3"):
        given = {each.key_or_group: each for each in parse_overrides(overrides)}
        resumed = resumed_job(list(given.values())) if "resume" in given and given["resume"].value() else None
        jobs = [resumed] if resumed else compose_jobs([*overrides, *search_path(args)], sweep=args.multirun)
    for cfg in jobs:
        check(cfg)
    if args.cfg:
        return jobs, resumed, []
    notes: list[str] = []
    with doing("loading PyTorch and Flower"):
        for cfg in jobs:
            notes += without_effect(cfg, given, check_strategy(cfg))
            check_machine(cfg)
    for note in dict.fromkeys(notes):
        say(f"flsparse: note: {note}", errors)
    if resumed:
        check_saved(resumed)
    elif not jobs[0]["dry_run"]:
        keys = ("output_dir", "hydra.sweep.dir" if args.multirun else "hydra.run.dir")
        named = next((str(given[key].value()) for key in keys if key in given), None)
        check_folder(named, sweep=args.multirun)
    return jobs, resumed, rehearse_all(jobs)


def _redirected(overrides: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Return the arguments with ``output_dir=X`` as Hydra's own folders: a sweep's jobs then get one each below it."""
    named = [each for each in overrides if each.startswith("output_dir=")]
    kept = [each for each in arguments if each not in named]
    return kept + [
        each.replace("output_dir", f"hydra.{mode}.dir", 1) for each in named[-1:] for mode in ("run", "sweep")
    ]


def _hand_over(arguments: Sequence[str]) -> int:
    """Let Hydra's main run the job, or the sweep with whatever launcher and sweeper the user chose."""
    sys.argv[1:] = list(arguments)
    hydra.main(config_path="pkg://flsparse.conf", config_name="config", version_base="1.3")(_job)()
    return 0


def _job(config: DictConfig) -> float:
    """Run one job; return the KPI that it ends with, for a sweeper."""
    settings = HydraConfig.get()
    sweeping = settings.mode == RunMode.MULTIRUN
    if sweeping:
        out.rule(f"{settings.job.num}: {' '.join(settings.overrides.task)}", align="left")
    cfg = filled_in(config)
    try:
        summary = run_job(cfg, show=not sweeping)
    except KeyboardInterrupt:
        if sweeping:
            _compare(Path(settings.sweep.dir))
        raise
    if summary is None:
        return math.nan if sweeping else sys.exit(1)
    score = final(summary)
    return math.nan if score is None else float(score)


def _dry_run(jobs: Sequence[dict[str, Any]]) -> int:
    from flsparse.app.data_table import data_table
    from flsparse.app.dry_run import dry_run_tables
    from flsparse.tasks import build_task

    for cfg in jobs:
        _print(cfg)
        if not cfg["superlink"]:
            with doing("reading all data"):
                held = data_table(build_task(cfg), by_node=bool(cfg["evaluate"].get("by_node")))
            out.print(held)
        with doing("coding the model"):
            tables = dry_run_tables(cfg)
        for table in tables:
            out.print(table)
    return 0


def _print(cfg: dict[str, Any]) -> int:
    say(OmegaConf.to_yaml(OmegaConf.create(cfg)))
    return 0


class Comparison(Callback):
    """Prints one table when a sweep has ended (a Hydra callback, named in ``conf/config.yaml``)."""

    started = 0.0

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the time: older jobs in the folder are not of this sweep."""
        Comparison.started = time.time() - 1.0  # file systems' clocks are coarse

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Compare the jobs; leave with exit code 1 when one of them failed."""
        jobs = _compare(Path(config.hydra.sweep.dir))
        if failed := sum(not job.completed for job in jobs):
            say(f"{failed} of {len(jobs)} runs failed", errors)
            sys.exit(1)


def _compare(sweep: Path) -> list[Job]:
    """Print a table of a sweep's jobs, and return them."""
    records = sweep.glob("*/.hydra/overrides.yaml")
    folders = [path.parent.parent for path in records if path.stat().st_mtime >= Comparison.started]
    jobs = [read_job(folder, since=Comparison.started) for folder in sorted(folders, key=_job_number)]
    if (table := targets(jobs)) is not None:
        out.print(table)
    for table in (comparison(jobs), *who_gains(jobs)):
        out.print(table)
    for job in jobs:
        if not job.completed:
            say(f"{job.folder.name}: {job.error}")
    say(f"run folders: {shown(sweep)}/\nplot: python -m flsparse.report {shown(sweep)}")
    return jobs


def _job_number(folder: Path) -> int:
    number = folder.name.partition("-")[0]
    return int(number) if number.isdigit() else -1
