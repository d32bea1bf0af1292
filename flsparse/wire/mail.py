"""Mails of the relay to a node of a decentralized run, the node's answers, and how both travel.

One opaque array carries all payloads of a message, one after the other; the ``flsparse`` record says where each begins.
The relay reads the record and hands the payloads on as they are.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from flsparse.wire.messages import OPAQUE, RECORD, Entries, opaque_payload, pack, record_of

MAIL = "mail"
OK, LOST, NO_INITIAL = "ok", "lost", "no-initial"


@dataclass(frozen=True)
class Letter:
    """One residual on its way.

    Attributes
    ----------
    sender : int
        Partition id.
    round : int
        The round it counts in.
    payload : bytes
        Coded, see :mod:`flsparse.codec.residuals.residual`.
    """

    sender: int
    round: int
    payload: bytes


@dataclass(frozen=True)
class Delivery:
    """Letters for one node.

    Attributes
    ----------
    first, last : int
        The rounds it covers, both included; none when last < first.
    letters : sequence of Letter
        The residuals of the node's neighbors that counted in these rounds.
    accepted : frozenset of int
        The rounds among them in which the node's own residual counted.
    """

    first: int
    last: int
    letters: Sequence[Letter] = ()
    accepted: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Mail:
    """Message of the relay to a node.

    Attributes
    ----------
    round : int
        The round that the node's answer counts in; in an evaluation, one more than the last round delivered.
    epoch : int
        The round after which all copies were the common initialization: 0, or the round of a restart.
    delivery : Delivery
        Letters that the node has not confirmed yet.
    weights : Mapping[int, float]
        Row of the mixing matrix: W_ij by neighbor j.
    starts : bool
        The node has not confirmed the common initialization yet.
    initial_id : str
        Content hash of the common initialization.
    initial : bytes
        The common initialization, coded; empty where the node should have it by itself.
    prunable : sequence of str
        Names of the arrays that the proximal step acts on; only with ``starts`` or ``copies``.
    copies : Mapping[int, bytes]
        Copies to take over, float32, by the node they are of; its own among them. Only to resynchronize.
    copies_after : int
        The round after which they stand.
    wanted : sequence of int
        Copies that another node lacks and that this one is to hand over.
    """

    round: int
    epoch: int
    delivery: Delivery
    weights: Mapping[int, float]
    starts: bool = False
    initial_id: str = ""
    initial: bytes = b""
    prunable: Sequence[str] = ()
    copies: Mapping[int, bytes] = field(default_factory=dict)
    copies_after: int = 0
    wanted: Sequence[int] = ()

    def to_content(self, extra: Mapping[str, Any]) -> RecordDict:
        """Return the records of the message; ``extra`` joins the ``flsparse`` record."""
        letters = self.delivery.letters
        record = {
            "round": self.round,
            "epoch": self.epoch,
            "first": self.delivery.first,
            "last": self.delivery.last,
            "accepted": sorted(self.delivery.accepted),
            "neighbours": list(self.weights),
            "weights": [float(weight) for weight in self.weights.values()],
            "senders": [letter.sender for letter in letters],
            "rounds": [letter.round for letter in letters],
            "sizes": [len(letter.payload) for letter in letters],
            "copies": list(self.copies),
            "copies-after": self.copies_after,
            "copy-sizes": [len(copy) for copy in self.copies.values()],
            "wanted": list(self.wanted),
            "prunable": list(self.prunable),
            "starts": self.starts,
            "initial-id": self.initial_id,
            "initial-size": len(self.initial),
        }
        parts = [letter.payload for letter in letters] + list(self.copies.values()) + [self.initial]
        return _content(record, extra, parts, models=len(letters) + len(self.copies) + bool(self.initial))

    @classmethod
    def of(cls, content: RecordDict) -> "Mail":
        """Read the records of :meth:`to_content`.

        Raises
        ------
        ValueError
            The message is no mail.
        """
        record, parts = Entries(record_of(content), "a mail"), _Parts(opaque_payload(content) or b"")
        letters = [
            Letter(sender, number, parts.take(size))
            for sender, number, size in zip(
                record.integers("senders"), record.integers("rounds"), record.integers("sizes"), strict=True
            )
        ]
        copies = {
            node: parts.take(size)
            for node, size in zip(record.integers("copies"), record.integers("copy-sizes"), strict=True)
        }
        return cls(
            round=record.integer("round", 0),
            epoch=record.integer("epoch", 0),
            delivery=Delivery(
                record.integer("first", 0), record.integer("last", 0), letters, frozenset(record.integers("accepted"))
            ),
            weights=dict(zip(record.integers("neighbours"), record.values("weights"), strict=True)),
            starts=bool(record.integer("starts", 0)),
            initial_id=record.text("initial-id"),
            initial=parts.take(record.integer("initial-size", 0)),
            prunable=record.values("prunable"),
            copies=copies,
            copies_after=record.integer("copies-after", 0),
            wanted=record.integers("wanted"),
        )


@dataclass(frozen=True)
class Answer:
    """A node's reply to the relay.

    Attributes
    ----------
    status : {"ok", "lost", "no-initial"}
        "lost": it must be resynchronized; "no-initial": its own initial model is another one.
    applied : int
        The last round it has taken in; -1 when it is lost.
    payload : bytes
        Its residual; in an evaluation its model.
    copies : Mapping[int, bytes]
        The copies it was asked for, as they stand after round ``applied``.
    misfit : sequence of int
        Sender and round of the residual on account of which it is lost; empty where it is lost for another reason.
    """

    status: str
    applied: int = -1
    payload: bytes = b""
    copies: Mapping[int, bytes] = field(default_factory=dict)
    misfit: Sequence[int] = ()

    def to_content(self) -> RecordDict:
        """Return the records of the reply."""
        record = {
            "status": self.status,
            "applied": self.applied,
            "size": len(self.payload),
            "copies": list(self.copies),
            "copy-sizes": [len(copy) for copy in self.copies.values()],
            "misfit": list(self.misfit),
        }
        parts = [self.payload, *self.copies.values()]
        return _content(record, {}, parts, models=bool(self.payload) + len(self.copies))

    @classmethod
    def of(cls, content: RecordDict) -> "Answer":
        """Read the records of :meth:`to_content`.

        Raises
        ------
        ValueError
            The reply is no answer.
        """
        record, parts = Entries(record_of(content), "a mail"), _Parts(opaque_payload(content) or b"")
        payload = parts.take(record.integer("size", 0))
        copies = {
            node: parts.take(size)
            for node, size in zip(record.integers("copies"), record.integers("copy-sizes"), strict=True)
        }
        return cls(
            record.text("status"), record.integer("applied", 0), payload, copies, tuple(record.integers("misfit"))
        )


def to_bytes(copy: np.ndarray) -> bytes:
    """Return a copy's float32 bytes, little endian."""
    return copy.astype("<f4").tobytes()


def from_bytes(data: bytes, size: int) -> np.ndarray:
    """Invert :func:`to_bytes`.

    Raises
    ------
    ValueError
        The copy is not of this size, or holds NaN or infinity.
    """
    if len(data) != 4 * size:
        raise ValueError(f"a copy of {len(data)} bytes does not fit a model of {size} parameters")
    copy = np.frombuffer(data, "<f4").astype(np.float32)
    if not np.isfinite(copy).all():
        raise ValueError("a copy that another node handed over holds NaN or infinity")
    return copy


def _content(record: Mapping[str, Any], extra: Mapping[str, Any], parts: Iterable[bytes], models: int) -> RecordDict:
    blob = b"".join(parts)
    plain = {key: value for key, value in record.items() if value not in ([], "")}
    records: dict[str, Any] = {MAIL: pack(blob, OPAQUE)} if blob else {}
    return RecordDict({**records, RECORD: ConfigRecord({**plain, "models": models, **extra})})


class _Parts:
    """Takes a blob apart."""

    def __init__(self, blob: bytes) -> None:
        self.blob, self.at = blob, 0

    def take(self, size: int) -> bytes:
        if not 0 <= size <= len(self.blob) - self.at:
            raise ValueError(f"a mail of {len(self.blob)} bytes ends early")
        self.at += size
        return self.blob[self.at - size : self.at]
