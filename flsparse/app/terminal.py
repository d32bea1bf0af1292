"""What a run says: lines on the terminal, what is being done, and a log in the run folder whose warnings are shown."""

import logging
import os
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from rich.console import Console

LOG = "flsparse.log"


class _Console(Console):
    """A console whose reader may go away, as ``head`` does: what nobody reads does not stop a run."""

    def on_broken_pipe(self) -> None:
        """Print nothing more; the interpreter's last flush must not fail either."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


out = _Console()
errors = _Console(stderr=True)


def say(text: str, console: Console = out) -> None:
    """Print plain text, unwrapped and unstyled, so that it can be copied."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def doing(text: str) -> AbstractContextManager[object]:
    """Show on a terminal what is being done, for as long as it takes."""
    return out.status(text, spinner="line") if out.is_terminal else nullcontext()


def shown(path: Path | str) -> str:
    """Return a path as the user would type it from here."""
    absolute, here = Path(path).absolute(), Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


def in_one_line(error: BaseException) -> str:
    """Return an error's first line, with its type where the message alone would not be understood.

    >>> in_one_line(ValueError("seed=-1 is impossible")), in_one_line(KeyError("seed")), in_one_line(MemoryError())
    ('seed=-1 is impossible', "KeyError: 'seed'", 'MemoryError')
    """
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    foreseen = isinstance(error, ValueError | RuntimeError | OSError | ImportError) and first
    return first if foreseen else f"{type(error).__name__}: {first}".removesuffix(": ")


class _Terminal(logging.Handler):
    """Shows warnings, a line each, above the live display.

    A message comes through three times, whatever its values: a federation of failing nodes would fill the screen.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._seen: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, without its traceback: that is in the log."""
        if record.name == "flsparse.runtime.inprocess":  # of the node's own; the server says which node it drops
            return
        self._seen[str(record.msg)] += 1
        told = {1: record.getMessage(), 2: record.getMessage(), 3: record.getMessage(), 4: f"more of this are in {LOG}"}
        if text := told.get(self._seen[str(record.msg)]):
            say(f"{record.levelname.lower()}: {text}", out if out.is_terminal and errors.is_terminal else errors)


def log_into(folder: Path) -> None:
    """Write the log into the run folder and warnings to the terminal; Flower's own handler would tear the display."""
    folder.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(folder / LOG, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for handler in logging.getLogger().handlers:
        handler.close()
    logging.basicConfig(level=logging.INFO, handlers=[file, _Terminal()], force=True)
    logging.getLogger("hydra").setLevel(logging.WARNING)  # its launcher would write about the next job
    flower = logging.getLogger("flwr")
    flower.handlers.clear()
    flower.propagate = True
