"""SCAFFOLD on the server (Karimireddy et al. 2020, arXiv 1910.06378): a control variate beside the model.

    send x and c;  nodes correct every step by c - c_i                    (see flsparse.clients.scaffold)
    x <- mean over the sampled of y_m                                     uniform; server learning rate 1
    c <- c + |S| / N * (mean over the sampled of (c + change of c_m) - c)

Both travel in one payload, so an exchange carries twice the arrays; ``c`` starts at 0.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import nn

from flsparse.clients.protocol import CONTROL, to_numpy, to_record
from flsparse.strategies.fedavg import FedAvg
from flsparse.strategies.server_optimizer import Arrays


class ServerControl:
    """The control variate of the server.

    Parameters
    ----------
    parameters : list[str]
        Names of the model's parameters; empty: all floating arrays.
    """

    def __init__(self, parameters: list[str]) -> None:
        self.parameters = parameters
        self.arrays: Arrays = {}

    def join(self, model: ArrayRecord) -> ArrayRecord:
        """Return the model with the control variate behind it."""
        arrays = to_numpy(model)
        names = self.parameters or [name for name, x in arrays.items() if x.dtype.kind == "f"]
        self.arrays = {name: self.arrays.get(name, np.zeros_like(arrays[name])) for name in names}
        return to_record({**arrays, **{CONTROL + name: c for name, c in self.arrays.items()}})

    def part(self, mean: Mapping[str, np.ndarray], share: float) -> Arrays:
        """Take the nodes' mean apart: return the model, and move the control variate by a share of its change.

        Parameters
        ----------
        mean : Mapping[str, np.ndarray]
            Mean of what the sampled nodes sent.
        share : float
            ``|S| / N``: accepted replies over all nodes, in (0, 1].
        """
        for name, c in self.arrays.items():
            self.arrays[name] = np.asarray(c + share * (mean[CONTROL + name] - c), c.dtype)
        return {name: x for name, x in mean.items() if not name.startswith(CONTROL)}


class Scaffold(FedAvg):
    """FedAvg of nodes that correct each other's drift.

    Parameters
    ----------
    **fedavg
        Parameters of :class:`FedAvg` but those of the server optimizer.
    """

    name = "scaffold"
    weighted = False

    def __init__(self, **fedavg: object) -> None:
        super().__init__(server_optimizer="none", server_lr=1.0, **fedavg)  # type: ignore[arg-type]
        self.control = ServerControl([])

    def prepare(self, model: nn.Module) -> nn.Module:
        """Note the parameters' names: control variates are for them alone."""
        self.control.parameters = [name for name, _ in model.named_parameters()]
        return super().prepare(model)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the control variate with the model."""
        return super().configure_train(server_round, self.control.join(arrays), config, grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send it here too: what nodes hold has both."""
        return super().configure_evaluate(server_round, self.control.join(arrays), config, grid)

    def after_aggregation(self, arrays: Arrays, server_round: int) -> Arrays:
        """Move the control variate; return the model."""
        return self.control.part(arrays, self.round_metrics["replies"] / max(1, len(self.nodes)))

    def state_dict(self) -> dict[str, object]:
        """Return FedAvg's state and the control variate."""
        return {**super().state_dict(), "control": dict(self.control.arrays)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self.control.arrays = dict(state["control"])  # type: ignore[call-overload]
