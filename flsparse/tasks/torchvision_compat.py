"""Imports of torchvision, also beside a CPU-only torch.

PyPI's torchvision wheel is compiled for CUDA. Beside a CPU-only torch its operator library cannot load, and the import
dies on the first operator whose schema was never registered. Data sets and classification models use none of these
operators, so declaring the two schemas the import looks for is enough.
"""

import importlib
import sys
from typing import Any

import torch

_MISSING_OPERATORS = "operator torchvision::nms does not exist"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: Any = None  # torch drops the schemas when the Library object dies


def import_torchvision(submodule: str = "") -> Any:
    """Import torchvision or one of its submodules, whichever torch it was compiled for.

    Parameters
    ----------
    submodule : str
        Such as ``"datasets"``; empty for torchvision itself.

    Returns
    -------
    module
        The imported module.

    Raises
    ------
    ImportError
        When torchvision is not installed. Any other failure of the import passes through unchanged.
    """
    global _library
    name = f"torchvision.{submodule}" if submodule else "torchvision"
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if str(error) != _MISSING_OPERATORS:
            raise
    for half_loaded in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
        del sys.modules[half_loaded]
    _library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        _library.define(schema)
    return importlib.import_module(name)
