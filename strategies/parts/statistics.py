"""Batch-norm statistics of the average, estimated by the nodes and pooled (:mod:`flsparse.nets.batch_norm`)."""

from collections.abc import Mapping

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MessageType

from flsparse.clients.parts.questions import NUM_EXAMPLES, STATISTICS
from flsparse.nets.batch_norm import pooled, statistics_names
from flsparse.ranges import within
from flsparse.strategies.core.exchange import Reply
from flsparse.strategies.core.part import Round, RoundPart
from flsparse.wire.messages import to_numpy, to_record


class Statistics(RoundPart):
    """One exchange about the average, for models with batch norm.

    Parameters
    ----------
    every : int
        Rounds between estimates, and always in the last one; 0: never.
    samples : int
        Examples of each node for an estimate; 0: all.
    """

    name = "statistics"

    def __init__(self, every: int, samples: int) -> None:
        within("[0, inf)", statistics_every=every, statistics_samples=samples)
        self.every, self.samples = every, samples

    def conclude(self, arrays: ArrayRecord, round: Round) -> ArrayRecord:
        """Replace the batch-norm statistics by the nodes' estimates at the average."""
        names = statistics_names(arrays)
        due = self.every and (round.number % self.every == 0 or round.number == round.of)
        if not names or not due:
            return arrays
        config = ConfigRecord({"samples": self.samples})
        parts = []
        for reply in round.ask(f"{MessageType.EVALUATE}.{STATISTICS}", arrays, config):
            if (weighed := round.weigh(reply, NUM_EXAMPLES)) is None:
                continue
            found = _statistics_of(reply, names, to_numpy(arrays))
            if found is not None and round.wire.cannot_send(found) is None:
                parts.append((weighed[0], found))
            else:
                round.wire.refuse(reply, "its statistics are not those of the model's batch norms, finite")
        if not parts:
            return arrays
        return to_record({**to_numpy(arrays), **pooled(parts)})


def _statistics_of(reply: Reply, names: list[str], model: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """Return the statistics a node found; None where they are not finite, or not of the model's shapes and dtypes."""
    try:
        found = to_numpy(reply.content.array_records.get(STATISTICS, ArrayRecord()))
    except Exception:  # reading a stranger's bytes as arrays may end in anything
        return None
    if sorted(found) != sorted(names) or not all(isinstance(array, np.ndarray) for array in found.values()):
        return None
    sound = all(
        (found[n].shape, found[n].dtype) == (model[n].shape, model[n].dtype)
        and bool(np.isfinite(found[n]).all())
        and (not n.endswith("running_var") or bool((found[n] >= 0).all()))
        for n in names
    )
    return found if sound else None
