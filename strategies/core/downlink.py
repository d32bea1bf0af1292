"""The one downlink mechanism: a delta against the node's reference, else the full sparse model.

A node that reports a reference the server still keeps gets ``Q(x - r)``. A new one gets ``Q(x - x_0)``, the change
since the initial model, which it builds from the run's seed; one that cannot, or built another (it compares a hash),
gets ``Q(x)``. A strategy that gives the rounding back may code differences more coarsely than whole models
(``delta_codec``). The model that a node decoded is its next reference ``r'``. The rounding error ``x - r'`` is not
lost: it is part of the next delta, and the server adds it back to the aggregate (see ``FedAvg`` and ``Compressed``).
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from flsparse.codec import Codec, Reference, Specs, decode, exact_names
from flsparse.nets.batch_norm import statistics_names
from flsparse.nets.exact import LARGEST_WEIGHT, small
from flsparse.ranges import within
from flsparse.wire.messages import initial_reference
from flsparse.wire.mirror import towards

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Broadcast:
    """One coded model, and the reference that its receiver decodes from it.

    Attributes
    ----------
    payload : bytes
        The coded model.
    coded_against : str
        Id of the reference it is a delta against; empty: none.
    reference : Reference
        The receiver's decoded model.
    model : Mapping[str, np.ndarray]
        The model before coding.
    """

    payload: bytes
    coded_against: str
    reference: Reference
    model: Mapping[str, np.ndarray]

    def lost(self) -> Arrays:
        """Return ``x - r'``, the rounding error of the receiver's weights, by name."""
        return {name: self.model[name] - self.reference.arrays[name] for name in rounded_names(self.reference.specs)}


def rounded_names(specs: Specs) -> list[str]:
    """Return the names of the weights without batch-norm statistics: their rounding is given back.

    A node's statistics forget their start; a variance that has shrunk would be pushed below 0.
    """
    statistics = set(statistics_names(specs))
    return [n for n, spec in specs.items() if spec.dtype.kind in "fc" and not spec.exact and n not in statistics]


class Downlink:
    """Codes the model of a round, once for each reference that receivers hold.

    Parameters
    ----------
    codec : Codec
        Values "raw" means the plain dense model to everybody, and no references.
    max_reference_bytes : int
        Memory for references, in bytes; the least recently used go first. Nodes that take turns hold different ones.
    density : float or None
        Fraction of the weights (arrays of two or more dimensions) that a delta against a node's own reference changes,
        those that are furthest from it, in (0, 1]; the rest stays in ``x - r'``, and is sent later. None: all of them.

    Attributes
    ----------
    initial : Mapping[str, np.ndarray] or None
        The model that nodes build from the run's seed; None: they build none.
    """

    def __init__(self, codec: Codec, max_reference_bytes: int = 1024**3, density: float | None = None) -> None:
        within("(0, 1]", "the fraction of weights that a broadcast changes", downlink_density=density)
        if density is not None and codec.values == "raw":
            raise ValueError(f"downlink_density={density} needs coded broadcasts, and downlink_values are raw")
        self.density = density
        self.codec = self.delta_codec = codec
        self.max_reference_bytes = max_reference_bytes
        self.initial: Mapping[str, np.ndarray] | None = None
        self._initial: Reference | None = None
        self._kept: OrderedDict[str, Reference] = OrderedDict()
        self._arrays: Mapping[str, np.ndarray] = {}
        self._specs: Specs = {}
        self._coded: dict[str, Broadcast] = {}

    @property
    def uses_references(self) -> bool:
        """Whether nodes are to keep the decoded model."""
        return self.codec.values != "raw"

    def set_model(self, arrays: Mapping[str, np.ndarray], specs: Specs) -> None:
        """Take a new model to send."""
        self._arrays, self._specs, self._coded = arrays, specs, {}

    def to(self, held: str, *, seeded: bool = False) -> Broadcast:
        """Return the model coded for a node.

        Parameters
        ----------
        held : str
            Id of the reference that it holds; empty: none.
        seeded : bool
            It builds the initial model from the seed.
        """
        against = self._kept.get(held) if self.uses_references else None
        if against and list(against.specs.items()) != list(self._specs.items()):
            against = None
        if against:
            self._kept.move_to_end(held)
        elif seeded and self.uses_references:
            against = self._seed()
        is_own = against is not None and against.id == held
        key = against.id if against else ""
        if key not in self._coded:
            exact = exact_names(self._specs)
            sent = self._towards(against, exact) if against and is_own else self._arrays
            payload = (self.delta_codec if against else self.codec).encode(sent, reference=against, exact=exact)
            reference = Reference(decode(payload, like=self._specs, reference=against), exact)
            self._coded[key] = Broadcast(payload, key, reference, self._arrays)
            if self.uses_references:
                self._keep(reference)
        return self._coded[key]

    def _towards(self, held: Reference, exact: Collection[str]) -> Mapping[str, np.ndarray]:
        """Return a node's reference moved to the model where that matters most; exact arrays move whole."""
        if self.density is None:
            return self._arrays
        moved = towards(self._arrays, held.arrays, self.density)
        return {name: self._arrays[name] if name in exact else array for name, array in moved.items()}

    def _seed(self) -> Reference | None:
        """Return the initial model as the reference of what is sent now, which may hold other arrays beside it."""
        if self.initial is None:
            return None
        if self._initial is None or list(self._initial.specs.items()) != list(self._specs.items()):
            self._initial = initial_reference(self.initial, self._specs)
        return self._initial

    def keep(self, held: Collection[str]) -> None:
        """Forget the references that no node holds any more; unknown ids are ignored."""
        self._kept = OrderedDict((key, reference) for key, reference in self._kept.items() if key in held)

    def cannot_send(self, arrays: Mapping[str, np.ndarray], exact: Collection[str] = ()) -> str | None:
        """Return why a model cannot be broadcast, or None: weights that are not finite, or beyond what fp16 holds."""
        for name, array in arrays.items():
            limit = self.largest(array.dtype)
            if array.dtype.kind in "fc" and name not in exact and not small(array, limit).all():
                return f"has values in {name!r} that are not finite or beyond {limit:g}"
        return None

    def largest(self, dtype: np.dtype) -> float:
        """Return the largest magnitude of a weight of this dtype that can be broadcast."""
        half = self.codec.values == "fp16" or dtype == np.float16
        return float(np.finfo(np.float16).max) if half else LARGEST_WEIGHT

    def _keep(self, reference: Reference) -> None:
        self._kept[reference.id] = reference
        self._kept.move_to_end(reference.id)
        while len(self._kept) > 1 and sum(r.nbytes for r in self._kept.values()) > self.max_reference_bytes:
            self._kept.popitem(last=False)

    def kept_specs(self) -> list[Specs]:
        """Return the specs of the kept references, oldest first."""
        return [reference.specs for reference in self._kept.values()]

    def state_dict(self) -> dict[str, Arrays]:
        """Return the kept references, oldest first, by id; exact arrays are marked in their names."""
        return {key: reference.marked() for key, reference in self._kept.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Restore the state of :meth:`state_dict`."""
        self._kept = OrderedDict((reference_id, Reference.of_marked(arrays)) for reference_id, arrays in state.items())
