"""What a node's owner allows a configuration that comes in a message: functions that it names, files that it reads.

And what a node may tell of its data: how many samples of each class there are.
"""

import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

FACTORIES = "FLSPARSE_FACTORIES"
TELLS = "FLSPARSE_TELL_CLASS_COUNTS"
_FILES = ("file", "test_file", "target_file", "group_file")
_OWN = ("arrays", "table", "series", "folder")  # data sets that read whatever file they are told to


def check_factories(cfg: Mapping[str, Any]) -> None:
    """Refuse functions of ``dataset=python`` and ``model=python`` that the owner of this process does not allow.

    The environment variable ``FLSPARSE_FACTORIES`` lists the allowed ones by their dotted names, with commas between.

    Raises
    ------
    ValueError
        One is not listed; the message says how to.
    """
    allowed = [each.strip() for each in os.environ.get(FACTORIES, "").split(",") if each.strip()]
    for section in ("dataset", "model"):
        settings = cfg.get(section) or {}
        name = settings.get("factory")
        if settings.get("name") == "python" and name not in allowed:
            mend = f"{FACTORIES}={','.join([*allowed, str(name)])}"
            raise ValueError(
                f"{section}.factory={name!r} came in a message, for which this process runs "
                f"{', '.join(allowed) or 'no functions'}: its owner allows it by {mend}"
            )


def tells_class_counts() -> bool:
    """Return whether the owner lets servers know how many samples of each class there are; not by default.

    Raises
    ------
    ValueError
        The environment variable ``FLSPARSE_TELL_CLASS_COUNTS`` is neither 0 nor 1.
    """
    said = os.environ.get(TELLS, "0").strip()
    if said not in ("0", "1"):
        raise ValueError(f"{TELLS}={said!r} is neither 1, to tell servers the samples of each class, nor 0")
    return said == "1"


def at_home_here(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration whose nodes are started on this machine, its data set's files below one folder.

    What it names becomes ``root``, an absolute path, and files below it; the folders of nodes with data of their own
    become absolute.
    """
    dataset, partition = dict(cfg["dataset"]), dict(cfg.get("partition") or {})
    for key in ("roots", "server_root"):
        if partition.get(key):
            partition[key] = _absolute(partition[key])
    if partition.get("kind") != "own" and dataset["name"] in (*_OWN, "python"):
        base = Path(dataset.get("root") or ".").expanduser().absolute()
        files = {key: base / Path(dataset[key]).expanduser() for key in _FILES if dataset.get(key)}
        if files:
            base = Path(os.path.commonpath([file.parent for file in files.values()]))
            dataset |= {key: str(file.relative_to(base)) for key, file in files.items()}
        if files or dataset.get("root"):
            dataset["root"] = str(base)
    return {**cfg, "dataset": dataset, "partition": partition}


def _absolute(paths: Any) -> Any:
    if isinstance(paths, str):
        return str(Path(paths).expanduser().absolute())
    return [_absolute(each) for each in paths]


def root_here(cfg: Mapping[str, Any], node: int) -> str:
    """Return the ``dataset-root`` of a node that is started on this machine; empty where it needs none."""
    partition, dataset = cfg.get("partition") or {}, cfg["dataset"]
    if partition.get("kind") == "own":
        return str(partition["roots"][node])
    return str(dataset.get("root") or "") if dataset["name"] in (*_OWN, "python") else ""


def named_factories(cfg: Mapping[str, Any]) -> str:
    """Return the functions that a configuration names, as ``FLSPARSE_FACTORIES`` lists them."""
    named = (cfg[section]["factory"] for section in ("dataset", "model") if cfg[section]["name"] == "python")
    return ",".join(map(str, named))


def at_home(cfg: Mapping[str, Any], root: str) -> dict[str, Any]:
    """Return the settings of a data set as a device reads it: from below its own root, and nowhere else.

    Parameters
    ----------
    cfg : Mapping
        The configuration that came in a message.
    root : str
        ``dataset-root`` of the device's ``--node-config``; empty: it names none.

    Raises
    ------
    ValueError
        The device names no root for a data set that reads any file, or a file is not below it.
    """
    dataset = dict(cfg["dataset"])
    own = dataset["name"] in _OWN or (cfg.get("partition") or {}).get("kind") == "own"
    if own and not root:
        raise ValueError(
            f"this node names no data for dataset={dataset['name']}: start it with --node-config "
            "\"dataset-root='/data'\""
        )
    if root and ("root" in dataset or own):  # the embedded digits have none
        dataset["root"] = root
    dataset.pop("cache", None)  # where a device writes is not a message's to say
    for key in _FILES if own else ():
        file = PurePath(str(dataset.get(key) or ""))
        if file.is_absolute() or ".." in file.parts:
            raise ValueError(f"dataset.{key}={file} leaves this node's dataset-root: name a file below it")
    if dataset["name"] == "hf" and Path(str(dataset.get("repo"))).expanduser().exists():
        raise ValueError(f"dataset.repo={dataset['repo']} is a file of this node, no repository of the hub")
    return dataset
