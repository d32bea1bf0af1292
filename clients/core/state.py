"""State of a node across rounds.

A ClientApp may run in a fresh process for every message, so only ``context.state`` and files survive. Small state
lives in ``context.state``; large state and references are files below one folder, keyed by run and node, bounded, and
written whole or not at all. A missing file is a missing state: callers start without one and never fail on it.
"""

import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from flsparse.codec import Reference

STATE_DIR = "FLSPARSE_STATE_DIR"
SPILL_BYTES = 256 * 1024  # context.state is serialized with every message
_IDLE_S = 24 * 3600.0  # a run that has stored nothing for so long has ended
_MEMORY_BYTES = 256 * 1024 * 1024
_KEY = "flsparse"

_memory: OrderedDict[Path, Reference] = OrderedDict()  # last used references of this process
_room: dict[tuple[Path, int], int] = {}  # bytes that this process may add before it looks at the disk again
_WRITERS = 8  # processes that share what is free
_lock = threading.Lock()


def is_ours(key: str) -> bool:
    """Tell whether a record of ``context.state`` is ours."""
    return key.partition(".")[0] == _KEY


def state_dir() -> Path:
    """Return the folder for state that outlives a process: ``$FLSPARSE_STATE_DIR``, else ``~/.cache/flsparse``."""
    return Path(os.environ.get(STATE_DIR) or Path.home() / ".cache" / "flsparse")


class NodeState:
    """Arrays, values and references of one node in one run.

    Parameters
    ----------
    context : Context
        Flower's context of the node.
    max_bytes : int
        Bound of the state of all nodes of all runs on this machine's disk, in bytes; the oldest references go first.
        0: none.
    """

    def __init__(self, context: Context, max_bytes: int = 1024**3) -> None:
        self._context = context
        self._run_dir = state_dir() / f"run-{context.run_id}"
        self._max_bytes = max_bytes or sys.maxsize
        if _KEY not in context.state:
            context.state[_KEY] = ConfigRecord()

    @property
    def values(self) -> ConfigRecord:
        """Plain values (numbers, strings, bytes) that survive; write to it as to a dict."""
        return self._context.state.config_records[_KEY]

    def get(self, name: str) -> dict[str, np.ndarray] | None:
        """Return the arrays stored under a name, or None."""
        record = self._context.state.array_records.get(f"{_KEY}.{name}")
        if record is not None:
            return {key: array.numpy() for key, array in record.items()}
        return _read(self._file(name))

    def put(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Store arrays under a name, in place of older ones; where that fails, the older ones stay.

        Raises
        ------
        ValueError
            With the node's other files, they are larger than what the owner allows all state together.
        OSError
            The disk is full.
        """
        path, key = self._file(name), f"{_KEY}.{name}"
        size = sum(a.nbytes for a in arrays.values())
        others = sum(file.stat().st_size for file in path.parent.glob("*.safetensors") if file != path)
        if size + others > self._max_bytes:
            raise ValueError(
                f"this node is to keep {size + others} bytes, more than its owner allows "
                f"(max_state_bytes={self._max_bytes})"
            )
        if size <= SPILL_BYTES:
            self._context.state[key] = ArrayRecord({k: Array(np.asarray(v)) for k, v in arrays.items()})
            path.unlink(missing_ok=True)
            return
        new = not path.exists()
        _write(path, arrays)
        self._context.state.pop(key, None)
        if new:
            self._trim(path)

    def drop(self, name: str) -> None:
        """Forget the arrays under a name."""
        self._context.state.pop(f"{_KEY}.{name}", None)
        self._file(name).unlink(missing_ok=True)

    def reference(self, reference_id: str) -> Reference | None:
        """Return the reference with this id if any node of this run stored it on this machine, or None.

        A damaged file is removed, so that :attr:`held` does not name it and the next :meth:`hold` writes it again.
        """
        path = self._reference_file(reference_id)
        with _lock:
            if path in _memory:
                _memory.move_to_end(path)
                return _memory[path]
        with suppress(ValueError):  # values that are not finite
            arrays = _read(path)
            if arrays is not None and (reference := Reference.of_marked(arrays)).id == reference_id:
                self._remember(path, reference)
                return reference
        path.unlink(missing_ok=True)
        return None

    def hold(self, reference: Reference) -> None:
        """Store a reference, once for all nodes of the run on this machine, and note that this node holds it.

        A reference larger than the owner allows, or than the disk has room for, is not kept: the node trains on it,
        holds none, and the server will send full models.
        """
        self.values["held"] = ""
        if reference.nbytes > self._max_bytes:
            return
        path = self._reference_file(reference.id)
        with suppress(OSError, SafetensorError):  # a full disk, or complex128, which the format lacks
            if not path.exists():
                _write(path, reference.marked())
                self._trim(path)
            self._remember(path, reference)
            self.values["held"] = reference.id

    @property
    def held(self) -> str:
        """Id of the reference this node holds and still has, or the empty string."""
        held = str(self.values.get("held", ""))
        return held if held and self._reference_file(held).exists() else ""

    def _file(self, name: str) -> Path:
        return self._run_dir / f"node-{self._context.node_id}" / f"{name}.safetensors"

    def _reference_file(self, reference_id: str) -> Path:
        if not reference_id.isalnum():
            raise ValueError(f"reference id {reference_id!r} is not hexadecimal")
        return self._run_dir / "references" / f"{reference_id}.safetensors"

    def _remember(self, path: Path, reference: Reference) -> None:
        with _lock:
            _memory[path] = reference
            _memory.move_to_end(path)
            while len(_memory) > 1 and sum(r.nbytes for r in _memory.values()) > _MEMORY_BYTES:
                _memory.popitem(last=False)

    def _trim(self, newest: Path) -> None:
        """Remove runs that have been idle for long, then the oldest references, until all is within the bound."""
        place = (state_dir(), self._max_bytes)
        with _lock:
            _room[place] = _room.get(place, 0) - newest.stat().st_size
            if _room[place] > 0:
                return
        files: dict[Path, os.stat_result] = {}
        for file in state_dir().rglob("*.safetensors"):
            with suppress(FileNotFoundError):  # another node's, which replaces it just now
                files[file] = file.stat()
        excess = sum(stat.st_size for stat in files.values()) - self._max_bytes
        _room[place] = max(0, -excess) // _WRITERS
        if excess <= 0:
            return
        used: dict[Path, float] = {}
        for file, stat in files.items():
            run = state_dir() / file.relative_to(state_dir()).parts[0]
            used[run] = max(used.get(run, 0.0), stat.st_mtime)
        idle = {run for run, last in used.items() if run != self._run_dir and time.time() - last > _IDLE_S}
        stale = [file for file in files if not idle.isdisjoint(file.parents)]
        references = [file for file in files if file.parent.name == "references" and file not in stale]
        for group in (stale, references):
            for file in sorted(group, key=lambda f: files[f].st_mtime_ns):
                if excess <= 0:
                    return
                if file != newest:
                    excess -= files[file].st_size
                    file.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, np.ndarray] | None:
    try:
        stored = load_file(path)
    except (FileNotFoundError, SafetensorError):
        return None
    return {key.partition("/")[2]: stored[key] for key in sorted(stored)}


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.partial")
    try:
        # safetensors does not keep the order of names, so each carries its position
        numbered = {f"{i:06}/{name}": np.asarray(a, order="C") for i, (name, a) in enumerate(arrays.items())}
        partial.write_bytes(save(numbered))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
