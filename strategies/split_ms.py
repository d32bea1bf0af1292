"""Split learning with mask-encoded activations on the server (SplitFed; ECAI 2024, arXiv 2408.13787).

    devices:  a_m = bottom(x_m)                                      up: Q(a_m), labels y_m
    server:   L_m = mean CE(top(Q(a_m)), y_m)                        down: dL_m / dQ(a_m)
              top <- top - lr * sum_m n_m dL_m/dtop / sum_m n_m      n_m samples of node m in this step
    devices:  bottom_m <- bottom_m - lr * (da_m/dbottom) dL_m/dQ(a_m)
    after steps_per_round steps:  bottom <- sum_m n_m bottom_m / sum_m n_m

One message and its reply are a step: gradients of the last batches down, smashed data of the next up. With one step a
round, or one node, and nothing compressed this is joint training of the uncut model. With ``labels="kept"`` the model
is cut twice: the device also runs the last layers and the loss, and a step takes two round trips.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from logging import INFO
from math import ceil, prod
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flsparse._flwr import log
from flsparse.clients import split_protocol as split
from flsparse.clients.base import load_arrays, state_arrays
from flsparse.clients.protocol import to_numpy, to_record
from flsparse.clients.split_ms import SplitMSLocal
from flsparse.clients.split_protocol import Part
from flsparse.codec import PayloadError, decode_activations, decode_gradient, encode_gradient
from flsparse.codec.errors import require
from flsparse.cutting import default_head
from flsparse.strategies.fedavg import FedAvg
from flsparse.strategies.split_wire import SplitWire
from flsparse.strategies.wire import Node, Value

_MAX_VALUES = 1 << 28  # of one tensor from a node


class SplitMS(FedAvg):
    """SplitFed: devices run the first layers, the server the others, and compressed activations cross the cut.

    Parameters
    ----------
    cut : str
        Layer behind which the model is cut, as in ``named_modules()``: see :mod:`flsparse.cutting`.
    labels : {"sent", "kept"} (default: "sent")
        Send labels with the activations, or keep them: then the device also runs the layers behind ``head``.
    head : str, optional
        With ``labels="kept"``, the layer that the server's part ends with; default: the last that leaves parameters.
    compressor : {"ms", "topk", "randtopk", "uniform", "none"} (default: "ms")
        How activations travel.
    sparsity : float (default: 0.99)
        r: the fraction of activations that are not kept exactly, in [0, 1).
    bits : int (default: 2)
        b: bits of a mask code, 1..8.
    mask_rounding : {"round", "floor"} (default: "round")
        How a value becomes a mask code.
    kept : {"fp32", "fp16"} (default: "fp32")
        Precision of kept activations.
    entropy : bool (default: True)
        Entropy-code what crosses the cut on the way up; the decoded tensors are the same.
    gradient : {"fp32", "fp16", "int4"} (default: "int4")
        How gradients travel; int4 covers only values whose code was not 0.
    steps_per_round : int (default: 0)
        Steps between two averages of the bottoms; 0: as many as the largest node needs for one pass over its data.
    batches_per_message : int (default: 1)
        Batches that one message carries; they make one step together.
    **fedavg
        Parameters of :class:`FedAvg`, which averages the bottoms. ``round_timeout_s`` holds for each message.
    """

    name = "split_ms"

    def __init__(
        self,
        *,
        cut: str | int,
        labels: str = "sent",
        head: str | int | None = None,
        compressor: str = "ms",
        sparsity: float = 0.99,
        bits: int = 2,
        mask_rounding: str = "round",
        kept: str = "fp32",
        entropy: bool = True,
        gradient: str = "int4",
        steps_per_round: int = 0,
        batches_per_message: int = 1,
        **fedavg: Any,
    ) -> None:
        super().__init__(**{**fedavg, "prunable": []})
        if labels not in ("sent", "kept"):
            raise ValueError(f"labels={labels!r} is neither 'sent' nor 'kept'")
        if self.fraction_evaluate:
            raise ValueError("fraction_evaluate must be 0: no device of split learning holds the whole model")
        for key, value, least in (
            ("steps_per_round", steps_per_round, 0),
            ("batches_per_message", batches_per_message, 1),
        ):
            if value < least:
                raise ValueError(f"{key}={value} must be at least {least}")
        if gradient not in ("fp32", "fp16", "int4"):
            raise ValueError(f"gradient={gradient!r} is none of fp32, fp16, int4")
        self.labels, self._head = labels, "" if head is None else str(head)
        self.steps_per_round = steps_per_round
        self.asked = SplitMSLocal(
            cut=str(cut),
            compressor=compressor,
            sparsity=sparsity,
            bits=bits,
            rounding=mask_rounding,
            kept=kept,
            entropy=entropy,
            gradient=gradient,
            batches=batches_per_message,
        )
        self.asked.codec()  # refuses what is impossible, before anything starts
        self.wire: SplitWire = SplitWire(self.wire.values, self.wire.rounding, self.wire.downlink, [], self.seed)
        self._parts: list[nn.Module] = []
        self._optimizer: torch.optim.Optimizer | None = None
        self._momentum: dict[str, np.ndarray] = {}
        self._batches_done = 0

    # -- the model --------------------------------------------------------------------------------------------------

    def prepare(self, model: nn.Module) -> nn.Module:
        """Cut a copy of the model for training, and let the model itself code its activations when it is evaluated."""
        if self.labels == "kept" and not self.asked.head:
            self.asked.head = self._head or default_head(model, self.asked.cut)
        if not self._parts:
            self._parts = [part.train() for part in self.asked.parts(deepcopy(model))]
        codec = replace(self.asked, entropy=False).codec()  # the same tensors, sooner

        def through_the_codec(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            if module.training:
                return None
            array = output.detach().cpu().numpy()
            decoded, _ = decode_activations(codec.encode(array, rng=np.random.default_rng(0)), array.shape)
            return torch.from_numpy(decoded).to(output)

        if self.asked.compressor != "none":
            model.get_submodule(self.asked.cut).register_forward_hook(through_the_codec)
        return model

    @property
    def top(self) -> nn.Module:
        """The server's part."""
        if not self._parts:
            raise ValueError("call strategy.prepare(model) before start(): the strategy does not know the model yet")
        return self._parts[1]

    @property
    def device_keys(self) -> list[str]:
        """State-dict keys of what devices hold and average."""
        return [key for part in (self._parts[0], *self._parts[2:]) for key in part.state_dict()]

    def method(self, node: Node, server_round: int) -> Mapping[str, Value]:
        """Ask for the cut and the coding."""
        asked = {f"method.{key}": value for key, value in self.asked.hyperparameters().items()}
        return {"method": self.name, **asked}

    def summary(self) -> None:
        """Log the configuration."""
        a = self.asked
        log(INFO, "\t├──> Cut: %s | labels: %s%s", a.cut, self.labels, f", head behind {a.head}" if a.head else "")
        log(INFO, "\t├──> Activations: %s (%g, %d bits) | gradients: %s", a.compressor, a.sparsity, a.bits, a.gradient)
        super().summary()

    # -- a round ----------------------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the averaged bottom to the sampled nodes."""
        self._grid, self._all = grid, to_numpy(arrays)
        load_arrays(self.top, {key: self._all[key] for key in self.top.state_dict()})
        self._model = {key: self._all[key] for key in self.device_keys}
        rate = round_rate(server_round, self._num_rounds, float(config["lr"]), float(config.get("lr-final", 0.0)))  # type: ignore[arg-type]
        config = ConfigRecord({**config, "lr": rate, "lr-final": 0.0, "first-batch": self._batches_done})
        self._set_optimizer(config)
        nodes = self.sample(self.fraction_train, self.min_train_nodes, server_round, "sampling")
        self._steps = self.steps_per_round or self._steps_of_a_pass(nodes, int(config["batch-size"]))  # type: ignore[arg-type]
        self.wire.begin_round()
        return self._messages(nodes, server_round, to_record(self._model), config, split.MESSAGE_TYPE)

    def _steps_of_a_pass(self, nodes: list[Node], batch_size: int) -> int:
        most = max((node.num_examples for node in nodes), default=0)
        if not most:
            raise ValueError("steps_per_round=0 needs the nodes' numbers of examples (hello=True); or set it above 0")
        return ceil(most / (batch_size * self.asked.batches))

    def _set_optimizer(self, config: ConfigRecord) -> None:
        """Build the top's SGD for this round, with its momentum from the round before."""
        parameters = list(self.top.parameters())
        self._optimizer = torch.optim.SGD(
            parameters,
            lr=float(config["lr"]),  # type: ignore[arg-type]
            momentum=float(config.get("momentum", 0.0)),  # type: ignore[arg-type]
            weight_decay=float(config.get("weight-decay", 0.0)),  # type: ignore[arg-type]
        )
        for name, parameter in self.top.named_parameters():
            if name in self._momentum:
                self._optimizer.state[parameter]["momentum_buffer"] = torch.from_numpy(self._momentum[name])

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Lead the nodes through the round's steps, then average their bottoms; None without a quorum."""
        self._tally = _Tally()
        for step in range(self._steps):
            served = self._through_head(server_round, step, replies) if self.asked.head else self._serve(replies)
            stage = split.STEP if step + 1 < self._steps else split.END
            replies = self._send(server_round, step, stage, served)
        aggregated, metrics = super().aggregate_train(server_round, replies)
        self._momentum = self._momentum_now()
        self._batches_done += self._steps * self.asked.batches
        if aggregated is None or metrics is None:
            return None, None
        self._measure(server_round)
        if self._tally.samples and not self.asked.head:
            metrics["train-loss"] = self._tally.loss / self._tally.samples
            metrics["train-accuracy"] = self._tally.correct / self._tally.samples
        merged = self._all | state_arrays(self.top) | to_numpy(aggregated)
        return to_record({key: merged[key] for key in self._all}), metrics

    def _send(self, server_round: int, step: int, stage: str, served: Mapping[int, list[Part]]) -> Iterable[Message]:
        record = ConfigRecord({"stage": stage, "round": server_round, "step": step})
        messages = [
            Message(
                RecordDict({split.DATA: split.pack(split.bundle(parts)), split.RECORD: record}),
                node_id,
                split.MESSAGE_TYPE,
            )
            for node_id, parts in served.items()
        ]
        return self._exchange(self._grid, messages, self.round_timeout_s or 3600.0)

    def _valid(self, replies: Iterable[Message], kinds: list[int]) -> Iterable[tuple[int, list[Part]]]:
        """Yield node id and parts of each reply that has parts of these kinds; the others are dropped for the round."""
        for reply in replies:
            node_id = self.wire.sender(reply).node_id
            if reply.has_error():
                self.wire.drop(node_id, reply.error.reason, "failures")
                continue
            try:
                data = split.packed_bundle(reply.content)
                require(data is not None, "its reply has no smashed data: does it run our device application?")
                parts = split.unbundle(data or b"")
                require(
                    [part.kind for part in parts] == kinds * self.asked.batches,
                    "its reply has other parts than asked for",
                )
                require(
                    all(0 < prod(part.shape) <= _MAX_VALUES for part in parts),
                    "a tensor has no size, or too large a one",
                )
            except PayloadError as error:
                self.wire.drop(node_id, f"its payload was refused: {error}", "rejected_payloads")
                continue
            yield node_id, parts

    def _serve(self, replies: Iterable[Message]) -> dict[int, list[Part]]:
        """Run each node's activations through the top, step the top once, and return the gradients at the cut."""
        sums, total, served = _zeros(self.top), 0, {}
        for node_id, parts in self._valid(replies, [split.ACTIVATIONS, split.LABELS]):
            try:
                batches = [_Batch(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)]
                own, gradients, loss, correct = _through(self.top, batches)
            except (PayloadError, RuntimeError, IndexError) as error:  # shapes that the top cannot take
                self.wire.drop(node_id, f"its activations were refused: {error}", "rejected_payloads")
                continue
            count = sum(len(batch.labels) for batch in batches)
            for whole, part in zip(sums, own, strict=True):
                whole += part
            served[node_id] = [
                self._gradient(gradient / count, batch.sent) for gradient, batch in zip(gradients, batches, strict=True)
            ]
            total += count
            self._tally.add(loss, correct, count, sum(prod(part.shape) for part in parts[::2]))
        self._step_top(sums, total)
        return served

    def _through_head(self, server_round: int, step: int, replies: Iterable[Message]) -> dict[int, list[Part]]:
        """Run activations through the server's part, let the devices' heads turn them into gradients, and step."""
        codec, _ = self.asked.head_forms()
        outputs: dict[int, list[tuple[Tensor, Tensor, np.ndarray]]] = {}
        onward = {}
        for node_id, parts in self._valid(replies, [split.ACTIVATIONS]):
            try:
                decoded = [_received(part) for part in parts]
                pairs = [(x, self.top(x), sent) for x, sent in decoded]
            except (PayloadError, RuntimeError) as error:
                self.wire.drop(node_id, f"its activations were refused: {error}", "rejected_payloads")
                continue
            outputs[node_id] = pairs
            arrays = [y.detach().cpu().numpy() for _, y, _ in pairs]
            onward[node_id] = [Part(split.ACTIVATIONS, a.shape, codec.encode(a)) for a in arrays]
            self._tally.add(0.0, 0, sum(len(x) for x, _, _ in pairs), sum(prod(part.shape) for part in parts))
        sums, total, served = _zeros(self.top), 0, {}
        for node_id, parts in self._valid(self._send(server_round, step, split.HEAD, onward), [split.GRADIENT]):
            pairs = outputs[node_id]
            try:
                for part, (_, y, _) in zip(parts, pairs, strict=True):
                    require(
                        part.shape == y.shape, f"a gradient of shape {part.shape} for activations of {tuple(y.shape)}"
                    )
                grads = [_whole_gradient(part) for part in parts]
            except PayloadError as error:
                self.wire.drop(node_id, f"its payload was refused: {error}", "rejected_payloads")
                continue
            inputs = [x for x, _, _ in pairs]
            found = torch.autograd.grad([y for _, y, _ in pairs], [*inputs, *self.top.parameters()], grads)
            count = sum(len(x) for x in inputs)
            for whole, own in zip(sums, found[len(inputs) :], strict=True):
                whole += own * count
            served[node_id] = [self._gradient(g, sent) for g, (_, _, sent) in zip(found, pairs, strict=False)]
            total += count
        self._step_top(sums, total)
        return served

    def _gradient(self, gradient: Tensor, sent: np.ndarray) -> Part:
        array = gradient.cpu().numpy()
        return Part(split.GRADIENT, array.shape, encode_gradient(array, self.asked.gradient, sent))

    def _step_top(self, sums: list[Tensor], total: int) -> None:
        if not total:
            return
        assert self._optimizer is not None
        for parameter, gradient in zip(self.top.parameters(), sums, strict=True):
            parameter.grad = gradient / total
        self._optimizer.step()

    def _measure(self, server_round: int) -> None:
        """Report the round's bytes by line, and bits for each value that crossed the cut."""
        up, down = (self.ledger.lines_of_round(way, server_round) for way in ("uplink", "downlink"))  # type: ignore[arg-type]
        elements = max(1, self._tally.elements)
        self.round_metrics |= {
            **{f"uplink_{line}_bytes": size for line, size in up.items()},
            **{f"downlink_{line}_bytes": size for line, size in down.items()},
            "steps": self._steps,
            "uplink_bits_per_element": 8 * (up.get("masks", 0) + up.get("values", 0)) / elements,
            "downlink_bits_per_element": 8 * down.get("gradients", 0) / elements,
        }

    # -- state ------------------------------------------------------------------------------------------------------

    def _momentum_now(self) -> dict[str, np.ndarray]:
        assert self._optimizer is not None
        found = {}
        for name, parameter in self.top.named_parameters():
            buffer = self._optimizer.state.get(parameter, {}).get("momentum_buffer")
            if buffer is not None:
                found[name] = buffer.cpu().numpy().copy()
        return found

    def state_dict(self) -> dict[str, object]:
        """Return the state of FedAvg, the top's momentum, and how many batches each node has used."""
        return {**super().state_dict(), "momentum": dict(self._momentum), "batches_done": self._batches_done}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self._momentum = {key: np.array(value) for key, value in state["momentum"].items()}  # type: ignore[attr-defined]
        self._batches_done = int(state["batches_done"])  # type: ignore[call-overload]


class _Tally:
    """What the server sees of a round's training."""

    def __init__(self) -> None:
        self.loss, self.correct, self.samples, self.elements = 0.0, 0, 0, 0

    def add(self, loss: float, correct: int, samples: int, elements: int) -> None:
        self.loss += loss
        self.correct += correct
        self.samples += samples
        self.elements += elements


class _Batch:
    """One batch as it came from a node."""

    def __init__(self, activations: Part, labels: Part) -> None:
        self.smashed, self.sent = _received(activations)
        require(labels.shape == activations.shape[:1], "there is not one label for each sample")
        self.labels = torch.from_numpy(split.decode_labels(labels.data, labels.shape[0]))


def _received(part: Part) -> tuple[Tensor, np.ndarray]:
    """Decode activations; also tell which values have a code that is not 0: as the device does."""
    array, codes = decode_activations(part.data, part.shape)
    return torch.from_numpy(array).requires_grad_(), codes != 0 if codes is not None else array.ravel() != 0


def _whole_gradient(part: Part) -> Tensor:
    return torch.from_numpy(decode_gradient(part.data, part.shape, np.ones(prod(part.shape), np.bool_)))


def _through(top: nn.Module, batches: list[_Batch]) -> tuple[list[Tensor], list[Tensor], float, int]:
    """Return the gradients of the summed loss, for the top's parameters and for each batch, and loss and hits."""
    device = next(top.parameters()).device
    loss, correct = torch.zeros((), device=device), 0
    for batch in batches:
        logits, labels = top(batch.smashed.to(device)), batch.labels.to(device)
        require(logits.ndim == 2 and int(labels.max()) < logits.shape[1], "a label is beyond the model's classes")
        loss = loss + cross_entropy(logits, labels, reduction="sum")
        correct += int((logits.argmax(-1) == labels).sum())
    wanted = [*(batch.smashed for batch in batches), *top.parameters()]
    found = list(torch.autograd.grad(loss, wanted))
    require(all(bool(torch.isfinite(each).all()) for each in found), "they lead to a loss that is not finite")
    return found[len(batches) :], found[: len(batches)], float(loss.detach()), correct


def _zeros(module: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(parameter) for parameter in module.parameters()]


def round_rate(server_round: int, num_rounds: int, initial: float, final: float) -> float:
    """Return the learning rate of a round, on both sides: ``lr_0 (lr_T / lr_0)^((t - 1) / T)``; ``lr_T = 0`` keeps it.

    >>> [round(round_rate(t, 2, 0.4, 0.1), 3) for t in (1, 2)]
    [0.4, 0.2]
    """
    return initial if final == 0 else float(initial * (final / initial) ** ((server_round - 1) / max(num_rounds, 1)))
