"""Parts of a fit: ideas that compose with any method on the device, one a data class.

A part has hooks around the steps of a fit, where the device application trains, and one on the update on its way out,
where any app has our mod::

    before_fit, after_backward, after_step       after the method's own
    after_fit(arrays)                            arrays of the update
    outgoing(arrays)                             arrays on their way out, by ascending ``order``
    coded(given, decoded)                        arrays as the server decodes them

A message names parts from a registry, in ``parts``, and brings their settings as plain values, ``NAME.field``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from flsparse import rng
from flsparse.clients.core.fit import Fit
from flsparse.clients.core.state import NodeState
from flsparse.codec import Reference, Specs
from flsparse.configs import build, did_you_mean
from flsparse.nets.arrays import Arrays
from flsparse.nets.batch_norm import statistics_names
from flsparse.wire.messages import CONTROL, Entries, Scalar

CLIP, NOISE, PRUNE, SPARSIFY, MIRROR = 10, 20, 30, 40, 50  # order of the parts on an update's way out


def weight_names(specs: Specs) -> list[str]:
    """Return the names of the model's floating weights: no exact arrays, batch-norm statistics or arrays of parts."""
    statistics = set(statistics_names(specs))
    return [
        name
        for name, spec in specs.items()
        if spec.dtype.kind == "f" and not spec.exact and name not in statistics and not name.startswith(CONTROL)
    ]


@dataclass(frozen=True)
class Leaving:
    """An update on its way out of the device.

    Attributes
    ----------
    received : Reference
        The broadcast as this node decoded it.
    prunable : list[str]
        Names of the arrays that may be pruned.
    state : NodeState
        State of this node across rounds.
    values : str
        Codec of the update; "raw" loses nothing.
    seed, server_round, node : int
        Of the randomness; node is the partition id.
    metrics : dict[str, float]
        Metrics of the reply; parts add to them.
    """

    received: Reference
    prunable: list[str]
    state: NodeState
    values: str
    seed: int
    server_round: int
    node: int
    metrics: dict[str, float]

    @classmethod
    def of(
        cls,
        asked: Mapping[str, Any],
        received: Reference,
        prunable: list[str],
        state: NodeState,
        metrics: dict[str, float],
    ) -> "Leaving":
        """Return the update that answers a message's ``flsparse`` record."""
        told = Entries(asked, "a message")
        seed, server_round, node = (told.integer(key) for key in ("seed", "round", "node"))
        values = told.text("values", "raw")
        return cls(received, prunable, state, values, seed, server_round, node, metrics)

    def stream(self, purpose: str) -> np.random.Generator:
        """Return the randomness of this node in this round for a purpose."""
        return rng.stream(self.seed, self.server_round, self.node, purpose)

    def floating(self, arrays: Mapping[str, np.ndarray]) -> list[str]:
        """Return the names of the arrays that a part may change: floating weights without batch-norm statistics."""
        return [name for name in weight_names(self.received.specs) if name in arrays]


@dataclass(kw_only=True)
class Part:
    """A part on the device. Subclasses are data classes whose fields are the settings.

    Attributes
    ----------
    name : str
        As in ``parts:`` of a configuration.
    order : int
        Place among the parts that change an update on its way out.
    excludes : tuple[str, ...]
        Parts it cannot be combined with.
    needs_server : bool
        The server has a side of it, too, and cannot ask for it without.
    """

    name: ClassVar[str] = ""
    order: ClassVar[int] = 0
    excludes: ClassVar[tuple[str, ...]] = ()
    needs_server: ClassVar[bool] = False

    def before_fit(self, fit: Fit) -> None:
        """Run before the first step, the received weights loaded."""

    def after_backward(self, fit: Fit) -> None:
        """Run after the gradients are there, before the optimizer's step."""

    def after_step(self, fit: Fit) -> None:
        """Run after the optimizer's step."""

    def after_fit(self, fit: Fit, arrays: Arrays) -> Arrays:
        """Return the arrays of the update, by state-dict key."""
        return arrays

    def base(self, leaving: Leaving, base: Reference) -> Reference:
        """Return the reference that the update is coded against and changed relative to."""
        return base

    def outgoing(self, arrays: Arrays, leaving: Leaving, base: Reference) -> Arrays:
        """Return the arrays of the update after this part."""
        return arrays

    def coded(self, given: Arrays, decoded: Arrays, leaving: Leaving) -> None:
        """Note the arrays as the server decodes them; ``given`` are the arrays that :meth:`outgoing` got."""

    @property
    def reads_back(self) -> bool:
        """Whether :meth:`coded` is to be called: the payload is decoded for it."""
        return type(self).coded is not Part.coded

    def preview_update(self, trained: Arrays, received: Arrays) -> Arrays:
        """Return an update roughly as it is after the part, for a run's preview."""
        return trained


PARTS: dict[str, type[Part]] = {}


def register_part(part: type[Part]) -> type[Part]:
    """Add a part to the names that a message may ask for (class decorator)."""
    PARTS[part.name] = part
    return part


def asked_entries(part: Part) -> dict[str, Scalar]:
    """Return the entries of a message's record that ask for a part: ``{"parts": name, "name.field": value}``."""
    return {"parts": part.name, **{f"{part.name}.{f.name}": getattr(part, f.name) for f in fields(part)}}


def asked_parts(asked: Mapping[str, Any]) -> list[Part]:
    """Build the parts that a message's ``flsparse`` record asks for, in their order.

    Raises
    ------
    ValueError
        A name is not registered, or a setting does not exist or is out of range.
    """
    parts = []
    for name in filter(None, str(asked.get("parts", "")).split(",")):
        settings = {key.removeprefix(f"{name}."): each for key, each in asked.items() if key.startswith(f"{name}.")}
        if name not in PARTS:
            raise ValueError(f"parts={name!r} is none of {', '.join(sorted(PARTS))}{did_you_mean(name, PARTS)}")
        parts.append(build(PARTS, name, settings, what=f"parts.{name}"))
    return parts


def part_entries(asked: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return the entries of a record that ask for parts."""
    names = tuple(f"{name}." for name in str(asked.get("parts", "")).split(",") if name)
    return {key: value for key, value in asked.items() if key == "parts" or (names and key.startswith(names))}


@dataclass
class Way:
    """The way of an update out of a device, through parts.

    Attributes
    ----------
    parts : list[Part]
        By ascending order.
    leaving : Leaving
    base : Reference
        Reference that the update is coded against.
    """

    parts: list[Part]
    leaving: Leaving
    base: Reference = field(init=False)
    _given: list[Arrays] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parts = sorted(self.parts, key=lambda part: part.order)
        self.base = self.leaving.received
        for part in self.parts:
            self.base = part.base(self.leaving, self.base)

    def outgoing(self, arrays: Arrays) -> Arrays:
        """Return the arrays to send for trained arrays."""
        turning = [n for n, s in self.leaving.received.specs.items() if s.dtype.kind == "c" and not s.exact]
        if self.parts and turning:
            names = ", ".join(part.name for part in self.parts)
            raise ValueError(f"array {turning[0]!r} is complex, and parts change real weights alone: leave out {names}")
        for part in self.parts:
            self._given.append(arrays)
            arrays = part.outgoing(arrays, self.leaving, self.base)
        return arrays

    @property
    def reads_back(self) -> bool:
        """Whether a part needs the arrays as the server decodes them."""
        return any(part.reads_back for part in self.parts)

    def coded(self, decoded: Arrays) -> None:
        """Tell the parts the arrays as the server decodes them."""
        for part, given in zip(self.parts, self._given, strict=True):
            part.coded(given, decoded, self.leaving)


def check_parts(parts: Sequence[Any]) -> None:
    """Refuse parts that are given twice, or that cannot be combined.

    Parameters
    ----------
    parts : Sequence
        Parts of either side, with ``name`` and ``excludes``.

    Raises
    ------
    ValueError
        With the names of the two.
    """
    names = [part.name for part in parts]
    for part in parts:
        if names.count(part.name) > 1:
            raise ValueError(f"parts: {part.name!r} is there twice: the method may have it by itself; leave it out")
        for other in part.excludes:
            if other in names:
                raise ValueError(f"parts: {part.name!r} cannot stand beside {other!r}: leave one of them out")
