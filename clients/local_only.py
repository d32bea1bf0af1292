"""No exchange, on the device: a node trains a model of its own, from the run's common start.

w_m <- w_m - lr * grad f_m(w_m)          in each round that the node is asked in; w_m stays on the node
"""

from dataclasses import dataclass
from typing import ClassVar

from flwr.app import MetricRecord, RecordDict
from torch import nn

from flsparse.clients.core.method import Kind, LocalMethod, Visit, evaluated, register, unanswered
from flsparse.clients.parts.questions import METRICS
from flsparse.nets.arrays import Arrays, load_arrays, state_arrays

_MODEL = "local-only"


@register
@dataclass(kw_only=True)
class LocalOnlyLocal(LocalMethod):
    """Plain local training of a model that stays.

    Attributes
    ----------
    trained : bool
        The server has heard of a training of this node: its model must be here.
    """

    name: ClassVar[str] = "local_only"
    trained: bool = False

    def answer(self, kind: Kind, visit: Visit) -> RecordDict:
        """Answer TRAIN and EVALUATE with metrics of the node's own model.

        Raises
        ------
        ValueError
            The node has lost its model, or the message asks for something else.
        """
        match kind:
            case Kind.TRAIN:
                model, own = self._own(visit)
                fit = visit.fit(model, own, int(visit.config["server-round"]), [])
                visit.state.put(_MODEL, self.fit(fit, visit))
                return RecordDict({METRICS: MetricRecord(dict(fit.metrics))})
            case Kind.EVALUATE:
                return evaluated(visit, self._own(visit)[0])
        raise unanswered(self, kind)

    def _own(self, visit: Visit) -> tuple[nn.Module, Arrays]:
        """Return the node's model, and its arrays; at first the one that all start from."""
        model, kept = visit.task.model(), visit.state.get(_MODEL)
        if kept is None:
            if self.trained:
                raise ValueError(
                    "this node has lost the model that it trained, and there is no other: start a new run, or go on "
                    "with runtime=inprocess, where a checkpoint holds the nodes' models"
                )
            return model, state_arrays(model)
        load_arrays(model, kept)
        return model, kept
