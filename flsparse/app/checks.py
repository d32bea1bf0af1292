"""Checks that look beyond the configuration: at strategies, this machine, folders, checkpoints and data.

They come before anything starts, and refuse in one line: :class:`flsparse.app.settings.SettingsError`.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from flsparse.app.settings import SettingsError
from flsparse.app.terminal import doing, errors, say
from flsparse.configs import lookup, open_parameters, sampled_nodes
from flsparse.report.tables import human_bytes
from flsparse.runs.checkpoint import CheckpointError
from flsparse.runs.folder import holds_a_run, read_checkpoint

if TYPE_CHECKING:
    from flsparse.app.rehearsal import Rehearsed


def count_nodes(cfg: Mapping[str, Any]) -> int:
    """Return the number of nodes that the data have, for a configuration that says none.

    Raises
    ------
    SettingsError
        They do not say, or are elsewhere.
    """
    kind = lookup(cfg, "partition.kind")
    if cfg["superlink"]:
        raise SettingsError("num_clients=null is impossible with superlink=: the data are on nodes that are waited for")
    if kind == "own":
        return len(own_roots(cfg))
    if kind != "natural":
        raise SettingsError(
            f"num_clients=null is impossible: partition.kind={kind} divides the data among so many nodes"
        )
    with doing("reading the data"):
        from flsparse.tasks import build_task

        return build_task(cfg).num_nodes


def own_roots(cfg: Mapping[str, Any]) -> Sequence[str]:
    """Return the folder of each node of ``partition.kind=own`` that runs on this machine.

    Raises
    ------
    SettingsError
        They are not given.
    """
    roots = lookup(cfg, "partition.roots")
    if not isinstance(roots, Sequence) or isinstance(roots, str) or not roots:
        raise SettingsError(
            "partition.kind=own needs the folder of each node on this machine, partition.roots=[DIR,DIR]; devices name "
            "theirs by dataset-root in their --node-config"
        )
    return roots


def check_strategy(cfg: Mapping[str, Any]) -> Collection[str]:
    """Build the strategy once, so that it refuses before anything starts; return the arguments that it leaves open."""
    from flsparse.runtime.making import make_strategy

    return open_parameters(type(make_strategy(cfg, [])))


def check_machine(cfg: Mapping[str, Any]) -> None:
    """Refuse a simulation without Ray, or with nodes that do not fit this machine."""
    if cfg["runtime"]["name"] == "simulation":
        from flsparse.runtime.simulation import check_resources

        check_resources(cfg["runtime"])


def check_folder(folder: str | None, *, sweep: bool) -> None:
    """Refuse an output_dir that holds runs or cannot be written to, before Hydra puts its own files there."""
    if folder is None:
        folder, name = "runs", "the run folder's place"
    elif not folder.strip():
        raise SettingsError("output_dir= is empty: it is the run's folder; leave it out for one below runs/")
    else:
        name = f"output_dir={folder}"
        path = Path(folder)
        jobs = sorted(each for each in path.glob("*/") if holds_a_run(each)) if sweep else []
        for run in [path] * holds_a_run(path) + jobs[:1]:
            raise SettingsError(f"{folder} holds a run: choose another output_dir, or go on with it (resume={run})")
    there = next(each for each in (Path(folder), *Path(folder).absolute().parents) if each.exists())
    _check_writable(there, f"{name}: {there} is not a folder that can be written to", "output_dir=FOLDER names another")


def _check_writable(folder: Path, what: str, mend: str) -> None:
    """Write a megabyte into a folder, in a file without a name: permissions, a full disk, odd file systems show."""
    try:
        with TemporaryFile(dir=folder) as probe:
            probe.write(bytes(1 << 20))
            probe.flush()
    except OSError as error:
        raise SettingsError(f"{what} ({error.strerror or error}); {mend}") from error


def check_saved(cfg: Mapping[str, Any]) -> None:
    """Refuse to resume a run that is done, or that was another one when it was saved."""
    from flsparse.runtime.federation import refuse_changes

    if cfg["superlink"]:  # the checkpoint is there
        return
    folder = Path(cfg["resume"])
    try:
        state = read_checkpoint(folder)
        refuse_changes(folder, state["config"], cfg)
    except CheckpointError as error:
        raise SettingsError(str(error)) from error
    done = state["round"]  # the last round's row is written before its checkpoint, and the summary after both
    if done >= cfg["num_rounds"] and (folder / "summary.json").is_file():
        raise SettingsError(
            f"resume={folder}: it has {done} round{'s' * (done != 1)}; to go on, ask for more (num_rounds={done + 10})"
        )
    _check_writable(folder, f"resume={folder}: the folder cannot be written to", "make room, or make it yours")


def rehearse_all(jobs: Sequence[Mapping[str, Any]]) -> list[object]:
    """Rehearse every job, and say what runs; return what keeps the data of a single one loaded."""
    here = [cfg for cfg in jobs if not cfg["superlink"]]  # else data and devices are elsewhere
    if not here:
        return []
    noted: set[str] = set()
    for number, cfg in enumerate(here, 1):
        found = _rehearsed(cfg, f"run {number} of {len(here)}: " if len(here) > 1 else "")
        for note in found.task.notes:
            if note not in noted:
                noted.add(note)
                say(f"flsparse: note: {note}", errors)
        if len(jobs) == 1:
            say(_described(cfg, found))
            return [found.task]
    say(f"{len(jobs)} runs; each can be trained and evaluated")
    return []


def _rehearsed(cfg: Mapping[str, Any], which: str) -> "Rehearsed":
    with doing("loading PyTorch and Flower") as tell:
        from flsparse.app.rehearsal import rehearse

        return rehearse(cfg, lambda text: tell(which + text))


def _described(cfg: Mapping[str, Any], found: "Rehearsed") -> str:
    """Return what runs, in four lines."""
    sizes, parameters = found.sizes, found.parameters
    data = f"{cfg['dataset']['name']}, {found.evaluated:,} samples to evaluate on"
    each = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    rounds, dense = f"{cfg['num_rounds']} round{'s' * (cfg['num_rounds'] != 1)}", human_bytes(4 * parameters)
    return "\n".join(
        (
            f"{cfg['strategy']['name']}: {rounds}, {sampled_nodes(cfg)} of {len(sizes)} nodes in each",
            f"data:  {data}; to train on, each node has {each}",
            f"model: {cfg['model']['name']}, {parameters:,} parameters, {dense} dense",
            "check: one training step and one evaluation work",
        )
    )
