"""Whatever is lost, late, doubled or forgotten: two holders of a copy never disagree, and gossip keeps the mean."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flsparse.clients.core.neighborhood import Neighborhood, OutOfStep, Pending, weighted_pull
from flsparse.codec.residuals.dither import Dither
from flsparse.codec.residuals.residual import ResidualCodec, Stamp, copy_checksum
from flsparse.strategies.core.memory import restore, saved
from flsparse.strategies.core.relay import Relay
from flsparse.topology import make_topology
from flsparse.wire.mail import LOST, OK, Answer, Delivery, Letter, Mail, from_bytes, to_bytes

SIZES = (6, 3)
CODEC = ResidualCodec(SIZES, Dither(3), coder="golomb")
START = np.linspace(-1, 1, 9).astype(np.float32)


class Node:
    """A node without a network: it moves its model at random and sends the residual."""

    def __init__(self, partition: int, mixes_first: bool = False) -> None:
        self.partition, self.mixes_first = partition, mixes_first
        self.hood: Neighborhood | None = None
        self.epoch = -1
        self.moved = np.zeros(9)

    def answer(self, mail: Mail) -> Answer:
        hood = self.hood if self.epoch == mail.epoch else None
        if hood and hood.has_sent(mail.round):
            assert hood.pending is not None
            return Answer(OK, hood.round, hood.pending.payload, {j: to_bytes(hood.copies[j]) for j in mail.wanted})
        if mail.copies:
            copies = {j: from_bytes(data, 9) for j, data in mail.copies.items()}
            hood = hood or Neighborhood(self.partition, mail.copies_after, copies[self.partition])
            hood = hood.resynchronized(mail.copies_after, copies)
        elif hood is None:
            if not mail.starts:
                return Answer(LOST)
            hood = Neighborhood.start(self.partition, list(mail.weights), START, mail.epoch)
        try:
            hood = hood.taking_in(
                mail.delivery,
                SIZES,
                lambda e: e.x if self.mixes_first else e.x + self.pull(e.own, e.neighbors, mail),
            )
        except OutOfStep as error:
            return Answer(LOST, misfit=error.misfit)
        wanted = {j: to_bytes(hood.copies[j]) for j in mail.wanted}
        rng = np.random.default_rng([self.partition, mail.round])
        step = (0.1 * rng.standard_normal(9)).astype(np.float32)
        x = hood.x + step
        self.moved = self.moved + step
        own = hood.copies[self.partition]
        if self.mixes_first:
            x = x + self.pull(own, {j: hood.copies[j] for j in hood.live}, mail)
        stamp = Stamp(self.partition, mail.round, copy_checksum(own))
        payload, _ = CODEC.encode(x, own, stamp, rng)
        self.hood, self.epoch = hood.sending(x, Pending(mail.round, payload, 0.0)), mail.epoch
        return Answer(OK, hood.round, payload, wanted)

    @staticmethod
    def pull(own, neighbors, mail):
        return np.float32(0.5) * weighted_pull(own, neighbors, mail.weights)

    def lie(self, answer: Answer, move: str, mail: Mail) -> Answer:
        """Return what a hostile node says instead."""
        if answer.status == OK and move == "garbage":  # well made, but upon a copy that nobody holds
            stamp = Stamp(self.partition, mail.round, 12345)
            payload, _ = CODEC.encode(START + 1, START, stamp, np.random.default_rng(0))
            return replace(answer, payload=payload)
        if move == "says lost":
            return Answer(LOST)
        if move == "blames" and mail.delivery.letters:
            letter = mail.delivery.letters[-1]
            return Answer(LOST, misfit=(letter.sender, letter.round))
        if move == "bad copies":
            return replace(answer, copies={j: to_bytes(START + 2) for j in answer.copies})
        return answer


def mail_of(relay: Relay, partition: int, number: int) -> Mail:
    """Return the mail of a node that does not wait for copies."""
    mail = relay.mail(partition, number)
    assert mail is not None
    return mail


def hood_of(node: Node) -> Neighborhood:
    """Return the state of a node that has started."""
    assert node.hood is not None
    return node.hood


def agree(nodes: list[Node]) -> None:
    """Check that every two holders of a copy that stand after the same round hold the same bytes."""
    seen: dict[tuple[int, int, int], bytes] = {}
    for node in nodes:
        if node.hood is None:
            continue
        for owner, copy in node.hood.copies.items():
            key = (node.epoch, owner, node.hood.round)
            assert seen.setdefault(key, copy.tobytes()) == copy.tobytes(), key


FATES = st.sampled_from(["ok", "ok", "ok", "not delivered", "reply lost", "doubled", "forgets", "asked twice"])


def play(
    graph: str, count: int, fates: list[list[str]], backlog: int, mixes_first: bool = False
) -> tuple[Relay, list[Node]]:
    relay = Relay(make_topology({"name": graph}, count, 0), backlog)
    nodes = [Node(i, mixes_first) for i in range(count)]
    for number, row in enumerate([*fates, *[["ok"] * count] * 5], start=1):
        relay.open(number)
        waiting = [i for i in range(count) if relay.waits(i, number)]
        mails = {i: relay.mail(i, number) for i in range(count)}
        wanted = relay.wanted(waiting, range(count))
        for node, fate in zip(nodes, row, strict=True):
            mail = mails[node.partition]
            if fate == "forgets":
                node.hood = None
            if mail is None or fate == "not delivered":
                continue
            mail = replace(mail, wanted=wanted.get(node.partition, []))
            answer = node.answer(mail)
            if fate == "asked twice":
                assert node.answer(mail) == answer
            if fate != "reply lost":
                relay.hear(node.partition, number, answer)
            if fate == "doubled":
                assert not relay.hear(node.partition, number, answer)
        for node, fate in zip(nodes, row, strict=True):  # the copies that some wait for may be there by now
            if mails[node.partition] is None and fate != "not delivered" and relay.returns(node.partition, number):
                answer = node.answer(mail_of(relay, node.partition, number))
                if fate != "reply lost":
                    relay.hear(node.partition, number, answer)
        if relay.must_restart:
            relay.restart(number - 1)
        relay.close(number)
        agree(nodes)
    return relay, nodes


def test_a_resynchronizing_mail_that_comes_twice_is_answered_alike():
    fates = [["ok"] * 3, ["ok", "not delivered", "ok"], ["ok"] * 3, ["ok", "asked twice", "ok"]]
    play("ring", 3, fates, backlog=1)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), graph=st.sampled_from(["ring", "complete", "star"]), backlog=st.integers(1, 4))
def test_holders_of_a_copy_never_disagree(data, graph, backlog):
    count = data.draw(st.integers(2, 5))
    fates = data.draw(st.lists(st.lists(FATES, min_size=count, max_size=count), min_size=1, max_size=8))
    relay, nodes = play(graph, count, fates, backlog)
    assert len({hood_of(node).round for node in nodes}) == 1  # five quiet rounds bring everybody back
    assert all(
        set(hood_of(node).copies) == {node.partition, *relay.topology.neighbors(node.partition)} for node in nodes
    )


@example(graph="ring", moves=["ok", "ok", "ok", "blames", "garbage", "blames"], away=[0, 0, 0, 2, 0, 2, 0, 0])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    graph=st.sampled_from(["ring", "complete"]),
    moves=st.lists(st.sampled_from(["ok", "garbage", "says lost", "blames", "bad copies"]), min_size=1, max_size=8),
    away=st.lists(st.integers(0, 3), min_size=8, max_size=8),
)
def test_what_one_node_says_makes_nobody_start_again(graph, moves, away):
    relay = Relay(make_topology({"name": graph}, 4, 0))
    nodes = [Node(i) for i in range(4)]
    for number, move in enumerate([*moves, *["ok"] * 7], start=1):
        relay.open(number)
        present = [i for i in range(4) if number > len(moves) or i == 0 or i != away[number - 1]]
        waiting = [i for i in present if relay.waits(i, number)]
        mails = {i: relay.mail(i, number) for i in present}
        wanted = relay.wanted(waiting, present)
        for i, mail in mails.items():
            if mail is not None:
                mail = replace(mail, wanted=wanted.get(i, []))
                answer = nodes[i].answer(mail)
                relay.hear(i, number, nodes[i].lie(answer, move, mail) if i == 0 else answer)
        assert not relay.must_restart
        relay.close(number)
        resumed = Relay(relay.topology)
        restore(resumed.memory, saved(relay.memory))
        assert resumed.memory == relay.memory
    agree(nodes)
    assert len({hood_of(node).round for node in nodes}) == 1


def test_a_node_that_has_not_started_yet_can_still_be_a_holder():
    relay = Relay(make_topology({"name": "ring"}, 4, 0))
    relay.open(1)
    relay.hear(0, 1, Answer(LOST))
    assert not relay.must_restart
    for node in (1, 3):
        relay.hear(node, 1, Answer(LOST))
    assert relay.must_restart


def test_answers_are_looked_at_before_they_count():
    relay = Relay(make_topology({"name": "ring"}, 4, 0))
    relay.open(1)
    answer = Node(1).answer(mail_of(relay, 1, 1))
    other, _ = CODEC.encode(START + 1, START, Stamp(1, 2, 0), np.random.default_rng(0))
    for bad, what in [
        (replace(answer, payload=b""), "too few"),
        (replace(answer, payload=answer.payload[:-1]), "checksum"),
        (replace(answer, payload=other), "made by node 1 in round 2"),
        (replace(answer, copies={1: to_bytes(START)}), r"copies of \[1\] that it was not asked for"),
    ]:
        with pytest.raises(ValueError, match=what):
            relay.hear(1, 1, bad)
    with pytest.raises(ValueError, match="made by node 1 in round 1, not by node 0"):
        relay.hear(0, 1, answer)
    assert relay.hear(1, 1, answer)


def test_copies_that_did_not_bring_a_node_back_are_asked_of_another():
    relay = Relay(make_topology({"name": "ring"}, 4, 0))
    nodes = [Node(i) for i in range(4)]
    asked = []
    for number in range(1, 7):
        if number == 2:
            nodes[2].hood = None
        relay.open(number)
        waiting = [i for i in range(4) if relay.waits(i, number)]
        mails = {i: relay.mail(i, number) for i in range(4)}
        wanted = relay.wanted(waiting, range(4))
        asked += [sorted((copy, i) for i in wanted for copy in wanted[i])] if wanted else []
        for i, mail in mails.items():
            if mail is not None:
                answer = nodes[i].answer(replace(mail, wanted=wanted.get(i, [])))
                if not (i == 2 and number == 4):  # what it was given is no good: it says nothing
                    relay.hear(i, number, answer)
    assert asked == [[(1, 1), (2, 1), (3, 3)], [(1, 0), (2, 3), (3, 0)]]
    assert not relay.memory.lost


@settings(max_examples=30, deadline=None)
@given(fates=st.lists(st.lists(st.sampled_from(["ok", "reply lost", "doubled"]), min_size=4, max_size=4), max_size=6))
def test_mixing_before_sending_keeps_the_mean_where_only_replies_are_lost(fates):
    _, nodes = play("ring", 4, fates, 16, mixes_first=True)
    mean = np.mean([hood_of(node).x for node in nodes], axis=0)
    np.testing.assert_allclose(mean, START + np.mean([node.moved for node in nodes], axis=0), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    fates=st.lists(
        st.lists(st.sampled_from(["ok", "not delivered", "reply lost", "doubled"]), min_size=4, max_size=4),
        min_size=1,
        max_size=6,
    )
)
def test_the_mean_is_moved_by_training_alone_whatever_is_lost(fates):
    _, nodes = play("ring", 4, fates, 16)
    mean = np.mean([hood_of(node).x for node in nodes], axis=0)
    np.testing.assert_allclose(mean, START + np.mean([node.moved for node in nodes], axis=0), atol=1e-5)


def test_a_gap_a_foreign_letter_and_a_swapped_one_are_found_out():
    hood = Neighborhood.start(0, [1, 2], START)
    payload, _ = CODEC.encode(START + 1, START, Stamp(1, 1, copy_checksum(START)), np.random.default_rng(0))
    for delivery in (
        Delivery(2, 2),
        Delivery(1, 1, [Letter(3, 1, payload)]),
        Delivery(1, 1, [Letter(2, 1, payload)]),
        Delivery(1, 1, [Letter(1, 1, payload[:-1])]),
        Delivery(1, 1, [], frozenset({1})),
    ):
        with pytest.raises(OutOfStep):
            hood.taking_in(delivery, SIZES, lambda e: e.x)
    once = hood.taking_in(Delivery(1, 1, [Letter(1, 1, payload)]), SIZES, lambda e: e.x)
    again = once.taking_in(Delivery(1, 1, [Letter(1, 1, payload)]), SIZES, lambda e: e.x)
    np.testing.assert_array_equal(once.copies[1], again.copies[1])
    with pytest.raises(OutOfStep):
        once.taking_in(Delivery(2, 2, [Letter(1, 2, payload)]), SIZES, lambda e: e.x)
