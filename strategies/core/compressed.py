"""Compressed: any Flower strategy over the packed wire.

    Compressed(FedAdam(...)), Compressed(Krum(...)), Compressed(DifferentialPrivacyServerSideFixedClipping(...))

The inner strategy samples, configures and aggregates as ever; it sees dense replies, all of a round's at once (Krum
and its like need N dense models by nature). Only messages are coded. A strategy with a ``start`` of its own runs that,
over a grid that packs (:mod:`flsparse.strategies.core.packed_grid`).

Node m trained from r_m, a rounded copy of x. The inner strategy compares with x, so it gets m's change, added to x:

    y_m + (x - r_m)              0 where the node pruned: y_m = 0, and r_m was not
"""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from logging import INFO
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import Result, Strategy

from flsparse._flwr import log
from flsparse.codec import PayloadError
from flsparse.codec.models.accumulate import rounded
from flsparse.strategies.core.alike import Forms, forms_of, odd_form, sent_forms, set_aside, usual_forms
from flsparse.strategies.core.courier import specs_of_reply
from flsparse.strategies.core.exchange import Reply
from flsparse.strategies.core.loop import EvaluateFn, RoundLoop
from flsparse.strategies.core.measures import LARGEST, numbers_of
from flsparse.strategies.core.packed_grid import PackedGrid
from flsparse.strategies.core.part import OnDevice
from flsparse.wire.messages import RECORD, packed_record, parted, records_said, tensor_records, to_numpy, to_record


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
        good = self._alike([(reply, forms) for reply, forms in usable if forms is not None], strict=self._averages)
        self.round_metrics["replies"] = len(good)
        key = self._weighted_by_key
        if good and key is not None and not any(numbers_of(reply, key)[key] for reply, _ in good):
            self.wire.problems.append(f"all replies have {key}=0: there is nothing to average")
            return None, None
        if not good or len(good) < self.min_replies:
            if not good and not self.wire.problems:  # nobody was asked
                self.strategy.aggregate_train(server_round, [])
            return None, None
        with np.errstate(invalid="ignore"):  # infinity less infinity, in arrays that are no weights
            arrays, metrics = self._aggregated(good, partial(self.strategy.aggregate_train, server_round))
        self.round_metrics["replies"] = len(good)
        return (self._current if arrays is None else self._as_the_model(arrays)), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the inner strategy's messages; they are packed on their way out."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def receive_evaluations(self, server_round: int, replies: Iterable[Reply]) -> MetricRecord | None:
        """Let the inner strategy aggregate."""
        good: list[tuple[Reply, Forms]] = []
        for reply in replies:
            if self._usable(reply):
                self.roster.note_held(reply)
                reply.content.pop(RECORD, None)
                good.append((reply, {}))

        def aggregate(messages: list[Message]) -> tuple[None, MetricRecord | None]:
            return None, self.strategy.aggregate_evaluate(server_round, messages)

        return self._aggregated(good, aggregate)[1]

    # -- replies as Flower's strategies can take them ---------------------------------------------------------------

    def opened(self, reply: Reply) -> Forms | None:
        """Put the dense records into a reply in place of the packed array; return its forms, None if refused."""
        key = packed_record(reply.content)
        self.roster.note_held(reply)
        if reply.broadcast is None or (key is None and not tensor_records(reply.content)):  # nothing was packed
            reply.content.pop(RECORD, None)
            return forms_of(reply.content, {}, {}, [])
        if (layers := self.wire.update(reply, any_arrays=True)) is None or key is None:
            return None
        try:
            records = records_said(reply.content, key)
        except PayloadError as error:
            self.wire.refuse(reply, str(error))
            return None
        specs, received = specs_of_reply(reply), reply.broadcast.reference
        arrays = {layer.name: layer.dense(specs[layer.name]) for layer in layers}
        lost = reply.broadcast.lost()
        for name, r in received.arrays.items():
            y = arrays.get(name)
            if y is not None and (y.shape, y.dtype.kind) == (r.shape, r.dtype.kind) and r.dtype.kind in "fc":
                new = np.where((y == 0) & (r != 0), 0, y + lost[name]) if name in lost else y
                arrays[name] = new.astype(r.dtype)  # Flower adds up in the dtype of the first
        del reply.content[key]
        reply.content.pop(RECORD, None)
        forms = forms_of(reply.content, arrays, received.specs, records)
        reply.content.update(parted(arrays, records))
        return forms

    def _usable(self, reply: Reply) -> bool:
        """Tell whether a reply has the weight that the inner strategy averages by; refuse it where it has not."""
        if (key := self._weighted_by_key) is None:
            return True
        weight = numbers_of(reply, key).get(key, -1.0)
        if not 0 <= weight <= LARGEST:
            self.wire.refuse(reply, f"its metric {key!r} is missing, or not in [0, {LARGEST:g}]")
        return 0 <= weight <= LARGEST

    def _alike(self, opened: list[tuple[Reply, Forms]], *, strict: bool) -> list[tuple[Reply, Forms]]:
        """Return the replies that the inner strategy can take (see :func:`odd_form`); refuse the others."""
        sent = sent_forms(self.wire.specs, self.wire.records)
        usual = usual_forms([forms for _, forms in opened], sent)
        alike = []
        for reply, forms in opened:
            if (fault := odd_form(forms, usual, sent, strict=strict)) is not None:
                self.wire.refuse(reply, fault)
            else:
                alike.append((reply, forms))
        return alike

    def _aggregated(
        self,
        good: list[tuple[Reply, Forms]],
        aggregate: Callable[[list[Message]], tuple[ArrayRecord | None, MetricRecord | None]],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate; metrics that Flower could not average are averaged over the replies that have them."""
        key, aside = self._weighted_by_key, {}
        if key is not None and good and self._averages:
            aside = set_aside([reply for reply, _ in good], key)
        try:
            arrays, metrics = aggregate([reply.message for reply, _ in good])
        except InconsistentMessageReplies:  # raised below a strategy's own aggregation
            if key is None:
                raise
            good[:] = self._alike(good, strict=True)
            if len(good) < self.min_replies:
                return None, None
            aside = set_aside([reply for reply, _ in good], key)
            arrays, metrics = aggregate([reply.message for reply, _ in good])
        return arrays, MetricRecord({**aside, **metrics}) if metrics is not None and aside else metrics

    @property
    def _weighted_by_key(self) -> str | None:
        """Metric that replies are weighted by; None where the inner strategy does not say."""
        keys = (getattr(each, "weighted_by_key", None) for each in _chain(self.strategy))
        return next((str(key) for key in keys if key), None)

    @property
    def _averages(self) -> bool:
        """Whether Flower's own code takes the replies, which it wants to be alike."""
        return type(_chain(self.strategy)[-1]).aggregate_train.__module__.startswith("flwr.")

    def _as_the_model(self, record: ArrayRecord) -> ArrayRecord:
        """Undo what some of Flower's strategies do to arrays that are no weights.

        Integers come back as float64: they are rounded. An optimizer takes an infinity from an infinity: where that is
        no number, an exact array stays as it was.
        """
        arrays, before = to_numpy(record), to_numpy(self._current or ArrayRecord())
        for name in arrays.keys() & before.keys():
            spec = self.wire.specs[name]
            new = rounded(arrays[name], spec.dtype)
            keeps = spec.exact and new.shape == spec.shape
            arrays[name] = np.where(np.isnan(new), before[name], new) if keeps else new
        return to_record(arrays)

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
