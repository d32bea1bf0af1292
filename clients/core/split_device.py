"""A device in split learning, from one message to the next (see :mod:`flsparse.clients.split_ms`).

A device may run in a fresh process for every message, so nothing but arrays and numbers in the node's state outlives
one: the forward pass is computed again before the backward pass, from the same weights on the same batch.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from flsparse import rng
from flsparse.clients.core.compress import Limits
from flsparse.clients.core.method import Scalar, TaskLike, asked_method
from flsparse.clients.core.state import NodeState
from flsparse.clients.split_ms import SplitMSLocal, batch_positions
from flsparse.codec import Codec, Reference, decode_activations, decode_gradient, encode_gradient
from flsparse.nets.arrays import Arrays, load_arrays, state_arrays
from flsparse.nets.seeded import seeded
from flsparse.schedules import batches_of_a_pass
from flsparse.wire import bundle as split
from flsparse.wire import messages
from flsparse.wire.bundle import Part

_cut: WeakKeyDictionary[TaskLike, dict[tuple[str, str], list[nn.Module]]] = WeakKeyDictionary()
_SESSION, _MODEL, _RECEIVED, _MOMENTUM = "split-session", "split-model", "split-received", "split-momentum"


def split_function(
    load_task: Callable[[Context], TaskLike], partition_id: Callable[[Context], int], limits: Limits
) -> ClientAppCallable:
    """Return the function that answers ``query.split`` messages.

    Parameters
    ----------
    load_task, limits
        As for :func:`flsparse.clients.device_app`.
    partition_id : Callable[[Context], int]
        Tells a node's partition.
    """

    def answer(message: Message, context: Context) -> Message:
        state, task = NodeState(context, limits.max_state_bytes), load_task(context)
        data = task.train_data(partition_id(context))
        if (bundled := split.packed_bundle(message.content)) is None:
            device = Device.begin(message.content, task, data, state)
            limits.check("max_local_epochs", device.passes())
            return Message(RecordDict({split.DATA: split.pack(split.bundle(device.forward()))}), reply_to=message)
        limits.check("max_payload_bytes", len(bundled))
        asked = message.content.config_records[split.RECORD]
        device = Device(task, data, state, int(asked["round"]), int(asked["step"]))  # type: ignore[arg-type]
        parts, stage = split.unbundle(bundled), asked["stage"]
        if stage == split.HEAD:
            return Message(
                RecordDict({split.DATA: split.pack(split.bundle(device.through_head(parts)))}), reply_to=message
            )
        device.backward(parts)
        if stage == split.STEP:
            limits.check("max_local_epochs", device.passes())
            return Message(RecordDict({split.DATA: split.pack(split.bundle(device.forward()))}), reply_to=message)
        payload, metrics = device.end()
        content = RecordDict({"arrays": messages.pack(payload), "metrics": MetricRecord(metrics)})  # type: ignore[arg-type]
        content[messages.RECORD] = ConfigRecord({"held": state.held})
        return Message(content, reply_to=message)

    return answer


def _parts(task: TaskLike, asked: SplitMSLocal) -> list[nn.Module]:
    """Cut the task's model once in a process: every message loads its own weights into the parts."""
    known = _cut.setdefault(task, {})
    if (key := (asked.cut, asked.head)) not in known:
        known[key] = asked.parts(task.model())
    return known[key]


class Device:
    """A device in the middle of a round, rebuilt from the node's state for each message.

    Parameters
    ----------
    task : TaskLike
        Gives model and optimizer.
    data : Any
        The node's training data.
    state : NodeState
        Holds what :meth:`begin` stored.
    server_round, step : int
        What the server believes this is about.

    Raises
    ------
    ValueError
        The node has lost its state, or is at another step.
    """

    def __init__(self, task: TaskLike, data: Any, state: NodeState, server_round: int, step: int) -> None:
        self.task, self.data, self.state = task, data, state
        stored, arrays = state.values.get(_SESSION), state.get(_MODEL)
        session = json.loads(str(stored)) if stored else {}
        at = (session.get("round"), session.get("step"))
        if arrays is None or at != (server_round, step):
            raise ValueError(f"this node is at round and step {at}, not {(server_round, step)}: it has lost its state")
        self._open(session, arrays)

    def _open(self, session: dict[str, Any], arrays: Arrays) -> None:
        self.session, self.asked = session, SplitMSLocal(**session["method"])
        self.config: Mapping[str, Scalar] = session["config"]
        parts = _parts(self.task, self.asked)
        self.bottom, self.head = parts[0], parts[2] if self.asked.head else nn.Identity()
        self.device = next(parts[0].parameters()).device
        self.sent = {key: arrays.pop(key) for key in list(arrays) if key.startswith("sent/")}
        inside = set(self.bottom.state_dict())
        load_arrays(self.bottom, {key: array for key, array in arrays.items() if key in inside})
        load_arrays(self.head, {key: array for key, array in arrays.items() if key not in inside})
        self.bottom.train(), self.head.train()

    def arrays(self) -> Arrays:
        """Return the layers on this device, under the model's own state-dict keys."""
        return state_arrays(self.bottom) | state_arrays(self.head)

    def passes(self) -> float:
        """Return the passes over the data that this round comes to with the batches of this step."""
        batches: int = (self.session["step"] + 1) * self.asked.batches
        return batches / batches_of_a_pass(len(self.data), int(self.config["batch-size"]))

    @classmethod
    def begin(cls, content: RecordDict, task: TaskLike, data: Any, state: NodeState) -> "Device":
        """Take what the server asks for and the averaged layers, which CompressMod has decoded."""
        asked = messages.record_of(content)
        method = asked_method(asked)
        if not isinstance(method, SplitMSLocal):
            raise ValueError(f"a message of split learning asks for the method {method.name!r}")
        if len(data) == 0:
            raise ValueError("this node has no training data")
        config = dict(messages.config_of(content).items())
        arrays = messages.to_numpy(content.array_records[messages.arrayrecord_key(content)])
        if not (asked["hold"] and state.held):
            state.put(_RECEIVED, arrays)
        device = cls.__new__(cls)
        device.task, device.data, device.state = task, data, state
        session = {
            "method": method.hyperparameters(),
            "config": config,
            "round": asked["round"],
            "step": 0,
            "first_batch": config["first-batch"],
            "seed": asked["seed"],
            "node": asked["node"],
            "values": asked["values"],
            "value_rounding": asked["rounding"],
            "samples": 0,
            "loss": 0.0,
            "correct": 0,
            "encode_s": 0.0,
            "compute_s": 0.0,
        }
        device._open(session, arrays)
        return device

    # -- a step ---------------------------------------------------------------------------------------------------

    def forward(self) -> list[Part]:
        """Run the next batches through the bottom; return their coded activations, and the labels if these are sent."""
        codec, parts = self.asked.codec(), []
        self.sent = {}
        for j, (inputs, targets) in enumerate(self._batches()):
            started = time.perf_counter()
            with torch.no_grad(), self._drawing(j):
                smashed = self.bottom(inputs)
            self.session["compute_s"] += time.perf_counter() - started
            started = time.perf_counter()
            array = smashed.cpu().numpy()
            data, sent = codec.encode_and_tell(array, rng=self._stream(f"coding-{j}"))
            self.session["encode_s"] += time.perf_counter() - started
            parts.append(Part(split.ACTIVATIONS, array.shape, data))
            if not self.asked.head:
                labels = targets.cpu().numpy()
                parts.append(Part(split.LABELS, labels.shape, split.encode_labels(labels)))
            if self.asked.gradient == "int4":
                self.sent[f"sent/{j}"] = np.packbits(sent)
            self.session["samples"] += len(targets)
        self._store()
        return parts

    def through_head(self, parts: list[Part]) -> list[Part]:
        """Run the server's activations through the head to the loss; step the head, return the gradients."""
        started = time.perf_counter()
        batches = list(self._batches())
        if len(parts) != len(batches):
            raise ValueError(f"{len(parts)} tensors came for {len(batches)} batches")
        total = sum(len(targets) for _, targets in batches)
        _, form = self.asked.head_forms()
        gradients, loss_sum = [], torch.zeros(())
        self.optimizers["head"].zero_grad()
        for j, (part, (_, targets)) in enumerate(zip(parts, batches, strict=True)):
            array, _ = decode_activations(part.data, part.shape)
            received = torch.from_numpy(array).to(self.device).requires_grad_()
            with self._drawing(j, "head"):
                logits = self.head(received.clone())  # its first layer may write into what it is given
            loss = cross_entropy(logits, targets, reduction="sum")
            (loss / total).backward()
            assert received.grad is not None
            gradient = received.grad.cpu().numpy()
            data = encode_gradient(gradient, form, np.ones(gradient.size, np.bool_))
            gradients.append(Part(split.GRADIENT, gradient.shape, data))
            loss_sum += loss.detach().cpu()
            self.session["correct"] += int((logits.argmax(-1) == targets).sum())
        self.optimizers["head"].step()
        self.session["loss"] += float(loss_sum)
        self.session["compute_s"] += time.perf_counter() - started
        self._store()
        return gradients

    def backward(self, parts: list[Part]) -> None:
        """Take the gradients of the last batches at the cut through the bottom, and step it once."""
        started = time.perf_counter()
        batches = list(self._batches())
        if len(parts) != len(batches):
            raise ValueError(f"{len(parts)} gradients came for {len(batches)} batches")
        statistics = {name: buffer.clone() for name, buffer in self.bottom.named_buffers()}
        self.optimizers["bottom"].zero_grad()
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
        self.optimizers["bottom"].step()
        self.session["compute_s"] += time.perf_counter() - started
        self.session["step"] += 1

    def end(self) -> tuple[bytes, dict[str, float]]:
        """Return the coded change of the device's layers, and what was measured."""
        self._store()
        session, steps = self.session, int(self.session["step"])
        codec = Codec(values=session["values"], rounding=session["value_rounding"])
        received = self.state.reference(self.state.held) if self.state.held else None
        if received is None and codec.values != "raw":
            if (arrays := self.state.get(_RECEIVED)) is None:
                raise ValueError("this node has lost what it received at the start of the round")
            received = Reference(arrays)
        reference = None if codec.values == "raw" else received
        payload = codec.encode(self.arrays(), reference=reference, rng=self._stream("rounding"))
        self.state.drop(_MODEL)
        metrics = {
            "num-examples": float(session["samples"]),
            "steps": float(steps),
            "step-seconds": session["compute_s"] / steps,
            "encode-ms": 1e3 * session["encode_s"] / (steps * self.asked.batches),
        }
        if self.asked.head:
            metrics["train-loss"] = session["loss"] / session["samples"]
            metrics["train-accuracy"] = session["correct"] / session["samples"]
        return payload, metrics

    # -- state ----------------------------------------------------------------------------------------------------

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and targets of the batches of this step."""
        first = self.session["first_batch"] + self.session["step"] * self.asked.batches
        for index in range(first, first + self.asked.batches):
            positions = batch_positions(
                len(self.data), int(self.config["batch-size"]), index, self.session["seed"], self.session["node"]
            )
            chosen = self.data.index[torch.from_numpy(positions)]
            inputs = self.data.prepare(self.data.all_inputs[chosen].to(self.device))
            yield inputs, self.data.all_targets[chosen].long().to(self.device)

    def _stream(self, purpose: str) -> np.random.Generator:
        where = f"split/{self.session['step']}/{purpose}"
        return rng.stream(self.session["seed"], self.session["round"], self.session["node"], where)

    @contextmanager
    def _drawing(self, j: int, part: str = "bottom") -> Iterator[None]:
        """Draw dropout from this batch's own seed, both times that it is computed."""
        where = f"split/{self.session['step']}/{j}/{part}"
        with seeded(rng.derive(self.session["seed"], self.session["round"], self.session["node"], where), self.device):
            yield

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """Optimizers of the parts, with their momentum from the step before."""
        if not hasattr(self, "_optimizers"):
            parts = {"bottom": self.bottom} | ({"head": self.head} if self.asked.head else {})
            self._optimizers = {name: self.task.optimizer(part, self.config) for name, part in parts.items()}
            stored = self.state.get(_MOMENTUM) or {}
            for key, array in stored.items():
                name, place, slot = key.split("/")
                optimizer = self._optimizers[name]
                parameter = optimizer.param_groups[0]["params"][int(place)]
                optimizer.state[parameter][slot] = torch.from_numpy(array).to(self.device)
        return self._optimizers

    def _store(self) -> None:
        """Keep what the next message needs; momentum outlives the round."""
        momentum = {
            f"{name}/{place}/{slot}": value.cpu().numpy()
            for name, optimizer in self.optimizers.items()
            for place, parameter in enumerate(optimizer.param_groups[0]["params"])
            for slot, value in optimizer.state[parameter].items()
            if isinstance(value, Tensor)
        }
        if momentum:
            self.state.put(_MOMENTUM, momentum)
        self.state.put(_MODEL, self.arrays() | self.sent)
        self.state.values[_SESSION] = json.dumps(self.session)
