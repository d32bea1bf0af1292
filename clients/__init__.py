"""The device's side: mods for any ClientApp, and the device application that carries every method."""

from flsparse.clients.choco_sgd import ChocoSGDLocal
from flsparse.clients.core.compress import CompressMod, Limits
from flsparse.clients.core.device import device_app
from flsparse.clients.core.fit import Fit
from flsparse.clients.core.method import METHODS, LocalMethod, make_method, register
from flsparse.clients.core.part import PARTS, Part, register_part
from flsparse.clients.core.state import NodeState
from flsparse.clients.d_psgd import DPSGDLocal
from flsparse.clients.dppf import DPPFLocal
from flsparse.clients.fedavg import FedAvgLocal
from flsparse.clients.local_sgd import LocalSGDLocal
from flsparse.clients.malcom_psgd import MalcomPSGDLocal
from flsparse.clients.scaffold import ScaffoldLocal
from flsparse.clients.sparsyfed import SparsyFedLocal, SparsyFedMod
from flsparse.clients.split_ms import SplitMSLocal
from flsparse.clients.topk import TopKLocal, TopKMod
from flsparse.configs import import_all
from flsparse.nets.arrays import load_arrays, state_arrays

import_all(__name__, __path__)  # every method registers itself
import_all(f"{__name__}.parts", [f"{path}/parts" for path in __path__])  # and every part

__all__ = [
    "METHODS",
    "PARTS",
    "ChocoSGDLocal",
    "CompressMod",
    "DPPFLocal",
    "DPSGDLocal",
    "FedAvgLocal",
    "Fit",
    "Limits",
    "LocalMethod",
    "LocalSGDLocal",
    "MalcomPSGDLocal",
    "NodeState",
    "Part",
    "ScaffoldLocal",
    "SparsyFedLocal",
    "SparsyFedMod",
    "SplitMSLocal",
    "TopKLocal",
    "TopKMod",
    "device_app",
    "load_arrays",
    "make_method",
    "register",
    "register_part",
    "state_arrays",
]
