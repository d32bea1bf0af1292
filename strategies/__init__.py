"""The server's side: one Flower strategy per file."""

from flsparse.strategies.base import RoundFailed, RoundLoop, RoundReport
from flsparse.strategies.choco_sgd import ChocoSGD
from flsparse.strategies.compressed import Compressed
from flsparse.strategies.d_psgd import DPSGD
from flsparse.strategies.fedavg import FedAvg
from flsparse.strategies.malcom_psgd import MalcomPSGD
from flsparse.strategies.sparsyfed import SparsyFed
from flsparse.strategies.topk import TopK
from flsparse.strategies.wire import Node

STRATEGIES: dict[str, type[RoundLoop]] = {
    strategy.name: strategy for strategy in (FedAvg, TopK, SparsyFed, MalcomPSGD, ChocoSGD, DPSGD)
}

__all__ = [
    "DPSGD",
    "STRATEGIES",
    "ChocoSGD",
    "Compressed",
    "FedAvg",
    "MalcomPSGD",
    "Node",
    "RoundFailed",
    "RoundLoop",
    "RoundReport",
    "SparsyFed",
    "TopK",
]
