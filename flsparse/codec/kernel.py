"""The optional compiled kernel of the codec's inner loops: the same bits as NumPy, in less time.

``compiled`` is the extension module made of ``native/`` where a C compiler was there at the installation, and None
elsewhere, or with ``FLSPARSE_KERNEL=0`` in the environment.
"""

import importlib
import os
from types import ModuleType

VARIABLE = "FLSPARSE_KERNEL"
VERSION = 4  # of native/kernel.h: a checkout may still hold the kernel of another state of its source


def _load() -> tuple[ModuleType | None, str]:
    """Return the extension module, or None, and where it is or why not."""
    if os.environ.get(VARIABLE) == "0":
        return None, f"{VARIABLE}=0"
    try:
        found = importlib.import_module("flsparse.codec._kernel")
    except ImportError as error:
        return None, str(error)
    if found.VERSION != VERSION:
        return None, f"the installed kernel has version {found.VERSION} instead of {VERSION}: install flsparse again"
    return found, str(found.__file__)


compiled, _why = _load()


def in_use() -> str:
    """Return what runs the codec's inner loops: ``compiled`` and the file, or ``numpy`` and why."""
    return f"{'numpy' if compiled is None else 'compiled'}: {_why}"
