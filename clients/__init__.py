"""The device's side: mods for any ClientApp, and the device application that carries every method."""

from flsparse.clients.base import METHODS, Fit, LocalMethod, load_arrays, make_method, register, state_arrays
from flsparse.clients.compress import CompressMod, Limits
from flsparse.clients.device import device_app
from flsparse.clients.fedavg import FedAvgLocal
from flsparse.clients.sparsyfed import SparsyFedLocal, SparsyFedMod
from flsparse.clients.split_ms import SplitMSLocal
from flsparse.clients.state import NodeState
from flsparse.clients.topk import TopKLocal, TopKMod

__all__ = [
    "METHODS",
    "CompressMod",
    "FedAvgLocal",
    "Fit",
    "Limits",
    "LocalMethod",
    "NodeState",
    "SparsyFedLocal",
    "SparsyFedMod",
    "SplitMSLocal",
    "TopKLocal",
    "TopKMod",
    "device_app",
    "load_arrays",
    "make_method",
    "register",
    "state_arrays",
]
