"""All data in one place, on the device: plain local training on the data of all nodes together.

w <- w - lr * grad (sum_m n_m f_m(w) / sum_m n_m)          local_epochs times over all data, from the received w
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from flsparse.clients.core.method import LocalMethod, Visit, register


@register
@dataclass(kw_only=True)
class PooledLocal(LocalMethod):
    """Plain local training on everything that the nodes of a divided data set hold."""

    name: ClassVar[str] = "pooled"

    def data(self, visit: Visit) -> Any:
        """Return the training data of all nodes.

        Raises
        ------
        ValueError
            The node's task has no more than its own.
        """
        if (pooled := getattr(visit.task, "pooled_data", None)) is None:
            raise ValueError(
                "strategy=pooled needs a task with pooled_data(), of all nodes: this one has its own alone"
            )
        return pooled()
