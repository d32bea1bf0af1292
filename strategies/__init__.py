"""The server's side: one Flower strategy per file."""

from collections.abc import Callable

from flsparse.configs import import_all
from flsparse.strategies.choco_sgd import ChocoSGD
from flsparse.strategies.core.compressed import Compressed
from flsparse.strategies.core.exchange import Node
from flsparse.strategies.core.loop import RoundLoop
from flsparse.strategies.core.measures import RoundReport
from flsparse.strategies.core.part import RoundPart
from flsparse.strategies.core.roster import RoundFailed
from flsparse.strategies.d_psgd import DPSGD
from flsparse.strategies.dppf import DPPF
from flsparse.strategies.fedavg import FedAvg
from flsparse.strategies.local_sgd import LocalSGD
from flsparse.strategies.malcom_psgd import MalcomPSGD
from flsparse.strategies.parts.control import ServerControl
from flsparse.strategies.parts.masks import Masks
from flsparse.strategies.parts.norm_bound import NormBound
from flsparse.strategies.parts.server_optimizer import ServerOptimizer
from flsparse.strategies.scaffold import Scaffold
from flsparse.strategies.sparsyfed import SparsyFed
from flsparse.strategies.split_ms import SplitMS
from flsparse.strategies.topk import TopK

# every module here is a method: the class in it that has the module's name
STRATEGIES: dict[str, type[RoundLoop]] = {
    strategy.name: strategy
    for module in import_all(__name__, __path__)
    for strategy in vars(module).values()
    if isinstance(strategy, type)
    and issubclass(strategy, RoundLoop)
    and strategy.__module__ == module.__name__
    and strategy.name == module.__name__.rpartition(".")[2]
}

# parts with a server side that a configuration can name; PARTS are the device's
SERVER_PARTS: dict[str, Callable[..., RoundPart]] = {
    "control_variates": ServerControl,
    "masks": Masks,
    "norm_bound": NormBound,
    "server_optimizer": ServerOptimizer,
}


def __getattr__(name: str) -> type[RoundLoop]:
    """Return a strategy by its class's name, such as one that is new here."""
    for strategy in STRATEGIES.values():
        if strategy.__name__ == name:
            return strategy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "DPPF",
    "DPSGD",
    "SERVER_PARTS",
    "STRATEGIES",
    "ChocoSGD",
    "Compressed",
    "FedAvg",
    "LocalSGD",
    "MalcomPSGD",
    "Node",
    "RoundFailed",
    "RoundLoop",
    "RoundReport",
    "Scaffold",
    "SparsyFed",
    "SplitMS",
    "TopK",
]
