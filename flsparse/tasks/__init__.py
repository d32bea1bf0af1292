"""Tasks: data sets, partitions, models, local training and evaluation."""

from flsparse.tasks.building import build_task
from flsparse.tasks.data import Data
from flsparse.tasks.task import Task

__all__ = ["Data", "Task", "build_task"]
