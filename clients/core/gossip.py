"""The device's side of decentralized training: take in the mail, train, send a residual.

One message brings the neighbors' residuals of the rounds before; the reply carries this node's own residual. So one
exchange of messages is one round of gossip, and a round's consensus happens at the beginning of the next::

    take in the last round          copies <- copies + residuals;  x <- the method's mix
    local steps                     x_half <- SGD from x, ``local-steps`` times
    residual                        q = Q(x_half - xhat_i), pending until the relay says that it counted

Gossip is over the parameters. Buffers (running statistics) and the optimizer's tensors (momentum) stay on their node.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import WARNING

import numpy as np
from flwr.app import MetricRecord, RecordDict
from torch import nn

from flsparse import rng
from flsparse._flwr import log
from flsparse.clients.core.fit import Fit
from flsparse.clients.core.method import Kind, LocalMethod, Visit, unanswered
from flsparse.clients.core.neighborhood import Exchange, Neighborhood, OutOfStep, Pending, weighted_pull
from flsparse.clients.core.part import Leaving, Way, asked_parts
from flsparse.clients.core.state import NodeState
from flsparse.codec import Codec, Reference, decode
from flsparse.codec.residuals.dither import Dither, Vector, entropy_bits
from flsparse.codec.residuals.residual import ResidualCodec, Stamp, copy_checksum
from flsparse.nets.arrays import Arrays, load_arrays, load_optimizer, optimizer_arrays, state_arrays
from flsparse.ranges import within
from flsparse.wire.mail import LOST, NO_INITIAL, OK, Answer, Mail, from_bytes, to_bytes

METRICS = "metrics"
_STORED = "gossip"


@dataclass(frozen=True)
class Layout:
    """How a model's parameters lie in one flat vector.

    Attributes
    ----------
    names : tuple of str
        State-dict keys of the parameters, in order.
    sizes : tuple of int
        Elements of each.
    prunable : np.ndarray
        Shape (d,), bool: where the proximal step acts.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    prunable: np.ndarray

    @classmethod
    def of(cls, model: nn.Module, prunable: Sequence[str]) -> "Layout":
        """Return the layout of a model; ValueError where two names are one weight."""
        parameters = dict(model.named_parameters())
        tied = [name for name, _ in model.named_parameters(remove_duplicate=False) if name not in parameters]
        if tied:
            raise ValueError(f"gossip needs weights with one name each; {tied[0]} is tied to another: untie it")
        names = tuple(name for name in model.state_dict() if name in parameters)
        sizes = tuple(parameters[name].numel() for name in names)
        mask = np.repeat([name in prunable for name in names], sizes)
        return cls(names, sizes, mask)

    def flat(self, arrays: Mapping[str, np.ndarray]) -> Vector:
        """Return the parameters as one float32 vector."""
        return np.concatenate([np.asarray(arrays[name], np.float32).ravel() for name in self.names])

    def into(self, x: Vector, arrays: Mapping[str, np.ndarray]) -> Arrays:
        """Return the arrays with the parameters replaced."""
        parts = dict(zip(self.names, np.split(x, np.cumsum(self.sizes)[:-1]), strict=True))
        return {
            name: parts[name].reshape(array.shape).astype(array.dtype) if name in parts else array
            for name, array in arrays.items()
        }


@dataclass(frozen=True)
class Home:
    """All that a node keeps between two messages.

    Attributes
    ----------
    epoch : int
        See :class:`flsparse.wire.mail.Mail`.
    hood : Neighborhood
    buffers : dict[str, np.ndarray]
        The model's other arrays.
    prunable : tuple of str
    optimizer : dict[str, np.ndarray]
        The optimizer's tensors (see :func:`flsparse.nets.arrays.optimizer_arrays`).
    """

    epoch: int
    hood: Neighborhood
    buffers: Arrays
    prunable: tuple[str, ...]
    optimizer: Arrays = field(default_factory=dict)

    def save(self, state: NodeState) -> None:
        """Store it, whole or not at all."""
        hood, pending = self.hood, self.hood.pending
        nodes = sorted(hood.copies)
        text = "\n".join(self.prunable).encode()
        state.put(
            _STORED,
            {
                "numbers": np.array([self.epoch, hood.node, hood.round, pending.round if pending else -1], np.int64),
                "x": hood.x,
                "nodes": np.array(nodes, np.int64),
                "copies": np.stack([hood.copies[j] for j in nodes]),
                "live": np.array(sorted(hood.live), np.int64),
                "payload": np.frombuffer(pending.payload if pending else b"", np.uint8),
                "threshold": np.array([pending.threshold if pending else 0.0]),
                "prunable": np.frombuffer(text, np.uint8),
                **{f"buffer.{name}": array for name, array in self.buffers.items()},
                **{f"optimizer.{name}": array for name, array in self.optimizer.items()},
            },
        )

    @classmethod
    def load(cls, state: NodeState) -> "Home | None":
        """Return the stored state, or None without one."""
        stored = state.get(_STORED)
        if stored is None:
            return None
        epoch, node, number, sent = (int(value) for value in stored["numbers"])
        payload = stored["payload"].tobytes()
        hood = Neighborhood(
            node,
            number,
            stored["x"],
            {int(j): copy for j, copy in zip(stored["nodes"], stored["copies"], strict=True)},
            Pending(sent, payload, float(stored["threshold"][0])) if sent >= 0 else None,
            frozenset(int(j) for j in stored["live"]),
        )
        buffers, optimizer = (
            {key.removeprefix(prefix): a for key, a in stored.items() if key.startswith(prefix)}
            for prefix in ("buffer.", "optimizer.")
        )
        text = stored["prunable"].tobytes().decode()
        return cls(epoch, hood, buffers, tuple(text.split("\n")) if text else (), optimizer)


@dataclass(kw_only=True)
class GossipLocal(LocalMethod):
    """Base of the decentralized methods on the device.

    Attributes
    ----------
    gamma : float
        Consensus rate, above 0.
    decay_rounds : float
        With T = decay_rounds, both rates fall as ``1 / sqrt(1 + (t - 1) / T)`` in round t; 0 keeps them constant.
    """

    gamma: float = 1.0
    decay_rounds: float = 0.0

    def __post_init__(self) -> None:
        within("(0, inf)", gamma=self.gamma)
        within("[0, inf)", decay_rounds=self.decay_rounds)

    # -- hooks of a method ------------------------------------------------------------------------------------------

    def quantizer(self) -> Dither | None:
        """Return how residuals are quantized; None sends the model whole."""
        return None

    def residual_codec(self, sizes: Sequence[int]) -> ResidualCodec:
        """Return how residuals are coded."""
        return ResidualCodec(sizes, self.quantizer())

    def threshold(self, fit: Fit) -> float:
        """Return the threshold of the proximal step after a training."""
        return 0.0

    def before_send(self, x: Vector, hood: Neighborhood, weights: Mapping[int, float], server_round: int) -> Vector:
        """Return the model after the local steps, before its residual is made."""
        return x

    def after_exchange(self, exchange: Exchange, weights: Mapping[int, float], layout: Layout) -> Vector:
        """Return the model once the residuals of its round have been taken in."""
        return exchange.x

    # -- answers to messages ----------------------------------------------------------------------------------------

    def rate(self, server_round: int) -> float:
        """Return the factor of both rates in a round."""
        return (1.0 + (server_round - 1) / self.decay_rounds) ** -0.5 if self.decay_rounds > 0 else 1.0

    def consensus(
        self,
        x: Vector,
        own: Vector,
        neighbors: Mapping[int, Vector],
        weights: Mapping[int, float],
        server_round: int,
    ) -> Vector:
        """Return ``x + gamma_t sum_j W_ij (xhat_j - xhat_i)``."""
        gamma = np.float32(self.gamma * self.rate(server_round))
        return x + gamma * weighted_pull(own, neighbors, weights)

    def before_fit(self, fit: Fit) -> None:
        """Let the learning rate fall with the consensus rate."""
        for group in fit.optimizer.param_groups:
            group["lr"] *= self.rate(fit.server_round)

    def answer(self, kind: Kind, visit: Visit) -> RecordDict:
        """Answer TRAIN with a residual, EVALUATE with the model.

        Its payloads travel as one array of type :data:`flsparse.wire.messages.OPAQUE`, counted, but opened by no mod.
        """
        match kind:
            case Kind.TRAIN:
                return self._step(visit)
            case Kind.EVALUATE:
                return self._look(visit)
        raise unanswered(self, kind)

    def _step(self, visit: Visit) -> RecordDict:
        """Take in the mail, train, send the residual."""
        mail = Mail.of(visit.content)
        model = self.prepare(visit.model())
        arrived = self._arrive(visit, mail, model)
        if isinstance(arrived, Answer):
            return arrived.to_content()
        home, layout = arrived
        copies = {j: to_bytes(home.hood.copies[j]) for j in mail.wanted}
        metrics: dict[str, float] = {}
        if not home.hood.has_sent(mail.round):
            home, metrics = self._trained(visit, mail, model, home, layout)
        home.save(visit.state)
        assert home.hood.pending is not None
        content = Answer(OK, home.hood.round, home.hood.pending.payload, copies).to_content()
        content[METRICS] = MetricRecord(dict(metrics))
        return content

    def _look(self, visit: Visit) -> RecordDict:
        """Take in the mail, send the model as it is: lossless, for evaluation."""
        mail = Mail.of(visit.content)
        model = self.prepare(visit.model())
        arrived = self._arrive(visit, mail, model)
        if isinstance(arrived, Answer):
            return arrived.to_content()
        home, layout = arrived
        home.save(visit.state)
        arrays = layout.into(home.hood.x, state_arrays(model) | home.buffers)
        return Answer(OK, home.hood.round, Codec(values="fp32").encode(arrays)).to_content()

    def _arrive(self, visit: Visit, mail: Mail, model: nn.Module) -> tuple[Home, Layout] | Answer:
        """Return the node's state with the mail taken in, or the answer that says why there is none."""
        arrays = state_arrays(model)
        nbytes = sum(array.nbytes for array in arrays.values())
        visit.limits.check("max_memory_bytes", nbytes * (2 + len(mail.weights)))
        home = Home.load(visit.state)
        if home is not None and home.epoch != mail.epoch:
            home = None
        if home is not None and home.hood.has_sent(mail.round):
            return home, Layout.of(model, home.prunable)  # the relay asks again
        if mail.copies:
            home = self._resynchronized(visit.node, mail, home, arrays, Layout.of(model, ()))
        elif home is None:
            if not mail.starts:
                return Answer(LOST)
            initial = arrays
            if mail.initial:
                initial = decode(mail.initial, like=arrays)
            elif Reference(arrays).id != mail.initial_id:
                return Answer(NO_INITIAL)
            x = Layout.of(model, ()).flat(initial)
            hood = Neighborhood.start(visit.node, list(mail.weights), x, mail.epoch)
            home = Home(mail.epoch, hood, self._buffers(initial, model), tuple(mail.prunable))
        layout = Layout.of(model, home.prunable)
        try:
            hood = home.hood.taking_in(
                mail.delivery, layout.sizes, lambda exchange: self.after_exchange(exchange, mail.weights, layout)
            )
        except OutOfStep as error:
            log(WARNING, "Node %d is out of step: %s", visit.node, error)
            return Answer(LOST, misfit=error.misfit)
        return replace(home, hood=hood), layout

    def _resynchronized(self, node: int, mail: Mail, home: Home | None, arrays: Arrays, layout: Layout) -> Home:
        """Return the state with the copies that others handed over; a lost model is replaced by the node's own copy."""
        copies = {j: from_bytes(data, sum(layout.sizes)) for j, data in mail.copies.items()}
        if set(copies) != {node, *mail.weights}:
            raise ValueError(f"node {node} was sent copies of {sorted(copies)}, not of itself and its neighbors")
        if home is None:
            buffers = {name: array for name, array in arrays.items() if name not in layout.names}
            home = Home(mail.epoch, Neighborhood(node, mail.copies_after, copies[node]), buffers, ())
        return replace(home, hood=home.hood.resynchronized(mail.copies_after, copies), prunable=tuple(mail.prunable))

    @staticmethod
    def _buffers(arrays: Arrays, model: nn.Module) -> Arrays:
        names = Layout.of(model, ()).names
        return {name: array for name, array in arrays.items() if name not in names}

    def _trained(
        self, visit: Visit, mail: Mail, model: nn.Module, home: Home, layout: Layout
    ) -> tuple[Home, dict[str, float]]:
        """Run the local steps and make the residual; return the state that awaits the relay's word, and metrics."""
        hood = home.hood
        received = layout.into(hood.x, state_arrays(model) | home.buffers)
        load_arrays(model, received)
        fit = visit.fit(model, received, mail.round, list(home.prunable))
        load_optimizer(model, fit.optimizer, home.optimizer)
        arrays = self.fit(fit, visit)
        asked = {**visit.asked, "round": mail.round, "node": visit.node}
        if chosen := asked_parts(asked):
            leaving = Leaving.of(asked, Reference(received), fit.prunable, visit.state, fit.metrics)
            arrays = Way(chosen, leaving).outgoing(arrays)
        started = time.perf_counter()
        x = self.before_send(layout.flat(arrays), hood, mail.weights, mail.round)
        own = hood.copies[visit.node]
        payload, q = self.residual_codec(layout.sizes).encode(
            x,
            own,
            Stamp(visit.node, mail.round, copy_checksum(own)),
            rng.stream(fit.seed, mail.round, visit.node, "dither"),
        )
        fit.metrics["encode-ms"] = (time.perf_counter() - started) * 1e3
        if q is not None:
            parts = np.split(q, np.cumsum(layout.sizes)[:-1])
            fit.metrics["entropy-bits-per-parameter"] = sum(entropy_bits(part) for part in parts) / q.size
        pending = Pending(mail.round, payload, self.threshold(fit))
        buffers = {name: arrays[name] for name in home.buffers}
        optimizer = optimizer_arrays(model, fit.optimizer)
        return replace(home, hood=hood.sending(x, pending), buffers=buffers, optimizer=optimizer), fit.metrics
