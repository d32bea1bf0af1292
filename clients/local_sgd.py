"""Local SGD on the device (Stich 2019, arXiv 1805.09767): workers that keep their optimizer between exchanges.

    x_m <- x_A                        every exchange starts from the average, as the server sent it
    x_m <- SGD from x_m               tau steps; the momentum goes on where it was         (local-steps, local-epochs)

The worker's state lives in its node-state store. It goes on only where server and worker agree on the round of the
worker's last accepted reply (``continues``): a worker that lost its state, or whose last reply the server does not
have, joins from the average with a fresh optimizer.
"""

from dataclasses import dataclass
from typing import ClassVar

from flsparse.clients.core.fit import Fit
from flsparse.clients.core.method import LocalMethod, register
from flsparse.nets.arrays import Arrays, load_optimizer, optimizer_arrays, state_arrays
from flsparse.wire.messages import MIRROR

_WORKER, _ROUND = "worker", "worker-round"


@register
@dataclass(kw_only=True)
class LocalSGDLocal(LocalMethod):
    """Train from the average with one's own momentum.

    Attributes
    ----------
    continues : int
        Round of the last reply that the server has from this worker; 0: none, so it joins from the average.
    """

    name: ClassVar[str] = "local_sgd"
    continues: int = 0

    def before_fit(self, fit: Fit) -> None:
        """Go on as the worker of the last exchange, or join."""
        kept = fit.state.get(_WORKER) if 0 < self.continues == fit.state.values.get(_ROUND) else None
        fit.metrics["joined"] = float(kept is None)
        if kept is None:
            fit.state.drop(MIRROR)
            return
        load_optimizer(fit.model, fit.optimizer, kept)
        self.pull(fit, kept)

    def pull(self, fit: Fit, kept: Arrays) -> None:
        """Move from where the worker was to where it trains on; here, to the average, which is loaded already."""

    def after_fit(self, fit: Fit) -> Arrays:
        """Keep the worker; send its weights."""
        fit.state.put(_WORKER, {**self.kept(fit), **optimizer_arrays(fit.model, fit.optimizer)})
        fit.state.values[_ROUND] = fit.server_round
        return state_arrays(fit.model)

    def kept(self, fit: Fit) -> Arrays:
        """Return the worker's arrays in addition to its optimizer; names must not hold a ``|``."""
        return {}
