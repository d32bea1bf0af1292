"""The one downlink mechanism: a delta against what the node holds, else the full sparse model.

A node that reports a reference the server still keeps gets ``Q(x - r)``; any other node gets ``Q(x)``. What a node then
decoded is its next reference ``r'``. The rounding error ``x - r'`` is not lost: it is part of the next delta, and the
server adds it back to the aggregate (see ``FedAvg``).
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flsparse.codec import ArraySpec, Codec, Reference, decode, specs_of

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Broadcast:
    """One coded model and what its receiver decodes from it.

    Attributes
    ----------
    payload : bytes
        The coded model.
    coded_against : str
        Id of the reference it is a delta against; empty: none.
    reference : Reference
        What the receiver decodes.
    """

    payload: bytes
    coded_against: str
    reference: Reference


class Downlink:
    """Codes the model of a round, once for each reference that receivers hold.

    Parameters
    ----------
    codec : Codec
        Values "raw" means the plain dense model to everybody, and no references.
    max_references : int
        How many references the server keeps; the least recently used go first.
    """

    def __init__(self, codec: Codec, max_references: int = 16) -> None:
        self.codec = codec
        self.max_references = max_references
        self._kept: OrderedDict[str, Reference] = OrderedDict()
        self._arrays: Mapping[str, np.ndarray] = {}
        self._specs: dict[str, ArraySpec] = {}
        self._coded: dict[str, Broadcast] = {}

    @property
    def uses_references(self) -> bool:
        """Whether nodes are to keep what they decode."""
        return self.codec.values != "raw"

    def set_model(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Start a round with a new model."""
        self._arrays, self._specs, self._coded = arrays, specs_of(arrays), {}

    def to(self, held: str) -> Broadcast:
        """Return the model coded for a node that holds the reference of this id ("": none)."""
        against = self._kept.get(held) if self.uses_references else None
        key = against.id if against else ""
        if key not in self._coded:
            payload = self.codec.encode(self._arrays, reference=against)
            reference = Reference(decode(payload, like=self._specs, reference=against))
            self._coded[key] = Broadcast(payload, key, reference)
            if self.uses_references:
                self._keep(reference)
        if against:
            self._kept.move_to_end(against.id)
        return self._coded[key]

    def _keep(self, reference: Reference) -> None:
        self._kept[reference.id] = reference
        self._kept.move_to_end(reference.id)
        while len(self._kept) > self.max_references:
            self._kept.popitem(last=False)

    def state_dict(self) -> dict[str, Arrays]:
        """Return the kept references, oldest first, by id."""
        return {reference_id: dict(reference.arrays) for reference_id, reference in self._kept.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._kept = OrderedDict((reference_id, Reference(arrays)) for reference_id, arrays in state.items())
