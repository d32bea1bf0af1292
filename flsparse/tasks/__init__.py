"""Tasks: data sets, partitions, models, local training and evaluation."""

from flsparse.tasks.data import Data
from flsparse.tasks.task import Task, build_task

__all__ = ["Data", "Task", "build_task"]
