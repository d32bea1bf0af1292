"""Folder of a run: its configuration, metrics, checkpoint, summary and models.

=========================== ==================================================================
``config.yaml``             the composed configuration
``metrics.jsonl``           one object a round, written as soon as the round has ended
``nodes.jsonl``             one object a node and round, likewise
``summary.json``            the run in numbers; ``status`` is completed, interrupted or failed
``checkpoint/``             the state after the last round, for ``resume=``
``model.safetensors``       the trained weights, plain ``w``, by state-dict key
``node-models/``            of decentralized methods, each node's own weights, by partition id
=========================== ==================================================================
"""

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors import SafetensorError
from safetensors.numpy import save_file

from flsparse.runs.checkpoint import load_checkpoint, save_checkpoint

SCHEMA_VERSION = 1
_ROWS = ("metrics.jsonl", "nodes.jsonl")
CHECKPOINT = Path("checkpoint") / "state.safetensors"


class RunFolderError(RuntimeError):
    """The folder cannot take the run."""


def holds_a_run(path: Path) -> bool:
    """Tell whether a folder holds a run: one that goes on, or has measured something before it ended."""
    summary, metrics = path / "summary.json", path / "metrics.jsonl"
    if metrics.exists() and metrics.stat().st_size:
        return True
    try:
        return bool(json.loads(summary.read_text(encoding="utf-8"))["rounds"])
    except (FileNotFoundError, NotADirectoryError):
        return metrics.exists()  # its first round goes on
    except (ValueError, KeyError, TypeError):
        return True


class RunFolder:
    """Writes the folder of one run, as an observer of its rounds.

    Parameters
    ----------
    path : Path or str
        Made when missing.
    config : mapping
        The composed configuration, JSON-able.
    resume : bool
        Go on with the run in this folder: rounds after the checkpoint's are cut from ``metrics.jsonl`` and
        ``nodes.jsonl``, and there is no ``summary.json`` until it ends again.

    Raises
    ------
    RunFolderError
        The folder holds a run and ``resume`` is not set, or it cannot be written to.
    """

    def __init__(self, path: Path | str, config: Mapping[str, Any], *, resume: bool = False) -> None:
        self.path = Path(path)
        self._resume = resume
        if not resume and holds_a_run(self.path):
            raise RunFolderError(
                f"{self.path} holds a run: choose another output_dir, or go on with it (resume={self.path})"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not resume:
                self._clear()
            self.write_config(config)
        except OSError as error:
            raise RunFolderError(f"cannot write to the run folder {self.path}: {error}") from error

    def on_start(self, info: Mapping[str, Any]) -> None:
        """Note that the run has started; on resuming, drop the summary and the rows of rounds to run again."""
        (self.path / "summary.json").unlink(missing_ok=True)  # where there is one, the run has ended
        first = int(info.get("first_round", 1))
        for name in _ROWS:
            rows = read_rows(self.path / name) if self._resume else []
            self._write(name, "".join(_line(row) for row in rows if int(row.get("server_round", 0)) < first))

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Replace ``config.yaml``: a value that was to be found is known now."""
        self._write("config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))

    def on_round(self, row: Mapping[str, Any]) -> None:
        """Append one row to ``metrics.jsonl``; it is on disk when this returns."""
        self._append("metrics.jsonl", [row])

    def on_nodes(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append a round's rows to ``nodes.jsonl``; they are on disk when this returns."""
        if rows:
            self._append("nodes.jsonl", rows)

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        try:
            with open(self.path / name, "a", encoding="utf-8") as file:
                file.writelines(_line({"schema_version": SCHEMA_VERSION, **row}) for row in rows)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunFolderError(f"cannot write round {rows[0].get('server_round')} to {self.path}: {error}") from error

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``."""
        text = json.dumps(_clean({"schema_version": SCHEMA_VERSION, **summary}), indent=2) + "\n"
        self._write("summary.json", text)

    def save_checkpoint(self, server_round: int, state: Mapping[str, Any], node_files: Path | None = None) -> None:
        """Replace the checkpoint by the state after a round.

        Parameters
        ----------
        server_round : int
            The round.
        state : mapping
            See :func:`flsparse.runs.checkpoint.save_checkpoint`.
        node_files : Path, optional
            Folder of node state on this machine, saved with the checkpoint.
        """
        kept = self.path / _node_files(server_round)
        if node_files is not None and node_files.is_dir():
            shutil.rmtree(kept, ignore_errors=True)
            _link_tree(node_files, kept)
        save_checkpoint(self.path / CHECKPOINT, {"round": server_round, **state})
        for old in kept.parent.glob("nodes-*"):
            if old != kept:
                shutil.rmtree(old, ignore_errors=True)

    def save_model(self, weights: Mapping[str, np.ndarray], file: str = "model.safetensors") -> None:
        """Replace ``model.safetensors``, or another file of weights; ``weights`` by state-dict key."""
        partial = self.path / f"{file}.partial"
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: np.array(array, order="C") for name, array in weights.items()}, partial)
            os.replace(partial, self.path / file)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise RunFolderError(f"cannot write the model to {self.path}: {error}") from error

    def _clear(self) -> None:
        for name in ("summary.json", *_ROWS, "model.safetensors"):
            (self.path / name).unlink(missing_ok=True)
        for name in ("checkpoint", "node-models"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def _write(self, name: str, text: str) -> None:
        """Write a file whole or not at all."""
        partial = self.path / f"{name}.partial"
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, self.path / name)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise RunFolderError(f"cannot write {self.path / name}: {error}") from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a ``.jsonl`` file; a last line that was cut off is left out, a missing file is empty."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def read_checkpoint(run_folder: Path | str) -> dict[str, Any]:
    """Return the state that the run in this folder was last saved with.

    Raises
    ------
    flsparse.runs.checkpoint.CheckpointError
        There is none, or it is damaged.
    """
    return load_checkpoint(Path(run_folder) / CHECKPOINT)


def restore_node_files(run_folder: Path | str, server_round: int, node_files: Path) -> None:
    """Restore the node state saved with the checkpoint of a round; present state is replaced."""
    kept = Path(run_folder) / _node_files(server_round)
    shutil.rmtree(node_files, ignore_errors=True)
    if kept.is_dir():
        _link_tree(kept, node_files)


def _node_files(server_round: int) -> Path:
    return Path("checkpoint") / f"nodes-{server_round}"


def _link_tree(source: Path, target: Path) -> None:
    """Copy a folder by hard links: its files are never changed in place, only replaced."""

    def link(here: str, there: str) -> None:
        try:
            os.link(here, there)
        except OSError:  # another file system, or one without links
            shutil.copy2(here, there)

    shutil.copytree(source, target, copy_function=link)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(_clean(row)) + "\n"


def _clean(value: Any) -> Any:
    """Return a value as strict JSON can hold it: no NumPy scalars, and null for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): _clean(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
