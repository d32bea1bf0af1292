"""A node's control variate (SCAFFOLD, Karimireddy et al. 2020, arXiv 1910.06378), for any method.

    g   <- g_i(y) - c_i + c                  every step                               c: received, c_i: this node's own
    c_i <- mean over the steps of g_i(y)     at the end; equals option II, c_i - c + (x - y)/(K lr), for plain SGD, and
                                             also holds with momentum and weight decay

``c`` travels with the model under ``control/``; the reply carries ``c + (c_i_new - c_i)``, so that the server's mean
minus ``c`` is the mean change. A reply may be lost, and its change with it: the new ``c_i`` is pending until the server
says that it has that round's reply (``confirmed``), and dropped where it has not. A node without its confirmed
``c_i`` trains without a correction and reports ``control-lost``: its ``c_i`` is still in ``c``, so the server resets
all to 0. Where a reply is quantized, ``c_i`` is the server's decoded one: else the two would drift apart by a rounding
a round, and the corrections would no longer sum to 0.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from flsparse.clients.core.fit import Fit
from flsparse.clients.core.part import Leaving, Part, register_part
from flsparse.nets.arrays import Arrays
from flsparse.wire.messages import CONTROL
from flsparse.wire.mirror import CONTROL_ROUND, OWN_CONTROL, PENDING_CONTROL, control_as_read, dated

LOST = "control-lost"  # metric of a node whose confirmed c_i is gone


@register_part
@dataclass(kw_only=True)
class ControlVariates(Part):
    """The correction of one local training.

    Attributes
    ----------
    confirmed : int
        Round of the last reply of this node that the server's variate holds; 0: none, so ``c_i`` is 0.
    """

    name: ClassVar[str] = "control_variates"
    needs_server: ClassVar[bool] = True
    confirmed: int = 0

    def __post_init__(self) -> None:
        self._correction: dict[str, torch.Tensor] = {}
        self._total: dict[str, torch.Tensor] = {}

    def before_fit(self, fit: Fit) -> None:
        """Take ``c - c_i`` for every parameter; nothing where ``c_i`` is lost."""
        own, lost = self._confirmed(fit)
        if lost:
            fit.metrics[LOST] = 1.0
        for name, parameter in fit.model.named_parameters():
            c = fit.received[CONTROL + name]
            difference = np.zeros_like(c) if lost else c - own.get(name, np.float32(0))
            self._correction[name] = torch.from_numpy(np.array(difference)).to(parameter)
            self._total[name] = torch.zeros_like(parameter)

    def _confirmed(self, fit: Fit) -> tuple[Arrays, bool]:
        """Return the ``c_i`` that the server's variate holds, and whether it is lost; keep that one alone."""
        pending = fit.state.get(PENDING_CONTROL)
        if pending is not None and _round_of(pending) == self.confirmed:
            fit.state.put(OWN_CONTROL, pending)
        fit.state.drop(PENDING_CONTROL)
        own = fit.state.get(OWN_CONTROL)
        if self.confirmed and own is not None and _round_of(own) == self.confirmed:
            return own, False
        fit.state.drop(OWN_CONTROL)
        return {}, self.confirmed > 0

    def after_backward(self, fit: Fit) -> None:
        """Add the correction to the gradients, and the plain gradients to their sum."""
        with torch.no_grad():
            for name, parameter in fit.model.named_parameters():
                if parameter.grad is not None:
                    self._total[name] += parameter.grad
                    parameter.grad += self._correction[name]

    def after_fit(self, fit: Fit, arrays: Arrays) -> Arrays:
        """Keep the new ``c_i``, not yet confirmed; return the arrays with its change behind them."""
        old = fit.state.get(OWN_CONTROL) or {}
        new = {name: (total / max(fit.step, 1)).cpu().numpy() for name, total in self._total.items()}
        fit.state.put(PENDING_CONTROL, dated(new, fit.server_round))
        changes = {CONTROL + n: fit.received[CONTROL + n] + c - old.get(n, np.float32(0)) for n, c in new.items()}
        return {**arrays, **changes}

    def coded(self, given: Arrays, decoded: Arrays, leaving: Leaving) -> None:
        """Let the new ``c_i`` be the one that the server reads."""
        if leaving.values != "raw":
            pending = control_as_read(leaving.state.get(OWN_CONTROL) or {}, decoded, leaving.received)
            leaving.state.put(PENDING_CONTROL, dated(pending, leaving.server_round))


def _round_of(control: Arrays) -> int:
    return int(control.get(CONTROL_ROUND, -1))
