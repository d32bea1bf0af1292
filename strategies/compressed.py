"""Compressed: any Flower strategy over the packed wire.

    Compressed(FedAdam(...)), Compressed(Krum(...)), Compressed(DifferentialPrivacyServerSideFixedClipping(...))

The inner strategy samples, configures and aggregates as ever; it sees dense replies, all of a round's at once (Krum
and its like need N dense models by nature). Only what travels is coded.
"""

from collections.abc import Iterable
from logging import INFO, WARNING

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import Strategy

from flsparse._flwr import log
from flsparse.clients.protocol import arrayrecord_key, to_numpy, to_record
from flsparse.codec import Accumulator
from flsparse.strategies.base import RoundLoop


class Compressed(RoundLoop):
    """Wrap a Flower strategy so that its messages are packed, both ways.

    Parameters
    ----------
    strategy : Strategy
        The inner strategy. Put a server-side differential-privacy wrapper inside: ``Compressed(DP(FedAvg(...)))``.
    **wire
        Parameters of :class:`RoundLoop`.
    """

    name = "compressed"

    def __init__(self, strategy: Strategy, **wire: object) -> None:
        super().__init__(**wire)  # type: ignore[arg-type]
        self.strategy = strategy

    @property
    def min_available_nodes(self) -> int:
        """One: the inner strategy waits for the nodes it needs."""
        return 1

    def summary(self) -> None:
        """Log the configuration, the inner strategy's too."""
        log(
            INFO,
            "\t├──> Uplink: %s (%s) | downlink: %s",
            self.wire.values,
            self.wire.rounding,
            self.wire.downlink.codec.values,
        )
        log(INFO, "\t└──> %s:", type(self.strategy).__name__)
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the inner strategy's messages; they are packed on their way out."""
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Decode the valid replies and let the inner strategy aggregate them."""
        dense = [reply for reply in replies if self._decoded(reply)]
        self.round_metrics["replies"] = len(dense)
        if len(dense) < self.min_replies:
            return None, None
        try:
            arrays, metrics = self.strategy.aggregate_train(server_round, dense)
        except InconsistentMessageReplies as error:
            self.wire.problems.append(str(error))
            return None, None
        return self._in_the_models_dtypes(arrays), metrics

    def _in_the_models_dtypes(self, record: ArrayRecord | None) -> ArrayRecord | None:
        """Undo that some of Flower's strategies turn float32 and integer arrays into float64."""
        if record is None:
            return None
        return to_record({name: a.astype(self.wire.specs[name].dtype) for name, a in to_numpy(record).items()})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the inner strategy's messages; they are packed on their way out."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Let the inner strategy aggregate."""
        try:
            return self.strategy.aggregate_evaluate(server_round, list(replies))
        except InconsistentMessageReplies as error:
            log(WARNING, "Round %d: no federated evaluation: %s", server_round, error)
            return None

    def _decoded(self, reply: Message) -> bool:
        """Put the dense arrays into a reply; False where it is no use."""
        if (update := self.update(reply)) is None:
            return False
        layers, _ = update
        accumulator = Accumulator(self.wire.specs)
        accumulator.add(layers, 1.0)
        reply.content[arrayrecord_key(reply.content)] = to_record(accumulator.mean())
        return True
