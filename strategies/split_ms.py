"""Split learning with mask-encoded activations on the server (SplitFed; ECAI 2024, arXiv 2408.13787).

    devices:  a_m = bottom(x_m)                                      up: Q(a_m), labels y_m
    server:   L_m = mean CE(top(Q(a_m)), y_m)                        down: dL_m / dQ(a_m)
              top <- top - lr * sum_m n_m dL_m/dtop / sum_m n_m      n_m samples of node m in this step
    devices:  bottom_m <- bottom_m - lr * (da_m/dbottom) dL_m/dQ(a_m)
    after steps_per_round steps:  bottom <- sum_m N_m bottom_m / sum_m N_m      N_m: its n_m, summed over the steps

One message and its reply are a step: gradients of the last batches down, smashed data of the next up. With nothing
compressed this is joint training of the uncut model: with one node; or with one step a round of all nodes, where their
batches are equal or there is no momentum. With ``labels="kept"`` the model is cut twice: the device also runs the last
layers and the loss, and a step takes two round trips.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from logging import INFO
from math import ceil, nan, prod
from typing import Any, ClassVar

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor, nn

from flsparse._flwr import log
from flsparse.clients.core.method import LocalMethod
from flsparse.clients.split_ms import SplitMSLocal
from flsparse.codec import PayloadError, decode_activations, encode_gradient
from flsparse.codec.activations.envelope import MAX_ELEMENTS
from flsparse.codec.errors import require
from flsparse.configs import Fixed, settled
from flsparse.metering.ledger import Direction
from flsparse.nets.arrays import state_arrays
from flsparse.nets.cutting import default_head
from flsparse.ranges import one_of, within
from flsparse.schedules import batches_of_a_pass, learning_rate
from flsparse.strategies.core.downlink import Broadcast
from flsparse.strategies.core.exchange import Exchange, Node, Reply
from flsparse.strategies.core.measures import numbers_of
from flsparse.strategies.core.part import RoundPart
from flsparse.strategies.core.split_top import Received, SplitMemory, Tally, Top, decode_head_gradient
from flsparse.strategies.core.split_wire import SplitWire
from flsparse.strategies.fedavg import FedAvg
from flsparse.wire import bundle as split
from flsparse.wire.bundle import Part
from flsparse.wire.messages import Scalar, to_numpy, to_record

_WAYS: tuple[Direction, Direction] = ("uplink", "downlink")
_OF_ONE_NODE = (ValueError, RuntimeError, IndexError)  # errors of a node's parts that do not fit the model


class SplitMS(FedAvg):
    """SplitFed: devices run the first layers, the server the others, and compressed activations cross the cut.

    Parameters
    ----------
    cut : str
        Layer behind which the model is cut, as in ``named_modules()``: see :mod:`flsparse.nets.cutting`.
    labels : {"sent", "kept"} (default: "sent")
        Send labels with the activations, or keep them: then the device also runs the layers behind ``head``.
    head : str, optional
        With ``labels="kept"``, the layer that the server's part ends with; default: the last that leaves parameters.
    compressor : {"ms", "topk", "randtopk", "uniform", "none"} (default: "ms")
        How activations travel.
    sparsity : float (default: 0.999)
        r: the fraction of activations that are not kept exactly, in [0, 1); 0.99 in the paper.
    bits : int (default: 3)
        b: bits of a mask code, 1..8; 2 in the paper.
    mask_rounding : {"round", "floor"} (default: "round")
        How a value becomes a mask code.
    kept : {"fp32", "fp16"} (default: "fp32")
        Precision of kept activations.
    entropy : bool (default: True)
        Entropy-code the activations; the decoded tensors are the same.
    gradient : {"fp32", "fp16", "int4"} (default: "int4")
        How gradients travel; int4 covers only activations with a code other than 0.
    steps_per_round : int (default: 0)
        Steps between two averages of the bottoms; 0: as many as the largest node needs for one pass over its data.
    batches_per_message : int (default: 1)
        Batches that one message carries; they make one step together.
    **fedavg
        Parameters of :class:`FedAvg`, which averages the bottoms; ``prunable`` is empty and ``fraction_evaluate`` 0.
        ``round_timeout_s`` holds for each message.
    """

    name = "split_ms"
    why_sync = "whose steps are one conversation"
    previewed_as = "cut"
    measures = ("uplink_bits_per_element", "downlink_bits_per_element")
    fixed: ClassVar[Fixed] = {
        "prunable": ([], "no weights are pruned"),
        "fraction_evaluate": (0.0, "no device holds the whole model"),
    }

    def __init__(
        self,
        *,
        cut: str | int,
        labels: str = "sent",
        head: str | int | None = None,
        compressor: str = "ms",
        sparsity: float = 0.999,
        bits: int = 3,
        mask_rounding: str = "round",
        kept: str = "fp32",
        entropy: bool = True,
        gradient: str = "int4",
        steps_per_round: int = 0,
        batches_per_message: int = 1,
        **fedavg: Any,
    ) -> None:
        super().__init__(**settled(fedavg, self.fixed))
        for part in self.parts:
            if type(part).joined is not RoundPart.joined:
                raise ValueError(
                    f"parts: {part.name!r} corrects local training, and no device of a cut model has all of it"
                )
        one_of(("sent", "kept"), labels=labels)
        within("[0, inf)", steps_per_round=steps_per_round)
        within("[1, inf)", batches_per_message=batches_per_message)
        one_of(("round", "floor"), mask_rounding=mask_rounding)
        one_of(("fp32", "fp16"), kept=kept)
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
        self.wire: SplitWire = SplitWire(
            self.wire.values, self.wire.rounding, self.wire.downlink, [], self.wire.exact_patterns, self.seed
        )
        self._top: Top | None = None
        self.memory: SplitMemory = SplitMemory()
        self._device_keys: list[str] = []
        self._begun: dict[int, Broadcast] = {}  # first broadcast of the round, by node id
        self._each: tuple[int, ...] | None = None  # shape of one sample at the cut

    # -- the model --------------------------------------------------------------------------------------------------

    def prepare(self, model: nn.Module) -> nn.Module:
        """Cut a copy of the model for training, and let the model itself code its activations when it is evaluated."""
        if self.labels == "kept" and not self.asked.head:
            self.asked.head = self._head or default_head(model, self.asked.cut)
        if self._top is None:
            bottom, top, *head = self.asked.parts(deepcopy(model))
            self._top = Top(top, self.memory)
            self._device_keys = [key for part in (bottom, *head) for key in part.state_dict()]
        # nothing is drawn at test time, where randtopk is top-k; without entropy coding the same tensors come sooner
        compressor = {"randtopk": "topk"}.get(self.asked.compressor, self.asked.compressor)
        codec = replace(self.asked, compressor=compressor, entropy=False).codec()

        def through_the_codec(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            if module.training:
                return None
            most = max(1, MAX_ELEMENTS // output[0].numel())  # samples of one payload
            batches = (each.cpu().numpy() for each in torch.split(output.detach(), most))
            decoded = [decode_activations(codec.encode(array), array.shape)[0] for array in batches]
            return torch.from_numpy(np.concatenate(decoded)).to(output)

        if self.asked.compressor != "none":
            model.get_submodule(self.asked.cut).register_forward_hook(through_the_codec)
        return model

    @property
    def top(self) -> Top:
        """The server's part."""
        if self._top is None:
            raise ValueError("call strategy.prepare(model) before start(): the strategy does not know the model yet")
        return self._top

    def method(self, server_round: int, node: Node | None = None) -> LocalMethod:
        """Ask for the cut and the coding."""
        return self.asked

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
        top, self._grid, self._all = self.top, grid, to_numpy(arrays)
        numbers = {key: float(value) for key, value in config.items() if isinstance(value, int | float)}
        if numbers.get("clip-grad", 0.0) > 0:
            raise ValueError(
                f"client.clip_grad={numbers['clip-grad']:g} must be 0: in split learning no side has the whole gradient"
            )
        schedule = str(config.get("lr-schedule", "geometric"))
        rate = learning_rate(server_round, self._num_rounds, numbers["lr"], numbers.get("lr-final", 0.0), schedule)
        decay = numbers.get("weight-decay", 0.0)
        top.begin_round(self._all, lr=rate, momentum=numbers.get("momentum", 0.0), weight_decay=decay)
        # both sides step at this round's rate
        constant: dict[str, Scalar] = {"lr": rate, "lr-final": 0.0, "lr-schedule": "geometric"}
        config = ConfigRecord({**config, **constant, "first-batch": self.memory.batches_done})
        bottom = to_record({key: self._all[key] for key in self._device_keys})
        nodes, bottom = self.open_round(server_round, bottom, grid)
        self._batch_size, self._each = int(numbers["batch-size"]), None
        self._steps = self.steps_per_round or self._steps_of_a_pass(nodes, self._batch_size)
        self._begun = {}
        return self._messages(nodes, server_round, bottom, config, split.MESSAGE_TYPE)

    def _steps_of_a_pass(self, nodes: list[Node], batch_size: int) -> int:
        most = max((node.num_examples for node in nodes), default=0)
        if not most:
            raise ValueError("steps_per_round=0 needs the nodes' numbers of examples (hello=True); or set it above 0")
        return ceil(batches_of_a_pass(most, batch_size) / self.asked.batches)

    def receive(self, server_round: int, replies: Iterable[Reply]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Lead the nodes through the round's steps, then average their bottoms; None without a quorum."""
        self._tally = Tally()
        for step in range(self._steps):
            self.top.begin_step()
            lead = self._through_heads if self.asked.head else self._to_the_loss
            gradients = dict(lead(server_round, step, replies))
            self.top.step()
            replies = self._send(server_round, step, split.STEP if step + 1 < self._steps else split.END, gradients)
        aggregated, metrics = super().receive(server_round, replies)
        self.top.end_round()
        self.memory.batches_done += self._steps * self.asked.batches
        if aggregated is None or metrics is None:
            return None, None
        self._measure(server_round)
        if self._tally.samples and not self.asked.head:
            metrics["train-loss"] = self._tally.loss / self._tally.samples
            metrics["train-accuracy"] = self._tally.correct / self._tally.samples
        merged = self._all | state_arrays(self.top.module) | to_numpy(aggregated)
        return to_record({key: merged[key] for key in self._all}), metrics

    def weigh(self, reply: Reply, key: str = "", *, tested: bool = False) -> tuple[float, dict[str, float]] | None:
        """Let a bottom weigh at most the samples that the top has stepped with: a small node's count each time."""
        numbers = numbers_of(reply, self.weighted_by_key)
        weight = min(numbers.pop(self.weighted_by_key, nan), self._tally.samples_of[reply.node.node_id])
        if not weight > 0:
            reason = f"its metric {self.weighted_by_key!r} is {weight}, not above 0"
            self.wire.drop(reply.node, reason, "rejected_payloads", reply.server_round)
            return None
        return weight, numbers

    def _send(self, server_round: int, step: int, stage: str, served: Mapping[int, list[Part]]) -> Exchange:
        record = ConfigRecord({"stage": stage, "round": server_round, "step": step})
        messages = [
            Message(
                RecordDict({split.DATA: split.pack(split.bundle(parts)), split.RECORD: record}),
                node_id,
                split.MESSAGE_TYPE,
            )
            for node_id, parts in served.items()
        ]
        return self.exchange(self._grid, messages, self._begun)

    def _parts_of(self, reply: Reply, kinds: list[int]) -> list[Part] | None:
        """Return the parts of a reply, if they are of these kinds for each batch; None drops the node for the round."""
        try:
            data = split.packed_bundle(reply.content)
            require(data is not None, "its reply has no smashed data: does it run our device application?")
            parts = split.unbundle(data or b"")
            found = [part.kind for part in parts]
            require(found == kinds * self.asked.batches, f"it has parts of kinds {found}")
        except PayloadError as error:
            self._refuse(reply, error)
            return None
        return parts

    def _smashed(self, replies: Iterable[Reply], kinds: list[int]) -> Iterator[tuple[Reply, list[Part]]]:
        """Yield the replies with as many activations as a batch has, of the shape that most nodes send."""
        found: Iterable[tuple[Reply, list[Part]]]
        found = ((reply, parts) for reply in replies if (parts := self._parts_of(reply, kinds)) is not None)
        if self._each is None:  # the strategy knows the layers, but not the data: the round's first replies tell
            found = list(found)
            self._each = _most_common([parts[0].shape[1:] for _, parts in found])
        for reply, parts in found:
            if reply.broadcast is not None:
                self._begun[reply.node.node_id] = reply.broadcast
            odd = [part.shape for part in parts[:: len(kinds)] if not self._fits(part.shape)]
            if odd:
                wanted = (
                    f"1 to {self._batch_size + 1} samples of {self._each}, the shape of most nodes', were asked for"
                )
                self._refuse(reply, PayloadError(f"activations of shape {odd[0]}, where {wanted}"))
            else:
                yield reply, parts

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) > 1 and 1 <= shape[0] <= self._batch_size + 1 and shape[1:] == self._each

    def _refuse(self, reply: Reply, error: Exception) -> None:
        self.wire.drop(reply.node, f"its payload was refused: {error}", "rejected_payloads", reply.server_round)

    def _to_the_loss(self, server_round: int, step: int, replies: Iterable[Reply]) -> Iterator[tuple[int, list[Part]]]:
        """Run each node's activations to the loss; yield the node's gradients."""
        for reply, parts in self._smashed(replies, [split.ACTIVATIONS, split.LABELS]):
            try:
                batches = [Received(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)]
                gradients, loss, correct = self.top.to_the_loss(batches)
            except _OF_ONE_NODE as error:
                self._refuse(reply, error)
                continue
            self.wire.count_accepted(parts, server_round)
            node_id = reply.node.node_id
            self._tally.add(node_id, batches, loss, correct)
            yield node_id, self._coded(gradients, batches)

    def _through_heads(
        self, server_round: int, step: int, replies: Iterable[Reply]
    ) -> Iterator[tuple[int, list[Part]]]:
        """Run each node's activations to its head, and the head's gradients back to the cut."""
        codec, _ = self.asked.head_forms()
        waiting: dict[int, list[Received]] = {}
        onward = {}
        for reply, parts in self._smashed(replies, [split.ACTIVATIONS]):
            node_id = reply.node.node_id
            try:
                batches = [Received(part) for part in parts]
                outputs = self.top.to_the_head(batches)
                onward[node_id] = [Part(split.ACTIVATIONS, array.shape, codec.encode(array)) for array in outputs]
            except _OF_ONE_NODE as error:
                self._refuse(reply, error)
                continue
            self.wire.count_accepted(parts, server_round)
            waiting[node_id] = batches
        for reply in self._send(server_round, step, split.HEAD, onward):
            if (gradients := self._parts_of(reply, [split.GRADIENT])) is None:
                continue
            node_id = reply.node.node_id
            try:
                pairs = zip(gradients, onward[node_id], strict=True)
                found = self.top.from_the_head(waiting[node_id], [decode_head_gradient(*pair) for pair in pairs])
            except _OF_ONE_NODE as error:
                self._refuse(reply, error)
                continue
            self.wire.count_accepted(gradients, server_round)
            self._tally.add(node_id, waiting[node_id])
            yield node_id, self._coded(found, waiting[node_id])

    def _coded(self, gradients: list[Tensor], batches: list[Received]) -> list[Part]:
        parts = []
        for gradient, batch in zip(gradients, batches, strict=True):
            array = gradient.cpu().numpy()
            data = encode_gradient(array, self.asked.gradient, batch.sent)
            parts.append(Part(split.GRADIENT, array.shape, data))
        return parts

    def _measure(self, server_round: int) -> None:
        """Report the round's bytes by line, and bits for each value that crossed the cut."""
        up, down = (self.ledger.lines_of_round(way, server_round) for way in _WAYS)
        elements = max(1, self._tally.elements)
        self.round_metrics |= {
            **{f"uplink_{line}_bytes": size for line, size in up.items()},
            **{f"downlink_{line}_bytes": size for line, size in down.items()},
            "steps": self._steps,
            "uplink_bits_per_element": 8 * (up.get("masks", 0) + up.get("values", 0)) / elements,
            "downlink_bits_per_element": 8 * down.get("gradients", 0) / elements,
        }


def _most_common(shapes: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    """Return the shape that most have, of several the one with the fewest values; None where there is none.

    >>> _most_common([(8, 4), (2, 2), (), (2, 2)])
    (2, 2)
    """
    counts = Counter(shape for shape in shapes if prod(shape) and shape)
    return min(counts, key=lambda shape: (-counts[shape], prod(shape)), default=None)
