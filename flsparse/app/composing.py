"""From overrides on the command line to the configurations of the jobs that they describe.

With :mod:`flsparse.app.command`, the only module that knows Hydra.
"""

import itertools
import os
import re
from argparse import Namespace
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from flsparse.app.checks import count_nodes
from flsparse.app.settings import SettingsError
from flsparse.configs import did_you_mean, keys_of

_FOLDERS = ("resume", "output_dir", "dataset.root", "init", "model.weights")
# sections with constructors that refuse unknown arguments
_CHECKED = ("strategy", "codec", "dataset", "model", "objective", "parts", "link")


def compose_jobs(overrides: Sequence[str], *, sweep: bool) -> list[dict[str, Any]]:
    """Compose every job that the overrides describe, as plain values; Hydra must be initialized.

    Parameters
    ----------
    overrides : Sequence[str]
        As on the command line.
    sweep : bool
        Several values for one key are several jobs.

    Returns
    -------
    list[dict[str, Any]]
        One configuration a job, in the order in which they will run.

    Raises
    ------
    SettingsError
        An override cannot be read, or names a group, an option or a key that does not exist.
    """
    loader, parsed = GlobalHydra.instance().config_loader(), parse_overrides(overrides)
    places = [each for each in overrides if each.startswith("hydra.searchpath=")]
    groups = _groups(places)
    try:
        ours = [each for each in parsed if not _is_hydras(each)]
        for each in ours:
            if each.is_sweep_override() and not sweep:
                raise SettingsError(f"{each.input_line} names several values: add -m to run them all")
            if each.key_or_group in groups:
                _check_option(each, loader.get_group_options(each.key_or_group, config_name="config", overrides=places))
        chosen = [each for each in parsed if each.key_or_group in groups or _is_hydras(each)]
        known = {key for job in _jobs(chosen) for key in keys_of(_compose(job))}
        for each in ours:
            _check_key(each, groups, known)
        return [_compose_counted(job) for job in _jobs(parsed)]
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingsError(_first_line(error) + _missing_plugin(error)) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _missing_plugin(error: Exception) -> str:
    """Return what to install, where an option of Hydra's own groups was not found."""
    found = re.search(r"'hydra/(sweeper|launcher)/(\w+)'", str(error))
    return f": Hydra's plugin for it is not installed (pip install hydra-{found[2]}-{found[1]})" if found else ""


def _groups(places: Sequence[str] = ()) -> list[str]:
    """Return the groups of our tree, and of the user's own at further places."""
    loader = GlobalHydra.instance().config_loader()
    found = loader.get_group_options("", ObjectType.GROUP, config_name="config", overrides=list(places))
    return [group for group in found if group != "hydra"]


def quoted(override: str) -> str:
    """Return an override as Hydra reads it: the path of a folder may hold what its grammar takes for its own.

    >>> quoted("resume=runs/lr=0.1/x"), quoted("resume=runs/x"), quoted("strategy=[a")
    ("resume='runs/lr=0.1/x'", 'resume=runs/x', 'strategy=[a')
    """
    key, given, value = override.partition("=")
    if key not in _FOLDERS or not given or value[:1] in ("", "'", '"'):
        return override
    path = os.path.expanduser(value)
    try:
        read = OverridesParser.create().parse_override(f"{key}={path}").value()
    except HydraException:
        read = None
    return (
        f"{key}={path}" if read == path or path == "null" else f"{key}={QuotedString(path, Quote.single).with_quotes()}"
    )


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Read overrides as Hydra does; SettingsError where one cannot be read."""
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    parsed = []
    for each in overrides:
        try:
            parsed.append(parser.parse_override(each))
        except HydraException as error:
            key, given, value = each.partition("=")
            mend = (
                f"; a value with such characters is quoted twice: \"{key}='{value}'\"" if given else ": it is KEY=VALUE"
            )
            raise SettingsError(f"{each} is no override ({_first_line(error)}){mend}") from error
    return parsed


def resumed_job(given: Sequence[Override]) -> dict[str, Any]:
    """Return the configuration of the run that ``resume`` names, with the single values given now on top.

    It is written with all values filled in, so a key that others were filled in from cannot change alone.
    """
    folder = next(Path(str(each.value())) for each in given if each.key_or_group == "resume")
    if any(each.is_sweep_override() for each in given):
        raise SettingsError("resume= goes on with one run; it does not sweep")
    if not (folder / "config.yaml").is_file():
        inside = next((each.parent for each in sorted(folder.glob("*/config.yaml"))), None)
        mend = f"; one of the runs in it is resume={inside}" if inside else ""
        raise SettingsError(f"resume={folder}: no run folder there (no config.yaml in it){mend}")
    config = _read_config(folder)
    record, groups = folder / ".hydra" / "config.yaml", _groups()  # Hydra's own, with nothing filled in
    sources = re.findall(r"\$\{([\w.]+)\}", record.read_text(encoding="utf-8")) if record.is_file() else []
    known = keys_of(OmegaConf.to_container(config))  # type: ignore[arg-type]
    for each in given:
        key, before = each.key_or_group, OmegaConf.select(config, each.key_or_group)
        if key in groups or isinstance(before, DictConfig) or each.is_delete() or _is_hydras(each):
            raise SettingsError(
                f"{each.input_line}: a run goes on as it was; with resume= only single values may change"
            )
        _check_key(each, groups, known)
        if str(each.value()) == str(before):
            continue
        if source := next((source for source in sources if f"{key}.".startswith(f"{source}.")), None):
            raise SettingsError(
                f"{each.input_line}: a run goes on as it was, and other settings of it follow from {source}"
            )
        OmegaConf.update(config, key, each.value())
    config.update(resume=str(folder), output_dir=str(folder))
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def _read_config(folder: Path) -> DictConfig:
    """Return the configuration that a run left in its folder."""
    try:
        config = OmegaConf.load(folder / "config.yaml")
    except (OSError, ValueError, YAMLError) as error:
        raise SettingsError(f"resume={folder}: its config.yaml cannot be read ({_first_line(error)})") from error
    if not isinstance(config, DictConfig) or "strategy" not in config:
        raise SettingsError(f"resume={folder}: its config.yaml is not the configuration of a run")
    return config


def _compose(overrides: Sequence[str]) -> dict[str, Any]:
    """Return one job's configuration; its output folder is Hydra's to choose, and null here."""
    config = hydra.compose("config", [*overrides, "output_dir=null"])
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def _compose_counted(job: Sequence[str]) -> dict[str, Any]:
    """Return one job's configuration, with the number of nodes that the data have where none is given."""
    cfg = _compose(job)
    return _compose([*job, f"num_clients={count_nodes(cfg)}"]) if cfg["num_clients"] is None else cfg


def filled_in(config: DictConfig) -> dict[str, Any]:
    """Return the configuration that Hydra hands to a job as plain values, its nodes counted where none are given."""
    if config.num_clients is None:
        config.num_clients = count_nodes(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def _jobs(overrides: Sequence[Override]) -> list[list[str]]:
    """Expand a sweep into lists of plain overrides; a continuous range is left to the sweeper that draws from it."""
    choices = [
        [f"{each.get_key_element()}={value}" for value in each.sweep_string_iterator()]
        if each.is_discrete_sweep()
        else [str(each.input_line)]
        for each in overrides
        if each.is_discrete_sweep() or not each.is_sweep_override()
    ]
    return [list(job) for job in itertools.product(*choices)]


def _is_hydras(override: Override) -> bool:
    key = override.key_or_group
    return key == "output_dir" or key.startswith(("hydra.", "hydra/"))


def search_path(args: Namespace) -> list[str]:
    """Return the override that stands for ``--config-dir``, a folder with groups and options of the user's own."""
    if not args.config_dir:
        return []
    if not Path(args.config_dir).is_dir():
        raise SettingsError(f"--config-dir {args.config_dir}: there is no such folder")
    return [f"hydra.searchpath=[file://{Path(args.config_dir).resolve()}]"]


def _check_option(override: Override, options: Sequence[str]) -> None:
    values = list(override.sweep_iterator()) if override.is_discrete_sweep() else [override.value()]
    for value in itertools.chain.from_iterable(each if isinstance(each, list) else [each] for each in values):
        if value not in options:
            raise SettingsError(
                f"{override.key_or_group}={value}: it is one of {', '.join(options)}{did_you_mean(str(value), options)}"
            )


def _check_key(override: Override, groups: Sequence[str], known: Collection[str]) -> None:
    """Refuse a key that the configuration does not have; + may add keys to sections with checked arguments."""
    key = override.key_or_group
    adds = override.is_add() or override.is_force_add()
    if key in groups or key in known or (adds and key.split(".")[0] in _CHECKED):
        return
    raise SettingsError(
        f"there is no key {key}{did_you_mean(key, [*groups, *sorted(known)])} (--cfg job lists all keys)"
    )
