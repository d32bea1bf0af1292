"""Compressed: any Flower strategy over the packed wire.

    Compressed(FedAdam(...)), Compressed(Krum(...)), Compressed(DifferentialPrivacyServerSideFixedClipping(...))

The inner strategy samples, configures and aggregates as ever; it sees dense replies, all of a round's at once (Krum
and its like need N dense models by nature). Only messages are coded. A strategy with a ``start`` of its own runs that,
over a grid that packs (:mod:`flsparse.strategies.core.packed_grid`).

Node m trained from r_m, a rounded copy of x. The inner strategy compares with x, so it gets m's change, added to x:

    y_m + (x - r_m)              0 where the node pruned: y_m = 0, and r_m was not
"""

import inspect
from collections import Counter
from collections.abc import Callable, Iterable
from logging import INFO
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import Result, Strategy

from flsparse._flwr import log
from flsparse.codec import Specs
from flsparse.strategies.core.courier import specs_of_reply
from flsparse.strategies.core.exchange import Reply
from flsparse.strategies.core.loop import EvaluateFn, RoundLoop
from flsparse.strategies.core.measures import LARGEST, numbers_of, weighted_means
from flsparse.strategies.core.packed_grid import PackedGrid
from flsparse.strategies.core.part import OnDevice
from flsparse.wire.messages import RECORD, Entries, packed_record, parted, tensor_records, to_numpy, to_record


class Compressed(RoundLoop):
    """Wrap a Flower strategy so that its messages are packed, both ways.

    Parameters
    ----------
    strategy : Strategy
        The inner strategy, of ``flwr.serverapp.strategy`` or of your own. Put a server-side differential-privacy
        wrapper inside: ``Compressed(DP(FedAvg(...)))``.
    **wire
        Parameters of :class:`RoundLoop`. ``parts`` have no server side, such as clip, noise and topk_update.

    Raises
    ------
    TypeError
        The inner strategy is none of the Message API, or one of ours, which pack by themselves.
    ValueError
        A part has a side on the server, where the inner strategy averages by itself.

    Notes
    -----
    Flower's own strategies stop where one reply is unlike the others. Here such a reply is refused, by its arrays or
    its weight; a metric that not all replies have, or that is not finite in one, costs that metric in these replies
    alone: it is averaged over the others. A strategy with an ``aggregate_train`` of its own gets every reply's metrics
    as they came, and once more without the odd ones where Flower's code below it finds them inconsistent.
    """

    name = "compressed"

    def __init__(self, strategy: Strategy, **wire: Any) -> None:
        super().__init__(**wire)
        if isinstance(strategy, RoundLoop):
            raise TypeError(f"{type(strategy).__name__} packs its messages by itself: use it without Compressed")
        kind: type = type(strategy)
        if not issubclass(kind, Strategy):
            raise TypeError(
                f"{kind.__module__}.{kind.__name__} is no strategy of Flower's Message API: "
                f"take one from flwr.serverapp.strategy, as in Compressed(flwr.serverapp.strategy.FedAvg())"
            )
        self.strategy = strategy
        self._current: ArrayRecord | None = None  # model of this round
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

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Run the rounds: those of :meth:`RoundLoop.start`, or the inner strategy's own ``start``, over a packing grid.

        An own ``start`` makes no reports for callbacks, and has its own ideas of failing and resuming.
        """
        if type(self.strategy).start is Strategy.start:
            return super().start(grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn)
        self._num_rounds, self._exchange_s = num_rounds, min(timeout, self.round_timeout_s or timeout)
        log(INFO, "%s has a start of its own: it runs, and its messages are packed", type(self.strategy).__name__)
        return self.strategy.start(
            grid=PackedGrid(grid, self, self.opened, self._exchange_s),
            initial_arrays=initial_arrays,
            num_rounds=num_rounds,
            timeout=timeout,
            train_config=train_config,
            evaluate_config=evaluate_config,
            evaluate_fn=evaluate_fn,
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the inner strategy's messages; they are packed on their way out."""
        config["num-rounds"] = self._num_rounds  # our device application schedules by it
        self._current = arrays
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def receive(self, server_round: int, replies: Iterable[Reply]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Decode the valid replies and let the inner strategy aggregate them; its None keeps the model."""
        usable = ((reply, self.opened(reply)) for reply in replies if self._usable(reply))
        good = self._fitting([(reply, specs) for reply, specs in usable if specs is not None])
        self.round_metrics["replies"] = len(good)
        key, messages = self._weighted_by_key, [reply.message for reply in good]
        if good and key is not None and not any(numbers_of(reply)[key] for reply in good):
            self.wire.problems.append(f"all replies have {key}=0: there is nothing to average")
            return None, None
        if not good or len(good) < self.min_replies:
            if not good and not self.wire.problems:  # nobody was asked
                self.strategy.aggregate_train(server_round, [])
            return None, None
        arrays, metrics = self._aggregated(good, lambda: self.strategy.aggregate_train(server_round, messages))
        return (self._current if arrays is None else self._in_the_models_dtypes(arrays)), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the inner strategy's messages; they are packed on their way out."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def receive_evaluations(self, server_round: int, replies: Iterable[Reply]) -> MetricRecord | None:
        """Let the inner strategy aggregate."""
        good = []
        for reply in replies:
            if self._usable(reply):
                self.roster.note_held(reply)
                reply.content.pop(RECORD, None)
                good.append(reply)
        messages = [reply.message for reply in good]

        def aggregate() -> tuple[None, MetricRecord | None]:
            return None, self.strategy.aggregate_evaluate(server_round, messages)

        return self._aggregated(good, aggregate)[1]

    # -- replies as Flower's strategies can take them ---------------------------------------------------------------

    def opened(self, reply: Reply) -> Specs | None:
        """Put the dense records into a reply in place of the packed array; return their specs, None if refused."""
        key = packed_record(reply.content)
        self.roster.note_held(reply)
        if reply.broadcast is None or (key is None and not tensor_records(reply.content)):
            reply.content.pop(RECORD, None)
            return {}  # nothing was packed
        if (layers := self.wire.update(reply, any_arrays=True)) is None or key is None:
            return None
        specs = specs_of_reply(reply)
        arrays = {layer.name: layer.dense(specs[layer.name]) for layer in layers}
        for name, lost in reply.broadcast.lost().items():
            y, received = arrays.get(name), reply.broadcast.reference.arrays[name]
            if y is not None and y.shape == received.shape:
                arrays[name] = np.where((y == 0) & (received != 0), 0, y + lost).astype(y.dtype)
        records = [str(name) for name in Entries(reply.record, "a reply").values("records")] or [key]
        reply.content.pop(RECORD, None)
        del reply.content[key]
        reply.content.update(parted(arrays, records))
        return specs

    def _usable(self, reply: Reply) -> bool:
        """Tell whether a reply has the weight that the inner strategy averages by; refuse it where it has not."""
        if (key := self._weighted_by_key) is None:
            return True
        weight = numbers_of(reply).get(key, -1.0)
        if not 0 <= weight <= LARGEST:
            self.wire.refuse(reply, f"its metric {key!r} is missing, or not in [0, {LARGEST:g}]")
        return 0 <= weight <= LARGEST

    def _fitting(self, opened: list[tuple[Reply, Specs]]) -> list[Reply]:
        """Return the replies whose arrays the inner strategy can take; refuse the others.

        Flower's own average: all are to have the names and shapes that most have. Another strategy may have its own
        idea: an array is to have the shape that the node was sent, or that most return. Bytes, such as those of trees,
        have any length.
        """
        shapes = [{name: spec.shape for name, spec in specs.items() if spec.dtype != np.uint8} for _, specs in opened]
        usual = Counter(item for each in shapes for item in each.items())
        most = {name: shape for (name, shape), count in usual.items() if 2 * count > len(opened)}
        fitting = []
        for (reply, _), own in zip(opened, shapes, strict=True):
            sent = {} if reply.broadcast is None else reply.broadcast.reference.specs
            odd = [name for name, shape in own.items() if most.get(name) != shape]
            if self._averages:
                odd += [name for name in most if name not in own]
            else:
                odd = [name for name in odd if name not in sent or sent[name].shape != own[name]]
            if odd:
                wanted = f"{most[odd[0]]} in most replies" if odd[0] in most else "in no shape that most replies have"
                self.wire.refuse(reply, f"array {odd[0]!r} is {own.get(odd[0], 'missing')}, but {wanted}")
            else:
                fitting.append(reply)
        return fitting

    def _aggregated(
        self, replies: list[Reply], aggregate: Callable[[], tuple[ArrayRecord | None, MetricRecord | None]]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate; metrics that Flower could not average are averaged over the replies that have them."""
        key = self._weighted_by_key
        if key is None or not replies:
            return aggregate()
        aside = set_aside(replies, key) if self._averages else {}
        try:
            arrays, metrics = aggregate()
        except InconsistentMessageReplies:  # raised below a strategy's own aggregation
            aside = set_aside(replies, key)
            arrays, metrics = aggregate()
        return arrays, MetricRecord({**aside, **metrics}) if metrics is not None else metrics

    @property
    def _weighted_by_key(self) -> str | None:
        """Metric that replies are weighted by; None where the inner strategy does not say."""
        keys = (getattr(each, "weighted_by_key", None) for each in _chain(self.strategy))
        return next((str(key) for key in keys if key), None)

    @property
    def _averages(self) -> bool:
        """Whether Flower's own code takes the replies, which it wants to be alike."""
        return type(_chain(self.strategy)[-1]).aggregate_train.__module__.startswith("flwr.")

    def _in_the_models_dtypes(self, record: ArrayRecord) -> ArrayRecord:
        """Undo that some of Flower's strategies turn float32 and integer arrays into float64; integers are rounded."""
        kinds = {name: spec.dtype for name, spec in self.wire.specs.items()}
        return to_record({name: _as(array, kinds.get(name, array.dtype)) for name, array in to_numpy(record).items()})

    # -- state ------------------------------------------------------------------------------------------------------

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


def set_aside(replies: list[Reply], weighted_by_key: str) -> dict[str, float]:
    """Leave in every reply one metric record, of the metrics that all have, finite; return the means of the others.

    Parameters
    ----------
    replies : list[Reply]
        With a weight each. They are changed.
    weighted_by_key : str
        Metric that is the weight.
    """
    common: set[str] | None = None
    for reply in replies:
        forms = {_form(key, value) for key, value in _metrics(reply).items() if _finite(value)}
        common = forms if common is None else common & forms
    rows = []
    for reply in replies:
        kept = {key: value for key, value in _metrics(reply).items() if _form(key, value) in (common or ())}
        numbers = numbers_of(reply)
        rows.append((numbers[weighted_by_key], {key: x for key, x in numbers.items() if key not in kept}))
        home = next(name for name, record in reply.content.metric_records.items() if weighted_by_key in record)
        for name in list(reply.content.metric_records):
            if name != home:
                del reply.content[name]
        reply.content[home] = MetricRecord(kept)
    return weighted_means([(weight, numbers) for weight, numbers in rows if weight > 0])


def _metrics(reply: Reply) -> dict[str, Any]:
    return {key: value for record in reply.content.metric_records.values() for key, value in record.items()}


def _form(key: str, value: Any) -> str:
    return f"{key}[{len(value)}]" if isinstance(value, list) else key


def _finite(value: Any) -> bool:
    return bool(np.isfinite(value).all())


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
