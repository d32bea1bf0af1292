"""The server's side: one Flower strategy per file."""

from flsparse.strategies.base import RoundFailed, RoundLoop, RoundReport
from flsparse.strategies.compressed import Compressed
from flsparse.strategies.dppf import DPPF
from flsparse.strategies.fedavg import FedAvg
from flsparse.strategies.local_sgd import LocalSGD
from flsparse.strategies.scaffold import Scaffold
from flsparse.strategies.sparsyfed import SparsyFed
from flsparse.strategies.topk import TopK
from flsparse.strategies.wire import Node

STRATEGIES: dict[str, type[RoundLoop]] = {
    strategy.name: strategy for strategy in (FedAvg, TopK, SparsyFed, LocalSGD, Scaffold, DPPF)
}

__all__ = [
    "DPPF",
    "STRATEGIES",
    "Compressed",
    "FedAvg",
    "LocalSGD",
    "Node",
    "RoundFailed",
    "RoundLoop",
    "RoundReport",
    "Scaffold",
    "SparsyFed",
    "TopK",
]
