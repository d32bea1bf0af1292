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

from logging import INFO
from math import cos, pi
from typing import Any

from flsparse._flwr import log
from flsparse.clients.core.method import LocalMethod
from flsparse.clients.dppf import DPPFLocal
from flsparse.clients.sparsyfed import Beta, Threshold
from flsparse.nets.arrays import Arrays
from flsparse.nets.valley import Valley
from flsparse.ranges import one_of, within
from flsparse.sparsity import check_layers
from flsparse.strategies.core.exchange import Node
from flsparse.strategies.local_sgd import LocalSGD
from flsparse.strategies.parts.control import ServerControl
from flsparse.strategies.parts.mirror import ServerMirror
from flsparse.strategies.parts.sparse import SparseModel
from flsparse.strategies.parts.valley import MeanValley

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
        Fraction of the weights that a coded reply changes in the worker's mirror, in (0, 1]; ignored with values "raw".
    control_variates : bool (default: False)
        Correct the local steps as SCAFFOLD does; doubles the arrays that travel.
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
        **local_sgd: Any,
    ) -> None:
        super().__init__(**local_sgd)
        within("(0, 1]", "the share of the way to the average", alpha=alpha)
        within("[0, inf)", "a distance, null takes relative_width", lambda_=lambda_)
        within("[0, inf)", relative_width=relative_width)
        one_of(SCHEDULES, schedule=schedule)
        within("(0, 1]", uplink_density=uplink_density)
        check_layers(beta, activation_threshold)
        self.alpha, self.lambda_, self.relative_width, self.schedule = alpha, lambda_, relative_width, schedule
        self.beta: Beta = beta
        self.activation_pruning, self.activation_threshold = activation_pruning, activation_threshold
        mirrored = self.wire.values != "raw"
        self.mirror = ServerMirror(uplink_density, codes=mirrored, remembers=mirrored or valley_every > 0)
        self.model = SparseModel(sparsity, ramp=ramp)
        self.mean_valley = MeanValley(
            every=valley_every,
            samples=valley_samples,
            steps=valley_steps,
            step=valley_step,
            kappa=valley_kappa,
            names=valley_names,
            mirror=self.mirror,
        )
        self.control = ServerControl() if control_variates else None
        own = (self.control, self.mirror, self.model if sparsity else None, self.mean_valley)
        self.parts.add(*(part for part in own if part is not None))

    @property
    def workers(self) -> dict[int, Arrays]:
        """Each worker's last model as the server read it, by partition."""
        return self.mirror.memory.workers

    @property
    def valley(self) -> Valley | None:
        """The last measurement of the Mean Valley, with the loss along each direction."""
        return self.mean_valley.found

    def method(self, server_round: int, node: Node | None = None) -> LocalMethod:
        """Ask for this round's pull and push."""
        fraction = push_schedule(self.schedule, server_round, self._num_rounds)
        absolute = self.lambda_ is not None
        sparsity = self.model.target(server_round, self._num_rounds)
        return DPPFLocal(
            continues=self.worker_rounds.continues(node),
            alpha=self.alpha,
            push=fraction * (self.lambda_ or 0.0),
            relative_push=0.0 if absolute else fraction * self.relative_width,
            # a ramp starts near 0, and layers are there or not for the whole run
            sparsity=max(sparsity, 1e-9) if self.model.sparsity else 0.0,
            beta=self.beta,
            activation_pruning=self.activation_pruning,
            activation_threshold=self.activation_threshold,
        )

    def summary(self) -> None:
        """Log the configuration."""
        width = f"{self.relative_width:g} of the average's norm"
        if self.lambda_ is not None:
            width = f"{self.lambda_ / self.alpha:g}"
        log(INFO, "\t├──> Pull %g, width %s, push %s", self.alpha, width, self.schedule)
        super().summary()
