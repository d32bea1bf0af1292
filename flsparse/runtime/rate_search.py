"""``client.lr=auto``: the learning rate of local training, searched before round 1 by successive halving.

    R  <- all rates;  n <- few nodes
    repeat   train each of R some rounds further, over the federation;  keep the better half of R
    until one is left                                    (Jamieson and Talwalkar 2016, arXiv 1502.07943)

Every rate leads the first rounds of the run itself: the same strategy, the same sampling, its own schedule. They are
compared on validation data, or where the server has none on the nodes' own test parts, and their bytes count.
"""

import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from functools import partial
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid

from flsparse._flwr import Run
from flsparse.clients.core.state import state_dir
from flsparse.configs import lookup, sampled_nodes
from flsparse.metering.ledger import Direction, Traffic
from flsparse.runtime.inprocess import InProcessGrid
from flsparse.strategies import FedAvg, RoundFailed, RoundLoop, RoundReport, SplitMS
from flsparse.wire.messages import FROZEN

WAYS: tuple[Direction, ...] = ("uplink", "downlink", "evaluation")
RATES = (12.8, 6.4, 3.2, 1.6, 0.8, 0.4, 0.2, 0.1, 0.05, 0.025, 0.0125, 0.006, 0.003)
_ROUNDS = (1, 2, 3)  # further rounds of each halving
_NODES = 0.25  # of a round's nodes, at least two
_DECAY = 50.0
_OF_MANY_NODES = ("min_replies", "min_available_nodes", "min_train_nodes", "min_evaluate_nodes")
_KEEP_STATE = (
    "scaffold",
    "dppf",
    "local_sgd",
    "local_only",
    "topk_update",
    "control_variates",
)  # on nodes, between rounds

Lead = Callable[[int], float]  # trains one rate so many rounds further; returns its loss, infinite where it diverged


@dataclass(frozen=True)
class Found:
    """A learning rate, and what it cost to find.

    Attributes
    ----------
    rate : float
    losses : dict[float, float]
        Each rate's last loss on the validation data; infinite where training diverged.
    traffic : dict[Direction, Traffic]
    seconds : float
    """

    rate: float
    losses: dict[float, float]
    traffic: dict[Direction, Traffic] = field(default_factory=dict)
    seconds: float = 0.0

    def plain(self) -> dict[str, Any]:
        """Return what ``summary.json`` tells of the search: a loss is null where training diverged."""
        losses = {f"{rate:g}": loss if math.isfinite(loss) else None for rate, loss in sorted(self.losses.items())}
        sent = sum(traffic.wire_bytes for traffic in self.traffic.values())
        return {"lr": self.rate, "losses": losses, "wire_bytes": sent, "seconds": self.seconds}


def halve(leads: Mapping[float, Lead], rounds: Sequence[int] = _ROUNDS) -> dict[float, float]:
    """Train rates against each other, the better half of them further each time.

    Parameters
    ----------
    leads : Mapping[float, Callable[[int], float]]
        By rate.
    rounds : Sequence[int]
        Further rounds in each stage; the last number holds for further stages.

    Returns
    -------
    dict[float, float]
        Each rate's last loss, the best rate's at the end.

    Raises
    ------
    ValueError
        Training diverged at every rate.

    Examples
    --------
    >>> halve({rate: lambda n, rate=rate: abs(rate - 0.1) / n for rate in (0.4, 0.2, 0.1, 0.05)}, [1, 2])
    {0.4: 0.30000000000000004, 0.2: 0.1, 0.05: 0.025, 0.1: 0.0}
    """
    losses: dict[float, float] = {}
    left = list(leads)
    for stage in range(len(left).bit_length()):
        for rate in left:
            losses[rate] = leads[rate](rounds[min(stage, len(rounds) - 1)])
        alive = [rate for rate in left if math.isfinite(losses[rate])]
        if not alive:
            raise ValueError(f"client.lr=auto: training diverged at each of {', '.join(map(str, leads))}: set a number")
        best_first = sorted(alive, key=lambda rate: losses[rate])
        left = [rate for rate in left if rate in best_first[: max(1, len(left) // 2)]]
        if len(left) == 1:
            break
    losses[left[0]] = losses.pop(left[0])
    order = sorted((rate for rate in losses if rate != left[0]), key=lambda rate: -losses[rate])
    return {rate: losses[rate] for rate in (*order, left[0])}


class _Enough(Exception):
    """The rounds asked for are done."""


class _Trial:
    """The first rounds of the run at one rate."""

    def __init__(
        self,
        grid: Grid,
        cfg: Mapping[str, Any],
        make: Callable[[Mapping[str, Any]], RoundLoop],
        arrays: ArrayRecord,
        evaluate: Callable[[int, ArrayRecord], MetricRecord | None],
        frozen: str,
    ) -> None:
        self.strategy, self.num_rounds = make(cfg), int(cfg["num_rounds"])
        self.strategy.callbacks = [self._after]
        self.done, self._wanted, self._loss, self._arrays = 0, 0, math.inf, arrays
        self.problem = "diverged"
        self._go_on = partial(
            self.strategy.start,
            grid,
            num_rounds=self.num_rounds,
            train_config=train_config(cfg, frozen),
            evaluate_fn=evaluate,
        )

    def lead(self, rounds: int) -> float:
        """Train so many rounds further, at most to the end; return the loss, infinite where training diverged."""
        self._wanted = min(self.done + rounds, self.num_rounds)
        try:
            if self.done < self._wanted:
                self._go_on(initial_arrays=self._arrays)
        except _Enough:
            pass
        except (RoundFailed, ValueError) as problem:
            self.problem, self._loss = f"failed ({problem})", math.inf
        return self._loss

    def _after(self, report: RoundReport) -> None:
        self._arrays, self.done = report.arrays, report.server_round
        found = float(report.metrics.get("loss", report.metrics.get("evaluate_loss", math.inf)))
        self._loss = found if math.isfinite(found) else math.inf
        if self.done == self._wanted:
            raise _Enough


def train_config(cfg: Mapping[str, Any], frozen: str = "") -> ConfigRecord:
    """Return the configuration of every training message: ``client`` in kebab-case, and the hash of frozen arrays."""
    asked = {key.replace("_", "-"): value for key, value in cfg["client"].items() if value is not None}
    return ConfigRecord(asked | ({FROZEN: frozen} if frozen else {}))


def with_rate(cfg: Mapping[str, Any], rate: float) -> dict[str, Any]:
    """Return a configuration with a learning rate in place of ``auto``; ``lr_final`` is at most a fiftieth of it."""
    final = min(float(cfg["client"].get("lr_final") or 0.0), rate / _DECAY)
    return {**cfg, "client": {**cfg["client"], "lr": rate, "lr_final": final}}


def small(cfg: Mapping[str, Any], rate: float) -> dict[str, Any]:
    """Return the configuration of a run that asks few nodes a round, at a rate."""
    strategy = {key: value for key, value in cfg["strategy"].items() if key not in _OF_MANY_NODES}
    fraction = few(sampled_nodes(cfg)) / cfg["num_clients"]
    evaluation = {**(cfg.get("evaluate") or {}), "every": 1, "by_node": False}
    return with_rate({**cfg, "strategy": strategy, "fraction_train": fraction, "evaluate": evaluation}, rate)


def check_searchable(cfg: Mapping[str, Any], strategy: RoundLoop, *, in_process: bool) -> None:
    """Refuse to search where a trial would leave its mark on the run.

    Raises
    ------
    ValueError
        The method is not an averaging one, or its nodes keep state that nobody can put back.
    """
    if not isinstance(strategy, FedAvg) or isinstance(strategy, SplitMS):
        raise ValueError(f"client.lr=auto goes with averaging methods, not with strategy={strategy.name}: set a number")
    if local := lookup(cfg, "model.local"):
        raise ValueError(
            f"client.lr=auto does not go with local={local}: every rate tried would train the nodes' own arrays; set a "
            "number"
        )
    keeping = [name for name in (strategy.name, *(cfg.get("parts") or ())) if name in _KEEP_STATE]
    if keeping and not in_process:
        raise ValueError(
            f"client.lr=auto: nodes keep state of {keeping[0]} between rounds, which a search would leave there: "
            "search with runtime=inprocess, or set a number"
        )


def search(
    grid: Grid,
    cfg: Mapping[str, Any],
    make: Callable[[Mapping[str, Any]], RoundLoop],
    arrays: ArrayRecord,
    evaluate: Callable[[int, ArrayRecord], MetricRecord | None],
    tell: Callable[[str], object],
    frozen: str,
) -> Found:
    """Search the learning rate of a run.

    Parameters
    ----------
    grid : Grid
        Its nodes' state is put back afterwards where they are in this process.
    cfg : Mapping[str, Any]
        The composed configuration.
    make : Callable[[Mapping[str, Any]], RoundLoop]
        Makes the strategy of a configuration.
    arrays : ArrayRecord
        The model to start from.
    evaluate : Callable[[int, ArrayRecord], MetricRecord or None]
        Returns ``loss``; None where the nodes evaluate.
    tell : Callable[[str], object]
        Takes a line of progress.
    frozen : str
        Hash of the arrays that never train; empty where there are none.

    Returns
    -------
    Found

    Raises
    ------
    ValueError
        Training diverged at every rate.
    """
    began, num_rounds = time.monotonic(), int(cfg["num_rounds"])
    trials = {rate: _Trial(grid, small(cfg, rate), make, arrays, evaluate, frozen) for rate in RATES}

    def lead(rate: float, rounds: int) -> float:
        loss = trials[rate].lead(rounds)
        score = f"has loss {loss:.4g}" if math.isfinite(loss) else trials[rate].problem
        tell(f"client.lr=auto: {rate:g} {score} after {trials[rate].done} of {num_rounds} rounds")
        return loss

    with _aside(grid):
        losses = halve({rate: partial(lead, rate) for rate in RATES})
    traffic = {way: _sum(each.strategy.ledger.total(way) for each in trials.values()) for way in WAYS}
    return Found(list(losses)[-1], losses, traffic, time.monotonic() - began)


def _sum(traffics: Iterable[Traffic]) -> Traffic:
    return Traffic(*(sum(column) for column in zip(*map(astuple, traffics), strict=True)))


def few(sampled: int) -> int:
    """Return the number of nodes of a round of the search, of as many in a round of the run.

    >>> few(1), few(4), few(12)
    (1, 2, 3)
    """
    return min(sampled, max(2, math.ceil(_NODES * sampled)))


@contextmanager
def _aside(grid: Grid) -> Iterator[None]:
    """Run something over a grid without its warnings, and put nodes of this process back as they were."""
    logger = logging.getLogger("flwr")
    before, level = (grid.state_dict() if isinstance(grid, InProcessGrid) else None), logger.level
    logger.setLevel(logging.ERROR)
    try:
        if isinstance(grid, InProcessGrid):
            grid.set_run(Run.create_empty(run_id=grid.run.run_id ^ 1))  # its files apart
        yield
    finally:
        logger.setLevel(level)
        if isinstance(grid, InProcessGrid) and before is not None:
            shutil.rmtree(state_dir() / f"run-{grid.run.run_id}", ignore_errors=True)
            grid.load_state_dict(before)
