"""How far the nodes of a round agree on which weights to keep (SparsyFed, arXiv 2504.05153: IoU of supports)."""

from collections.abc import Sequence

import numpy as np

from flsparse.codec import Layer, Reference, Specs
from flsparse.nets.arrays import Arrays
from flsparse.strategies.core.exchange import Reply
from flsparse.strategies.core.part import Round, RoundPart


class MaskStatistics:
    """Counts, position by position, how many nodes of a round kept it: one small array, however many nodes.

    Parameters
    ----------
    specs : Specs
        Shapes of the model's arrays.
    names : Sequence[str]
        The prunable ones.
    """

    def __init__(self, specs: Specs, names: Sequence[str]) -> None:
        self._kept_by = {name: np.zeros(specs[name].size, np.uint16) for name in names}
        self._support_sizes: list[int] = []
        self._server_ious: list[float] = []

    def add(self, layers: list[Layer], reference: Reference) -> None:
        """Count one node's supports.

        Parameters
        ----------
        layers : list[Layer]
            Layers of the node's update.
        reference : Reference
            The node's broadcast.
        """
        kept = common = broadcast = 0
        for layer in layers:
            if layer.name not in self._kept_by:
                continue
            positions = np.flatnonzero(layer.values) if layer.positions is None else layer.positions
            received = reference.arrays[layer.name].reshape(-1)
            self._kept_by[layer.name][positions] += 1
            kept += positions.size
            common += int(np.count_nonzero(received[positions]))
            broadcast += int(np.count_nonzero(received))
        self._support_sizes.append(kept)
        union = kept + broadcast - common
        self._server_ious.append(common / union if union else 1.0)

    def summary(self) -> dict[str, float]:
        """Return the round's statistics.

        Returns
        -------
        dict[str, float]
            ``mask_iou``: intersections over unions, both summed over all pairs of nodes, in [0, 1]; 1 with one node.
            ``mask_iou_server``: mean over nodes of the IoU with each node's broadcast. ``uplink_sparsity``: fraction of
            zeros in the nodes' updates. Empty without nodes.
        """
        nodes, sizes = len(self._support_sizes), sum(self._support_sizes)
        if not nodes:
            return {}
        pairs = 0
        for counts in self._kept_by.values():
            histogram = np.bincount(counts, minlength=nodes + 1).astype(np.float64)
            many = np.arange(histogram.size)
            pairs += int(histogram @ (many * (many - 1) / 2))
        unions = (nodes - 1) * sizes - pairs
        total = sum(counts.size for counts in self._kept_by.values())
        return {
            "mask_iou": pairs / unions if unions else 1.0,
            "mask_iou_server": float(np.mean(self._server_ious)),
            "uplink_sparsity": 1 - sizes / (nodes * total) if total else 0.0,
        }


class Masks(RoundPart):
    """Metrics of how far the supports of a round's updates agree."""

    name = "masks"
    measures = ("mask_iou", "mask_iou_server", "uplink_sparsity")

    def __init__(self) -> None:
        self._statistics: MaskStatistics | None = None

    def open(self, round: Round) -> None:
        """Forget the supports of the round before."""
        self._statistics = None

    def accept(self, reply: Reply, layers: list[Layer], round: Round) -> None:
        """Count an update's supports."""
        if self._statistics is None:
            self._statistics = MaskStatistics(round.wire.specs, round.wire.prunable)
        if reply.broadcast is not None:
            self._statistics.add(layers, reply.broadcast.reference)

    def close(self, arrays: Arrays, round: Round) -> Arrays:
        """Report the round's statistics."""
        if self._statistics is not None:
            round.metrics.update(self._statistics.summary())
        return arrays
