"""What a node's owner allows a configuration that comes in a message: functions that it names, files that it reads."""

import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

FACTORIES = "FLSPARSE_FACTORIES"
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
