"""DPPF on the server (Dimlioglu and Choromanska, UAI 2026, arXiv 2507.20424): wide valleys from few exchanges.

    x_A      <- mean over the sampled of x_m                       the model that is evaluated and exported
    lambda_t  = (lambda/2) (1 - cos(pi t/T))                       increasing: the paper's main schedule
              = (lambda/2) (1 + cos(pi t/T)), or lambda            decreasing, constant
    x_m      <- x_m + (x_A - x_m)(alpha - lambda_t/||x_m - x_A||)  on the device, before its local steps

The workers' distance to the average converges to ``lambda / alpha``; without the push it collapses. That width is set
as ``lambda_`` or, scale-free, as ``relative_width = lambda / (alpha ||x_A||)``.

Partial participation is not in the paper. Here, sampled workers pull and push, the mean is over the sampled, and the
others keep their ``x_m`` until their turn comes.

Coded uplinks are coded against a mirror of each ``x_m`` that both sides hold (see flsparse.wire.mirror): the server
keeps one dense model a worker, by nature of the method.
"""

from collections.abc import Iterable, Mapping
from logging import INFO
from math import cos, pi

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from torch import nn

from flsparse._flwr import log
from flsparse.clients.core.method import LocalMethod
from flsparse.clients.dppf import DPPFLocal
from flsparse.clients.parts.questions import MAX_VALLEY_STEPS, METRICS, NUM_EXAMPLES, VALLEY
from flsparse.clients.sparsyfed import Beta, Threshold
from flsparse.clients.topk import prune
from flsparse.codec import Layer
from flsparse.configs import did_you_mean
from flsparse.nets.valley import Valley, valley_of_curves
from flsparse.ranges import one_of, within
from flsparse.sparsity import check_layers, sparsity_ramp
from flsparse.strategies.core.exchange import Node, Reply
from flsparse.strategies.core.server_optimizer import Arrays
from flsparse.strategies.fedavg import Weighted
from flsparse.strategies.local_sgd import LocalSGD
from flsparse.strategies.scaffold import ServerControl
from flsparse.wire.messages import CONTROL, Scalar, to_record

SCHEDULES = ("constant", "increasing", "decreasing")


def push_schedule(schedule: str, server_round: int, num_rounds: int) -> float:
    """Return the fraction of the push in a round, in [0, 1].

    Examples
    --------
    >>> [[round(push_schedule(s, t, 4), 2) for t in (1, 2, 4)] for s in SCHEDULES]
    [[1.0, 1.0, 1.0], [0.15, 0.5, 1.0], [0.85, 0.5, 0.0]]
    """
    if schedule == "constant":
        return 1.0
    sign = -1 if schedule == "increasing" else 1
    return (1 + sign * cos(pi * server_round / num_rounds)) / 2


class DPPF(LocalSGD):
    """Pull-push local SGD.

    Parameters
    ----------
    alpha : float (default: 0.9)
        The pull, in (0, 1].
    lambda_ : float, optional
        The push, at least 0, in the units of the weights; default: from ``relative_width``.
    relative_width : float (default: 0.05)
        The distance workers converge to, as a fraction of the average's norm; at least 0.
    schedule : {"increasing", "constant", "decreasing"} (default: "increasing")
        Of the push, over the rounds.
    uplink_density : float (default: 0.15)
        Fraction of the weights that a coded reply changes in the worker's mirror, in (0, 1]; no use with values "raw".
    control_variates : bool (default: False)
        Correct the local steps as SCAFFOLD does; doubles what travels.
    sparsity : float (default: 0.0)
        Above 0, workers train SparsyFed's layers and are pruned to this fraction of zeros, as is the average.
    ramp, beta, activation_pruning, activation_threshold
        Of SparsyFed, with ``sparsity``.
    valley_every : int (default: 0)
        Rounds between measurements of the Mean Valley by the nodes, and in the last round; 0: never. One exchange for
        the average and one for each worker, which every worker is sent.
    valley_samples, valley_steps, valley_step, valley_kappa : int, int, float, float (default: 200, 20, 0.1, 2.0)
        Examples of each node, points of each walk (at most 200), their spacing in normalized coordinates, and the wall.
    valley_names : list[str], optional
        Walk along these parameters alone; default: all.
    **local_sgd
        Parameters of :class:`LocalSGD`.

    Attributes
    ----------
    workers : dict[int, dict[str, np.ndarray]]
        What the server last got of each worker, by partition: its mirror.
    valley : Valley or None
        The last measurement, with the loss along each direction.
    """

    name = "dppf"

    def __init__(
        self,
        *,
        alpha: float = 0.9,
        lambda_: float | None = None,
        relative_width: float = 0.05,
        schedule: str = "increasing",
        uplink_density: float = 0.15,
        control_variates: bool = False,
        sparsity: float = 0.0,
        ramp: bool = True,
        beta: Beta = 1.25,
        activation_pruning: bool = True,
        activation_threshold: Threshold = "frozen",
        valley_every: int = 0,
        valley_samples: int = 200,
        valley_steps: int = 20,
        valley_step: float = 0.1,
        valley_kappa: float = 2.0,
        valley_names: list[str] | None = None,
        **local_sgd: object,
    ) -> None:
        super().__init__(**local_sgd)  # type: ignore[arg-type]
        within("(0, 1]", "the share of the way to the average", alpha=alpha)
        within("[0, inf)", "a distance, null takes relative_width", lambda_=lambda_)
        within("[0, inf)", relative_width=relative_width, valley_every=valley_every, valley_samples=valley_samples)
        one_of(SCHEDULES, schedule=schedule)
        within("(0, 1]", uplink_density=uplink_density)
        within("[0, 1)", "the fraction of zeros", sparsity=sparsity)
        check_layers(beta, activation_threshold)
        within(f"[1, {MAX_VALLEY_STEPS}]", valley_steps=valley_steps)
        within("(1, inf)", valley_kappa=valley_kappa)
        within("(0, inf)", valley_step=valley_step)
        self.alpha, self.lambda_, self.relative_width, self.schedule = alpha, lambda_, relative_width, schedule
        self.uplink_density = uplink_density
        self.sparsity, self.ramp = sparsity, ramp
        self.beta: Beta = beta
        self.activation_pruning, self.activation_threshold = activation_pruning, activation_threshold
        self.control = ServerControl([]) if control_variates else None
        self.valley_every, self.valley_samples = valley_every, valley_samples
        self.valley_steps, self.valley_step, self.valley_kappa = valley_steps, valley_step, valley_kappa
        self.valley_names = valley_names
        self.workers: dict[int, Arrays] = {}
        self.valley: Valley | None = None

    # -- what workers are asked ------------------------------------------------------------------------------------

    def round_sparsity(self, server_round: int) -> float:
        """Return the sparsity asked for in a round."""
        return sparsity_ramp(server_round, self._num_rounds, self.sparsity) if self.ramp else self.sparsity

    def method(self, server_round: int, node: Node | None = None) -> LocalMethod:
        """Ask for this round's pull and push."""
        fraction = push_schedule(self.schedule, server_round, self._num_rounds)
        absolute = self.lambda_ is not None
        return DPPFLocal(
            continues=self.continues(node),
            alpha=self.alpha,
            push=fraction * (self.lambda_ or 0.0),
            relative_push=0.0 if absolute else fraction * self.relative_width,
            control_variates=self.control is not None,
            confirmed=self.control.confirmed_by(node) if self.control else 0,
            # a ramp starts near 0, and layers are there or not for the whole run
            sparsity=max(self.round_sparsity(server_round), 1e-9) if self.sparsity else 0.0,
            beta=self.beta,
            activation_pruning=self.activation_pruning,
            activation_threshold=self.activation_threshold,
        )

    def asks(self, node: Node, server_round: int) -> Mapping[str, Scalar]:
        """Ask for replies against the mirror, too."""
        mirror: dict[str, Scalar] = {"mirror": True, "density": self.uplink_density} if self._mirrored else {}
        return {**super().asks(node, server_round), **mirror}

    @property
    def _mirrored(self) -> bool:
        return self.wire.values != "raw"

    def summary(self) -> None:
        """Log the configuration."""
        width = f"{self.relative_width:g} of the average's norm"
        if self.lambda_ is not None:
            width = f"{self.lambda_ / self.alpha:g}"
        log(INFO, "\t├──> Pull %g, width %s, push %s", self.alpha, width, self.schedule)
        super().summary()

    def bind(self, model: nn.Module) -> None:
        """Learn the parameters' names: control variates are for them alone, and the valley is one of some of them."""
        names = [name for name, _ in model.named_parameters()]
        for name in self.valley_names or []:
            if name not in names:
                raise ValueError(f"valley_names: the model has no parameter {name!r}{did_you_mean(name, names)}")
        if self.control:
            self.control.parameters = names

    # -- a round ----------------------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address the average, and the control variate behind it, to the sampled workers."""
        if self.control:
            self.control.meet(self.nodes.values())
        return super().configure_train(server_round, self._joined(arrays), config, grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the control variate here too: what nodes hold has both."""
        return super().configure_evaluate(server_round, self._joined(arrays), config, grid)

    def _joined(self, arrays: ArrayRecord) -> ArrayRecord:
        return self.control.join(arrays) if self.control else arrays

    def update(self, reply: Reply, mirror: Mapping[str, np.ndarray] | None = None) -> list[Layer] | None:
        """Decode a reply, against the worker's mirror where it is coded so."""
        return super().update(reply, self.workers.get(reply.node.partition) if self._mirrored else None)

    def accept(self, reply: Reply, layers: list[Layer]) -> None:
        """Move the worker's mirror; note whose control variate is in the server's."""
        super().accept(reply, layers)
        if self.control:
            self.control.accept(reply)
        if self._mirrored or self.valley_every:
            arrays = {layer.name: np.array(layer.dense(self.wire.specs[layer.name])) for layer in layers}
            self.workers[reply.node.partition] = arrays

    def abandon(self) -> None:
        """Let everybody join anew who was asked, and control variates start at 0."""
        super().abandon()
        if self.control:
            self.control.reset()

    def after_aggregation(self, arrays: Arrays, server_round: int) -> Arrays:
        """Move the control variate; prune the average where the workers are pruned."""
        if self.control:
            arrays = self.control.part(arrays, self.round_metrics["replies"])
        if self.sparsity:
            arrays = prune(arrays, self.round_sparsity(server_round), "global", self.wire.prunable)
        return arrays

    def _give_back_rounding(self, mean: Arrays, references: dict[str, Weighted]) -> Arrays:
        """Give back the control variate's alone: workers do not start from the broadcast of the model."""
        given = super()._give_back_rounding(mean, references) if self.control else {}
        return mean | {name: array for name, array in given.items() if name.startswith(CONTROL)}

    # -- the valley -------------------------------------------------------------------------------------------------

    def conclude(self, grid: Grid, server_round: int, arrays: ArrayRecord, timeout_s: float) -> ArrayRecord:
        """Re-estimate batch norm; measure the valley when it is due."""
        arrays = super().conclude(grid, server_round, arrays, timeout_s)
        last = server_round == self._num_rounds
        if self.valley_every and (server_round % self.valley_every == 0 or last):
            self._measure_valley(grid, server_round, arrays, timeout_s)
            self.wire.downlink.keep({node.held for node in self.nodes.values()})  # nobody holds a point of the walks
        return arrays

    def ask(
        self,
        grid: Grid,
        server_round: int,
        message_type: str,
        arrays: ArrayRecord,
        config: ConfigRecord,
        timeout_s: float,
        *,
        hold: bool = True,
    ) -> Iterable[Reply]:
        """Ask as LocalSGD does, the control variate behind the model."""
        joined = self._joined(arrays)
        return super().ask(grid, server_round, message_type, joined, config, timeout_s, hold=hold)

    def _measure_valley(self, grid: Grid, server_round: int, arrays: ArrayRecord, timeout_s: float) -> None:
        """Let the nodes walk from the average through each worker, and put their losses together."""
        config: dict[str, int | float | str | list[str]] = {
            "samples": self.valley_samples,
            "step": self.valley_step,
            "steps": self.valley_steps,
            "names": list(self.valley_names or []),
        }
        kind = f"{MessageType.EVALUATE}.{VALLEY}"

        def losses(model: ArrayRecord, point: str) -> list[float]:
            record = ConfigRecord({**config, "point": point})
            expected = 1 if point == "average" else self.valley_steps
            rows, weights = [], []
            for reply in self.ask(grid, server_round, kind, model, record, timeout_s, hold=False):
                weighed, row = self.weigh(reply, NUM_EXAMPLES), _losses_of(reply, expected)
                if weighed is not None and row is not None:
                    rows.append(row)
                    weights.append(weighed[0])
            return [float(x) for x in np.average(rows, axis=0, weights=weights)] if rows else []

        at_average = losses(arrays, "average")
        asked = sorted(n.partition for n in self._asked if self._accepted.get(n.partition) == server_round)
        walks = {p: losses(to_record(_model_of(self.workers[p])), "worker") for p in asked}
        curves = {p: walk for p, walk in walks.items() if walk}
        if not at_average or not curves:
            return
        self.valley = valley_of_curves(
            at_average[0], list(curves.values()), kappa=self.valley_kappa, step=self.valley_step
        )
        self.round_metrics |= {
            "mean_valley": self.valley.mean_valley,
            "valley_reached": float(np.mean(self.valley.reached)),
            "valley_step": self.valley_step,
            "valley_losses": {
                str(p): [loss for _, loss in curve] for p, curve in zip(curves, self.valley.curves, strict=True)
            },
        }

    # -- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, object]:
        """Return LocalSGD's state, the mirrors and the control variate."""
        workers = {str(partition): arrays for partition, arrays in self.workers.items()}
        control = self.control.state_dict() if self.control else {}
        return {**super().state_dict(), "workers": workers, "control": control}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self.workers = {int(p): dict(arrays) for p, arrays in state["workers"].items()}  # type: ignore[attr-defined]
        if self.control:
            self.control.load_state_dict(state["control"])  # type: ignore[arg-type]


def _model_of(arrays: Arrays) -> Arrays:
    return {name: array for name, array in arrays.items() if not name.startswith(CONTROL)}


def _losses_of(reply: Reply, expected: int) -> np.ndarray | None:
    """Return the losses a node measured; None where they are not the numbers that were asked for."""
    found = reply.content.metric_records.get(METRICS, MetricRecord()).get("losses")
    losses = np.asarray(found if isinstance(found, list) else [], np.float64)
    return losses if losses.size == expected and not np.isnan(losses).any() else None
