"""What a gossiping node keeps, and how its messages travel."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, RecordDict
from torch import nn

from flsparse.clients import DPSGDLocal, MalcomPSGDLocal, NodeState, make_method, state_arrays
from flsparse.clients.core.gossip import Home, Layout
from flsparse.clients.core.neighborhood import Neighborhood, Pending
from flsparse.wire.mail import LOST, OK, Answer, Delivery, Letter, Mail, from_bytes, to_bytes
from flsparse.wire.messages import RECORD


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_the_layout_holds_parameters_and_leaves_statistics_alone():
    net = model()
    layout = Layout.of(net, ["0.weight"])
    assert layout.names == ("0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias")
    assert layout.prunable.sum() == 12
    arrays = state_arrays(net)
    arrays["1.num_batches_tracked"] = np.array(7)
    changed = layout.into(layout.flat(arrays) + 1, arrays)
    assert list(changed) == list(arrays)
    np.testing.assert_array_equal(changed["2.bias"], arrays["2.bias"] + 1)
    np.testing.assert_array_equal(changed["1.running_var"], arrays["1.running_var"])
    assert changed["1.num_batches_tracked"] == 7


@pytest.mark.parametrize("pending", [None, Pending(5, b"abc", 0.25)])
@pytest.mark.parametrize("size", [10, 100_000])  # in the context's state, and on disk
def test_a_home_is_stored_and_found_again(pending, size, monkeypatch, tmp_path):
    monkeypatch.setenv("FLSPARSE_STATE_DIR", str(tmp_path))
    state = NodeState(Context(1, 2, {}, RecordDict(), {}))
    assert Home.load(state) is None
    copies = {j: np.full(size, j, np.float32) for j in (0, 3, 7)}
    hood = Neighborhood(3, 4, np.arange(size, dtype=np.float32), copies, pending, frozenset({0}))
    optimizer = {"momentum_buffer|a.weight": np.ones(3, np.float32)}
    Home(2, hood, {"bn.tracked": np.array(9)}, ("a.weight", "b.weight"), optimizer).save(state)
    found = Home.load(state)
    assert found is not None
    assert (found.epoch, found.prunable) == (2, ("a.weight", "b.weight"))
    assert found.buffers["bn.tracked"] == 9
    assert (found.hood.node, found.hood.round, set(found.hood.live)) == (3, 4, {0})
    assert list(found.optimizer) == list(optimizer)
    np.testing.assert_array_equal(found.optimizer["momentum_buffer|a.weight"], optimizer["momentum_buffer|a.weight"])
    assert found.hood.pending == pending
    np.testing.assert_array_equal(found.hood.x, hood.x)
    assert {j: c[0] for j, c in found.hood.copies.items()} == {0: 0, 3: 3, 7: 7}


def test_mail_travels():
    mail = Mail(
        round=9,
        epoch=2,
        delivery=Delivery(7, 8, (Letter(1, 7, b"one"), Letter(4, 8, b"")), frozenset({7})),
        weights={1: 0.25, 4: 0.5},
        starts=True,
        initial_id="ab",
        initial=b"start",
        prunable=["w"],
        copies={1: b"copy", 4: b"other"},
        copies_after=6,
        wanted=[4],
    )
    content = mail.to_content({"seed": 3})
    got = Mail.of(content)
    assert got.delivery.letters == list(mail.delivery.letters)
    assert got.delivery.accepted == {7}
    for key in ("round", "epoch", "starts", "initial_id", "initial", "prunable", "copies", "copies_after", "wanted"):
        assert getattr(got, key) == getattr(mail, key)
    assert got.weights == mail.weights
    assert content[RECORD]["seed"] == 3
    assert Mail.of(Mail(1, 0, Delivery(1, 0), {}).to_content({})).delivery == Delivery(1, 0, [], frozenset())


def test_answers_travel():
    answer = Answer(OK, 4, b"payload", {2: b"copy"})
    assert Answer.of(answer.to_content()) == answer
    for lost in (Answer(LOST), Answer(LOST, misfit=(2, 7))):
        assert Answer.of(lost.to_content()) == lost


@pytest.mark.parametrize(
    "record", [{"size": 5}, {"size": -1}, {"size": "x"}, {"copies": [1], "copy-sizes": [3]}, {"copies": [1.5]}]
)
def test_what_is_no_answer_is_refused(record):
    with pytest.raises(ValueError, match=r"mail|argument"):
        Answer.of(RecordDict({RECORD: ConfigRecord({"status": OK, **record})}))


def test_copies_travel_losslessly():
    copy = np.random.default_rng(0).standard_normal(5).astype(np.float32)
    np.testing.assert_array_equal(from_bytes(to_bytes(copy), 5), copy)
    with pytest.raises(ValueError, match="does not fit"):
        from_bytes(to_bytes(copy), 6)


def test_rates():
    constant, falling = MalcomPSGDLocal(), DPSGDLocal(decay_rounds=10.0)
    assert [constant.rate(t) for t in (1, 50)] == [1, 1]
    assert [falling.rate(t) for t in (1, 11, 31)] == pytest.approx([1, 2**-0.5, 0.5])


def test_a_message_cannot_ask_for_what_does_not_exist():
    asked = make_method("malcom_psgd", {"levels": 4, "mu": 0.0, "decay_rounds": 0})
    assert asked.hyperparameters()["levels"] == 4
    with pytest.raises(ValueError, match="norm"):
        make_method("malcom_psgd", {"norm": "l1"})
    with pytest.raises(ValueError, match="not a setting of d_psgd"):
        make_method("d_psgd", {"levels": 4})


def test_copies_that_do_not_fit_or_are_not_finite_are_refused():
    copy = np.arange(3, dtype=np.float32)
    np.testing.assert_array_equal(from_bytes(to_bytes(copy), 3), copy)
    with pytest.raises(ValueError, match="12 bytes does not fit a model of 4"):
        from_bytes(to_bytes(copy), 4)
    with pytest.raises(ValueError, match="NaN or infinity"):
        from_bytes(to_bytes(np.full(3, np.inf, np.float32)), 3)
