"""Where a federation runs: in this process, on Flower's Ray engine, or on a SuperLink."""

from flsparse.runtime.federation import Observer, run_federation
from flsparse.runtime.inprocess import InProcessGrid
from flsparse.runtime.launcher import launch
from flsparse.runtime.wrappers import CountingGrid

__all__ = ["CountingGrid", "InProcessGrid", "Observer", "launch", "run_federation"]
