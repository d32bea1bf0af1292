"""The server's side: one Flower strategy per file."""

from flsparse.strategies.base import RoundFailed, RoundLoop, RoundReport
from flsparse.strategies.compressed import Compressed
from flsparse.strategies.fedavg import FedAvg
from flsparse.strategies.sparsyfed import SparsyFed
from flsparse.strategies.split_ms import SplitMS
from flsparse.strategies.topk import TopK
from flsparse.strategies.wire import Node

STRATEGIES: dict[str, type[RoundLoop]] = {strategy.name: strategy for strategy in (FedAvg, TopK, SparsyFed, SplitMS)}

__all__ = [
    "STRATEGIES",
    "Compressed",
    "FedAvg",
    "Node",
    "RoundFailed",
    "RoundLoop",
    "RoundReport",
    "SparsyFed",
    "SplitMS",
    "TopK",
]
