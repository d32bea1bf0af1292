"""The Mean Valley of the average, measured by the nodes (:mod:`flsparse.nets.valley`)."""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MessageType, MetricRecord
from torch import nn

from flsparse.clients.parts.questions import MAX_VALLEY_STEPS, METRICS, NUM_EXAMPLES, VALLEY
from flsparse.codec import Layer
from flsparse.configs import did_you_mean
from flsparse.nets.arrays import Arrays
from flsparse.nets.valley import Valley, valley_of_curves
from flsparse.ranges import within
from flsparse.strategies.core.exchange import Reply
from flsparse.strategies.core.part import Round, RoundPart
from flsparse.strategies.parts.mirror import ServerMirror
from flsparse.wire.messages import CONTROL, to_record


class MeanValley(RoundPart):
    """Walks from the average through each worker, every few rounds and in the last one.

    Parameters
    ----------
    every : int
        Rounds between measurements; 0: never. One exchange for the average and one for each worker.
    samples, steps, step, kappa : int, int, float, float
        Examples of each node, points of each walk (at most 200), their spacing in normalized coordinates, and the wall.
    names : list[str], optional
        Walk along these parameters alone; default: all.
    mirror : ServerMirror
        Keeps each worker's last model.

    Attributes
    ----------
    found : Valley or None
        The last measurement, with the loss along each direction.
    """

    name = "valley"
    measures = ("mean_valley", "valley_reached", "valley_step", "valley_losses")

    def __init__(
        self,
        *,
        every: int,
        samples: int,
        steps: int,
        step: float,
        kappa: float,
        names: list[str] | None,
        mirror: ServerMirror,
    ) -> None:
        within("[0, inf)", valley_every=every, valley_samples=samples)
        within(f"[1, {MAX_VALLEY_STEPS}]", valley_steps=steps)
        within("(1, inf)", valley_kappa=kappa)
        within("(0, inf)", valley_step=step)
        self.every, self.samples, self.steps, self.step, self.kappa = every, samples, steps, step, kappa
        self.names, self.workers = names or [], mirror.memory
        self.found: Valley | None = None
        self._accepted: list[int] = []

    def bind(self, model: nn.Module) -> None:
        """Refuse names that are no parameter of the model."""
        known = [name for name, _ in model.named_parameters()]
        for name in self.names:
            if name not in known:
                raise ValueError(f"valley_names: the model has no parameter {name!r}{did_you_mean(name, known)}")

    def open(self, round: Round) -> None:
        """Forget the workers of the round before."""
        self._accepted = []

    def accept(self, reply: Reply, layers: list[Layer], round: Round) -> None:
        """Note a worker to walk through."""
        self._accepted.append(reply.node.partition)

    def conclude(self, arrays: ArrayRecord, round: Round) -> ArrayRecord:
        """Measure the valley when it is due."""
        if self.every and (round.number % self.every == 0 or round.number == round.of):
            self._measure(arrays, round)
            round.wire.downlink.keep({node.held for node in round.nodes.values()})  # nobody holds a point of the walks
        return arrays

    def _measure(self, arrays: ArrayRecord, round: Round) -> None:
        """Let the nodes walk from the average through each worker, and put their losses together."""
        at_average = self._losses(arrays, "average", round)
        workers = {p: self.workers.workers[p] for p in sorted(self._accepted)}
        walks = {p: self._losses(to_record(_model_of(worker)), "worker", round) for p, worker in workers.items()}
        curves = {p: walk for p, walk in walks.items() if walk}
        if not at_average or not curves:
            return
        self.found = valley_of_curves(at_average[0], list(curves.values()), kappa=self.kappa, step=self.step)
        round.metrics.update(
            {
                "mean_valley": self.found.mean_valley,
                "valley_reached": float(np.mean(self.found.reached)),
                "valley_step": self.step,
                "valley_losses": {
                    str(p): [loss for _, loss in curve] for p, curve in zip(curves, self.found.curves, strict=True)
                },
            }
        )

    def _losses(self, model: ArrayRecord, point: str, round: Round) -> list[float]:
        """Return the nodes' mean losses at the average, or along the walk to a worker; nothing where none came."""
        asked = ConfigRecord({"samples": self.samples, "step": self.step, "steps": self.steps, "point": point})
        asked["names"] = list(self.names)
        expected = 1 if point == "average" else self.steps
        rows, weights = [], []
        for reply in round.ask(f"{MessageType.EVALUATE}.{VALLEY}", model, asked, hold=False):
            weighed, row = round.weigh(reply, NUM_EXAMPLES), _losses_of(reply, expected)
            if weighed is not None and row is not None:
                rows.append(row)
                weights.append(weighed[0])
        return [float(x) for x in np.average(rows, axis=0, weights=weights)] if rows else []


def _model_of(arrays: Arrays) -> Arrays:
    return {name: array for name, array in arrays.items() if not name.startswith(CONTROL)}


def _losses_of(reply: Reply, expected: int) -> np.ndarray | None:
    """Return the losses a node measured; None where they are not the numbers that were asked for."""
    found = reply.content.metric_records.get(METRICS, MetricRecord()).get("losses")
    losses = np.asarray(found if isinstance(found, list) else [], np.float64)
    return losses if losses.size == expected and not np.isnan(losses).any() else None
