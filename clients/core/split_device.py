"""A device in split learning: its answer to each message of a round, from one to the next.

A device may run in a fresh process for every message, so nothing but arrays and numbers in the node's state outlives
one: the forward pass is computed again before the backward pass, from the same weights on the same batch.
"""

import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
import torch
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from torch import Tensor, nn
from torch.optim import Optimizer

from flsparse.clients.core.compress import coded_update, encode_update
from flsparse.clients.core.method import Kind, LocalMethod, TaskLike, Visit, unanswered
from flsparse.clients.core.part import Leaving, Way, asked_parts, part_entries
from flsparse.clients.core.split_session import Session
from flsparse.codec import Reference, decode_activations, decode_gradient, encode_gradient
from flsparse.codec.activations.compressors import ActivationCodec
from flsparse.nets.arrays import Arrays, load_arrays, load_optimizer, optimizer_arrays, state_arrays
from flsparse.nets.cutting import cut_model
from flsparse.nets.losses import class_loss
from flsparse.nets.seeded import seeded
from flsparse.schedules import batches_of_a_pass
from flsparse.wire import bundle as split
from flsparse.wire import messages
from flsparse.wire.bundle import Part

_cut: WeakKeyDictionary[TaskLike, dict[tuple[str, str], list[nn.Module]]] = WeakKeyDictionary()
_MODEL, _RECEIVED, _MOMENTUM = "split-model", "split-received", "split-momentum"


@dataclass(kw_only=True)
class SplitLocal(LocalMethod):
    """Split learning on the device, whatever codes its activations.

    Attributes
    ----------
    cut : str
        The layer that the device's part ends with.
    head : str
        The layer that the server's part ends with, where the labels stay on the device; empty: they are sent.
    gradient : {"fp32", "fp16", "int4"}
        How gradients at the cut are coded (:mod:`flsparse.codec.activations.gradient`).
    batches : int
        Batches a message, at least 1.
    """

    cut: str = ""
    head: str = ""
    gradient: str = "int4"
    batches: int = 1

    @abstractmethod
    def codec(self) -> ActivationCodec:
        """Return the codec of the smashed data."""

    @abstractmethod
    def head_forms(self) -> tuple[ActivationCodec, str]:
        """Return how activations and gradients travel at the head."""

    def parts(self, model: nn.Module) -> list[nn.Module]:
        """Cut a model: bottom, the server's part and, where the labels stay on the device, the head."""
        return [*cut_model(model, [self.cut, self.head] if self.head else [self.cut])]

    def passes(self, kind: Kind, visit: Visit) -> float:
        """Return the passes over the data that this round comes to with the batches of this message."""
        if kind is not Kind.SPLIT:
            return super().passes(kind, visit)
        if (record := _step_record(visit)) is None:
            batches, batch_size = self.batches, visit.config["batch-size"]
        else:
            session = Session.load(visit.state, record["round"], record["step"])
            steps = session.step + (2 if record["stage"] == split.STEP else 1)
            batches, batch_size = steps * session.method["batches"], session.config["batch-size"]
        return batches / batches_of_a_pass(len(visit.data), int(batch_size))

    def answer(self, kind: Kind, visit: Visit) -> RecordDict:
        """Answer SPLIT by its stage: smashed data, gradients at the head, or the coded change of the layers.

        Raises
        ------
        ValueError
            It is another kind, the node has lost its state, or the message does not fit the step.
        PayloadError
            The bundle is damaged.
        """
        if kind is not Kind.SPLIT:
            raise unanswered(self, kind)
        if (record := _step_record(visit)) is None:
            return _content(Device.begin(self, visit).forward())
        session = Session.load(visit.state, record["round"], record["step"])
        if (arrays := visit.state.get(_MODEL)) is None:
            raise ValueError(f"this node has lost its layers of round {session.round}, step {session.step}")
        device = Device(replace(self, **session.method), visit, session, arrays)
        parts = split.unbundle(split.packed_bundle(visit.content) or b"")
        if record["stage"] == split.HEAD:
            return _content(device.through_head(parts))
        device.backward(parts)
        return _content(device.forward()) if record["stage"] == split.STEP else device.end()


def _step_record(visit: Visit) -> ConfigRecord | None:
    """Return the stage, round and step of a message; None at the beginning of a round, which brings no bundle."""
    return None if split.packed_bundle(visit.content) is None else visit.content.config_records[split.RECORD]


def _content(parts: list[Part]) -> RecordDict:
    return RecordDict({split.DATA: split.pack(split.bundle(parts))})


def _parts(task: TaskLike, method: SplitLocal) -> list[nn.Module]:
    """Cut the task's model once in a process: every message loads its own weights into the parts."""
    known = _cut.setdefault(task, {})
    if (key := (method.cut, method.head)) not in known:
        known[key] = method.parts(task.model())
    return known[key]


class Device:
    """The layers of one node in the middle of a round.

    Parameters
    ----------
    method : SplitLocal
        The method that the round began with.
    visit : Visit
        The message that is being answered.
    session : Session
        Where the round is.
    arrays : dict[str, np.ndarray]
        The layers on this device, by the model's state-dict keys; under ``sent/j`` the positions of batch j's
        sent activations, as packed bits.
    """

    def __init__(self, method: SplitLocal, visit: Visit, session: Session, arrays: Arrays) -> None:
        self.method, self.session, self.state = method, session, visit.state
        self.task, self.data = visit.task, visit.data
        parts = _parts(self.task, method)
        self.bottom, self.head = parts[0], parts[2] if method.head else nn.Identity()
        self.device = next(self.bottom.parameters()).device
        self.sent = {key: array for key, array in arrays.items() if key.startswith("sent/")}
        self.momentum: Arrays = {}  # of this message's step, where it takes one
        inside = set(self.bottom.state_dict())
        load_arrays(self.bottom, {key: array for key, array in arrays.items() if key in inside})
        load_arrays(self.head, {key: array for key, array in arrays.items() if key not in inside | set(self.sent)})
        self.bottom.train(), self.head.train()

    @classmethod
    def begin(cls, method: SplitLocal, visit: Visit) -> "Device":
        """Begin a round with the averaged layers, which CompressMod has decoded."""
        asked, config = visit.asked, visit.config
        told = messages.Entries(asked, "a message")
        if len(visit.data) == 0:
            raise ValueError("this node has no training data")
        arrays = messages.to_numpy(visit.content.array_records[messages.arrayrecord_key(visit.content)])
        if not (asked["hold"] and visit.state.held):
            visit.state.put(_RECEIVED, arrays)
        session = Session(
            method=method.hyperparameters(),
            config=config,
            round=told.integer("round"),
            node=told.integer("node"),
            seed=told.integer("seed"),
            values=told.text("values"),
            rounding=told.text("rounding"),
            parts=part_entries(asked),
        )
        return cls(method, visit, session, arrays)

    def arrays(self) -> Arrays:
        """Return the layers on this device, under the model's own state-dict keys."""
        return state_arrays(self.bottom) | state_arrays(self.head)

    # -- a step ---------------------------------------------------------------------------------------------------

    def forward(self) -> list[Part]:
        """Run the next batches through the bottom; return their coded activations, and the labels if these are sent."""
        codec, parts = self.method.codec(), []
        compute_s = encode_s = 0.0
        samples, self.sent = 0, {}
        for j, (inputs, targets) in enumerate(self._batches()):
            started = time.perf_counter()
            with torch.no_grad(), self._drawing(j):
                smashed = self.bottom(inputs)
            computed = time.perf_counter()
            array = smashed.cpu().numpy()
            data, sent = codec.encode_and_tell(array, rng=self.session.stream(f"coding-{j}"))
            compute_s += computed - started
            encode_s += time.perf_counter() - computed
            parts.append(Part(split.ACTIVATIONS, array.shape, data))
            if not self.method.head:
                labels = targets.cpu().numpy()
                parts.append(Part(split.LABELS, labels.shape, split.encode_labels(labels)))
            if self.method.gradient == "int4":
                self.sent[f"sent/{j}"] = np.packbits(sent)
            samples += len(targets)
        s = self.session
        self.session = replace(
            s, samples=s.samples + samples, compute_s=s.compute_s + compute_s, encode_s=s.encode_s + encode_s
        )
        self._store()
        return parts

    def through_head(self, parts: list[Part]) -> list[Part]:
        """Run the server's activations through the head to the loss; step the head, return the gradients."""
        started = time.perf_counter()
        batches = list(self._batches())
        if len(parts) != len(batches):
            raise ValueError(f"{len(parts)} tensors came for {len(batches)} batches")
        total = sum(len(targets) for _, targets in batches)
        _, form = self.method.head_forms()
        gradients, loss_sum, correct = [], torch.zeros(()), 0
        optimizers = self._optimizers()
        optimizers["head"].zero_grad()
        for j, (part, (_, targets)) in enumerate(zip(parts, batches, strict=True)):
            array, _ = decode_activations(part.data, part.shape)
            received = torch.from_numpy(array).to(self.device).requires_grad_()
            with self._drawing(j, "head"):
                logits = self.head(received.clone())  # its first layer may write into its input
            loss = class_loss(logits, targets, "sum")
            (loss / total).backward()
            assert received.grad is not None
            gradient = received.grad.cpu().numpy()
            data = encode_gradient(gradient, form, np.ones(gradient.size, np.bool_))
            gradients.append(Part(split.GRADIENT, gradient.shape, data))
            loss_sum += loss.detach().cpu()
            correct += int((logits.argmax(-1) == targets).sum())
        self._step(optimizers, "head")
        s, elapsed = self.session, time.perf_counter() - started
        self.session = replace(
            s, loss=s.loss + float(loss_sum), correct=s.correct + correct, compute_s=s.compute_s + elapsed
        )
        self._store()
        return gradients

    def backward(self, parts: list[Part]) -> None:
        """Take the gradients of the last batches at the cut through the bottom, and step it once."""
        started = time.perf_counter()
        batches = list(self._batches())
        if len(parts) != len(batches):
            raise ValueError(f"{len(parts)} gradients came for {len(batches)} batches")
        statistics = {name: buffer.clone() for name, buffer in self.bottom.named_buffers()}
        optimizers = self._optimizers()
        optimizers["bottom"].zero_grad()
        for j, (part, (inputs, _)) in enumerate(zip(parts, batches, strict=True)):
            with self._drawing(j):
                smashed = self.bottom(inputs)
            if part.shape != smashed.shape:
                raise ValueError(f"a gradient of shape {part.shape} came for activations of {tuple(smashed.shape)}")
            packed = self.sent.get(f"sent/{j}")  # of a form that covers every value there is none
            if packed is None:
                sent = np.ones(smashed.numel(), np.bool_)
            else:
                sent = np.unpackbits(packed, count=smashed.numel()).view(np.bool_)
            gradient = torch.from_numpy(decode_gradient(part.data, part.shape, sent)).to(self.device)
            if smashed.requires_grad:  # else all of the bottom is frozen
                smashed.backward(gradient)
        for name, buffer in self.bottom.named_buffers():
            buffer.copy_(statistics[name])  # batch norm has seen these batches once already
        self._step(optimizers, "bottom")
        s, elapsed = self.session, time.perf_counter() - started
        self.session = replace(s, step=s.step + 1, compute_s=s.compute_s + elapsed)

    def end(self) -> RecordDict:
        """Return the coded change of the device's layers, and metrics of the round; forget the layers."""
        session, received = self.session, self._received()
        measured: dict[str, float] = {}
        generator = session.stream("rounding")
        if session.parts and received is None:
            raise ValueError("this node has lost the model received, which the parts of its update compare with")
        if session.parts and received is not None:
            way = Way(asked_parts(session.parts), Leaving.of(asdict(session), received, [], self.state, measured))
            payload = coded_update(self.arrays(), way, session.rounding, generator)
        else:
            payload, _ = encode_update(self.arrays(), received, session.values, session.rounding, generator)
        self._store()
        self.state.drop(_MODEL)
        metrics = measured | {
            "num-examples": float(session.samples),
            "steps": float(session.step),
            "step-seconds": session.compute_s / session.step,
            "encode-ms": 1e3 * session.encode_s / (session.step * self.method.batches),
        }
        if self.method.head:
            metrics["train-loss"] = session.loss / session.samples
            metrics["train-accuracy"] = session.correct / session.samples
        held = ConfigRecord({"held": self.state.held})
        return RecordDict(
            {"arrays": messages.pack(payload), "metrics": MetricRecord(dict(metrics)), messages.RECORD: held}
        )

    # -- state ----------------------------------------------------------------------------------------------------

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and targets of the batches of this step."""
        for positions in self.session.batches(len(self.data), self.method.batches):
            chosen = self.data.index[torch.from_numpy(positions)]
            inputs = self.data.prepare(self.data.all_inputs[chosen].to(self.device))
            yield inputs, self.data.all_targets[chosen].long().to(self.device)

    @contextmanager
    def _drawing(self, j: int, part: str = "bottom") -> Iterator[None]:
        """Draw dropout from this batch's own seed, both times that it is computed."""
        with seeded(self.session.derived(f"{j}/{part}"), self.device):
            yield

    def _optimizers(self) -> dict[str, Optimizer]:
        """Return optimizers of the parts, with their momentum from the step before."""
        stored = self.state.get(_MOMENTUM) or {}
        optimizers = {}
        for name, part in self._trained().items():
            optimizers[name] = self.task.optimizer(part, self.session.config)
            load_optimizer(part, optimizers[name], stored)
        return optimizers

    def _step(self, optimizers: dict[str, Optimizer], name: str) -> None:
        """Step one part; keep the momentum of both."""
        optimizers[name].step()
        for each, part in self._trained().items():
            self.momentum |= optimizer_arrays(part, optimizers[each])

    def _trained(self) -> dict[str, nn.Module]:
        return {"bottom": self.bottom} | ({"head": self.head} if self.method.head else {})

    def _received(self) -> Reference | None:
        """Return the layers as they were at the beginning of the round; None where they are lost."""
        if self.state.held and (held := self.state.reference(self.state.held)) is not None:
            return held
        arrays = self.state.get(_RECEIVED)
        return None if arrays is None else Reference(arrays)

    def _store(self) -> None:
        """Keep the state for the next message; momentum outlives the round."""
        if self.momentum:
            self.state.put(_MOMENTUM, self.momentum)
        self.state.put(_MODEL, self.arrays() | self.sent)
        self.session.save(self.state)
