"""Where a federation runs: in this process, on Flower's Ray engine, or on a SuperLink."""

from flsparse.runtime.inprocess import InProcessGrid

__all__ = ["InProcessGrid"]
