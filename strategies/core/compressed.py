"""Compressed: any Flower strategy over the packed wire.

    Compressed(FedAdam(...)), Compressed(Krum(...)), Compressed(DifferentialPrivacyServerSideFixedClipping(...))

The inner strategy samples, configures and aggregates as ever; it sees dense replies, all of a round's at once (Krum
and its like need N dense models by nature). Only messages are coded.

Node m trained from r_m, a rounded copy of x. The inner strategy compares with x, so it gets m's change, added to x:

    y_m + (x - r_m)              0 where the node pruned: y_m = 0, and r_m was not
"""

import inspect
from collections import Counter
from collections.abc import Iterable
from logging import INFO
from math import isfinite
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from flsparse._flwr import log
from flsparse.strategies.core.exchange import Reply
from flsparse.strategies.core.loop import RoundLoop
from flsparse.strategies.core.measures import LARGEST
from flsparse.strategies.core.part import OnDevice
from flsparse.wire.messages import arrayrecord_key, to_numpy, to_record


class Compressed(RoundLoop):
    """Wrap a Flower strategy so that its messages are packed, both ways.

    Parameters
    ----------
    strategy : Strategy
        The inner strategy. Put a server-side differential-privacy wrapper inside: ``Compressed(DP(FedAvg(...)))``.
    **wire
        Parameters of :class:`RoundLoop`. ``parts`` have no server side, such as clip, noise and topk_update.

    Raises
    ------
    ValueError
        A part has a side on the server, where the inner strategy averages by itself.
    """

    name = "compressed"

    def __init__(self, strategy: Strategy, **wire: Any) -> None:
        super().__init__(**wire)
        self.strategy = strategy
        for part in self.parts:
            if type(part) is not OnDevice:
                raise ValueError(
                    f"parts: {part.name!r} acts on the server's mean, and {type(strategy).__name__} takes its own: "
                    "leave it out"
                )

    @property
    def min_available_nodes(self) -> int:
        """One: the inner strategy waits for the nodes it needs."""
        return 1

    def summary(self) -> None:
        """Log the configuration, the inner strategy's too."""
        log(INFO, "\t├──> Codec: %s", self.wire)
        log(INFO, "\t└──> %s:", type(self.strategy).__name__)
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the inner strategy's messages; they are packed on their way out."""
        config["num-rounds"] = self._num_rounds  # our device application schedules by it
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def receive(self, server_round: int, replies: Iterable[Reply]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Decode the valid replies and let the inner strategy aggregate them."""
        dense = [reply.message for reply in self._consistent(replies) if self._decoded(reply)]
        self.round_metrics["replies"] = len(dense)
        if len(dense) < self.min_replies:
            return None, None
        arrays, metrics = self.strategy.aggregate_train(server_round, dense)
        return self._in_the_models_dtypes(arrays), metrics

    def _in_the_models_dtypes(self, record: ArrayRecord | None) -> ArrayRecord | None:
        """Undo that some of Flower's strategies turn float32 and integer arrays into float64; integers are rounded."""
        if record is None:
            return None
        return to_record({name: _as(a, self.wire.specs[name].dtype) for name, a in to_numpy(record).items()})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the inner strategy's messages; they are packed on their way out."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def receive_evaluations(self, server_round: int, replies: Iterable[Reply]) -> MetricRecord | None:
        """Let the inner strategy aggregate."""
        consistent = self._consistent(replies)
        for reply in consistent:
            self.roster.note_held(reply)
        return self.strategy.aggregate_evaluate(server_round, [reply.message for reply in consistent])

    def _consistent(self, replies: Iterable[Reply]) -> list[Reply]:
        """Return the replies with the metrics that most replies have, finite, with a usable weight.

        Flower's strategies average all metrics of all replies, and fail as a whole where one is unlike the others.
        """
        signatures = [(reply, _signature(reply, self._weighted_by_key)) for reply in replies]
        usual = Counter(signature for _, signature in signatures if signature is not None).most_common(1)
        good = []
        for reply, signature in signatures:
            if usual and signature == usual[0][0]:
                good.append(reply)
            else:
                reason = "its metrics are not finite, lack a positive weight, or are not those of the other nodes"
                self.wire.refuse(reply, reason)
        return good

    @property
    def _weighted_by_key(self) -> str:
        keys = (getattr(each, "weighted_by_key", None) for each in _chain(self.strategy))
        return str(next((key for key in keys if key), "num-examples"))

    def state_dict(self) -> dict[str, Any]:
        """Return the round loop's state, and of the inner strategies the attributes that hold floats or arrays.

        Arguments of their constructors are the caller's. State of Flower's strategies in another form, such as a
        privacy accountant, starts again.
        """
        return {**super().state_dict(), "inner": [_state_of(each) for each in _chain(self.strategy)]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of :meth:`state_dict`."""
        super().load_state_dict(state)
        for strategy, kept in zip(_chain(self.strategy), state["inner"], strict=True):
            for name, value in kept.items():
                setattr(strategy, name, value)

    def _decoded(self, reply: Reply) -> bool:
        """Put the dense arrays into a reply; False where it is refused."""
        if (layers := self.update(reply)) is None or reply.broadcast is None:
            return False
        arrays = {layer.name: layer.dense(self.wire.specs[layer.name]) for layer in layers}
        for name, lost in reply.broadcast.lost().items():
            y, received = arrays[name], reply.broadcast.reference.arrays[name]
            arrays[name] = np.where((y == 0) & (received != 0), 0, y + lost).astype(y.dtype)
        reply.content[arrayrecord_key(reply.content)] = to_record({name: arrays[name] for name in self.wire.specs})
        return True


def _signature(reply: Reply, weighted_by_key: str) -> tuple[str, ...] | None:
    """Return the names of a reply's metrics, lists with their lengths; None where they cannot be averaged."""
    records = list(reply.content.metric_records.values())
    if len(records) != 1:
        return None
    names = []
    for key, value in records[0].items():
        values = value if isinstance(value, list) else [value]
        if not all(isfinite(v) for v in values):
            return None
        names.append(f"{key}[{len(value)}]" if isinstance(value, list) else key)
    weight = records[0].get(weighted_by_key)
    usable = isinstance(weight, int | float) and 0 < weight <= LARGEST
    return tuple(sorted(names)) if usable else None


def _as(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    whole = dtype.kind in "iub" and array.dtype.kind == "f"
    return (np.rint(array) if whole else array).astype(dtype)


def _chain(strategy: Strategy) -> list[Strategy]:
    """Return a strategy and the strategies it wraps, as Flower's privacy strategies do."""
    chain = [strategy]
    while isinstance(inner := getattr(chain[-1], "strategy", None), Strategy):
        chain.append(inner)
    return chain


def _state_of(strategy: Strategy) -> dict[str, object]:
    given = {name for cls in type(strategy).__mro__ for name in inspect.signature(cls).parameters}
    return {name: value for name, value in vars(strategy).items() if name not in given and _is_state(value)}


def _is_state(value: object) -> bool:
    """Tell whether an attribute is a float, an array, or a dict or list of arrays."""
    if isinstance(value, dict):
        value = list(value.values()) if all(isinstance(key, str) for key in value) else None
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, np.ndarray) for each in value)
    return isinstance(value, float | np.ndarray)
