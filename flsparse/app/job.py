"""One job: the federation that a configuration describes, shown while it runs, and how it ended in a line or two."""

import logging
import os
import shlex
from pathlib import Path
from typing import Any

from flsparse.app.terminal import LOG, errors, in_one_line, log_into, out, say, shown
from flsparse.report.display import Display
from flsparse.report.tables import run_table

_STARTING = {  # what takes long, by runtime
    "simulation": "starting Ray, for {num_clients} nodes",
    "deployment": "starting a SuperLink and {num_clients} SuperNodes on this machine",
    "superlink": "sending the run to the SuperLink at {superlink}",
}
log = logging.getLogger(__name__)


def run_job(cfg: dict[str, Any], *, show: bool) -> dict[str, Any] | None:
    """Run a federation and show its table; return its summary, None when it failed.

    Raises
    ------
    KeyboardInterrupt
        The run was interrupted; with an argument, it has been said how to go on.
    """
    from flsparse.runtime import launch

    folder = Path(cfg["output_dir"])
    try:
        log_into(folder)
        if said := _STARTING.get("superlink" if cfg["superlink"] else cfg["runtime"]["name"]):
            say(said.format(**cfg))
        with Display(out) as display:
            summary: dict[str, Any] = launch(cfg, [display])
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        log.info("The run failed", exc_info=True)
        say(f"flsparse: {in_one_line(error)}\nThe log: {shown(folder / LOG)}", errors)
        return None
    if summary["status"] == "interrupted":
        _say_where_it_stands(summary, folder, cfg)
    if show and "strategy" in summary:
        out.print(run_table(summary))
        say(f"run folder: {shown(folder)}")
    elif show:
        say(f"completed; the run folder is where the SuperLink runs ({cfg['superlink']}), at {folder}")
    return summary


def _say_where_it_stands(summary: dict[str, Any], folder: Path, cfg: dict[str, Any]) -> None:
    """Say how to go on with an interrupted run, and raise its KeyboardInterrupt again."""
    if "rounds" not in summary:
        say(f"Stopped; the run folder is where the SuperLink runs ({cfg['superlink']}), at {folder}", errors)
        raise KeyboardInterrupt("said")
    if not summary["rounds"]:
        raise KeyboardInterrupt
    rounds, saved = summary["rounds"], summary.get("checkpoint_round", summary["rounds"])
    since = "" if saved == rounds else f" after round {saved}, the last that was saved"
    say(f"Stopped after round {rounds}. To go on{since}: flsparse {resume_override(folder)}", errors)
    raise KeyboardInterrupt("said")


def resume_override(folder: Path) -> str:
    """Return the override that goes on with a run, as a shell takes it.

    >>> resume_override(Path("runs/my run"))
    "'resume=runs/my run'"
    """
    return shlex.quote(f"resume={shown(folder)}")
