"""The server's side: one Flower strategy per file."""

from flsparse.strategies.choco_sgd import ChocoSGD
from flsparse.strategies.core.compressed import Compressed
from flsparse.strategies.core.exchange import Node
from flsparse.strategies.core.loop import RoundFailed, RoundLoop, RoundReport
from flsparse.strategies.d_psgd import DPSGD
from flsparse.strategies.dppf import DPPF
from flsparse.strategies.fedavg import FedAvg
from flsparse.strategies.local_sgd import LocalSGD
from flsparse.strategies.malcom_psgd import MalcomPSGD
from flsparse.strategies.scaffold import Scaffold
from flsparse.strategies.sparsyfed import SparsyFed
from flsparse.strategies.split_ms import SplitMS
from flsparse.strategies.topk import TopK

STRATEGIES: dict[str, type[RoundLoop]] = {
    strategy.name: strategy
    for strategy in (FedAvg, TopK, SparsyFed, LocalSGD, Scaffold, DPPF, MalcomPSGD, ChocoSGD, DPSGD, SplitMS)
}

__all__ = [
    "DPPF",
    "DPSGD",
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
