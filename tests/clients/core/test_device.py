"""The device application: methods by name, the owner's limits, the hello."""

import numpy as np
import pytest
from federation_kit import TRAINING, digits, initial_arrays, run
from flwr.app import ConfigRecord, Context, Message, RecordDict

from flsparse._flwr import set_identity
from flsparse.clients import METHODS, Limits, device_app, load_arrays, make_method
from flsparse.clients.core.method import Kind
from flsparse.runtime import InProcessGrid
from flsparse.strategies import STRATEGIES, FedAvg, RoundFailed, SparsyFed
from flsparse.wire import bundle
from flsparse.wire.messages import OPAQUE, RECORD, pack, record_of, to_numpy, to_record


def test_every_strategy_has_its_local_method():
    assert set(STRATEGIES) <= set(METHODS)


@pytest.mark.parametrize(
    ("name", "hyperparameters", "complaint"),
    [
        ("os.system", {}, r"method='os\.system' is none of"),
        ("topk", {"sparsities": 0.5}, r"method\.sparsities is not a setting of topk; did you mean sparsity"),
        ("topk", {"sparsity": "0.5"}, "is not a number"),
        ("topk", {"scope": "everything"}, "scope='everything' is none"),
        ("sparsyfed", {"beta": "cubic"}, "beta='cubic' is not"),
        ("topk", {"name": "x"}, r"method\.name is not a setting"),
        ("topk", {"sparsity": 1.0}, r"method\.sparsity=1\.0 is not in \[0, 1\)"),
        ("sparsyfed", {"beta": 0.5}, r"method\.beta=0\.5 is neither"),
        ("dppf", {"alpha": 2.0}, r"method\.alpha=2\.0 is not in \(0, 1\]"),
        ("dppf", {"push": float("nan")}, "push=nan"),
        ("d_psgd", {"gamma": 0.0}, "gamma=0.0"),
        ("malcom_psgd", {"mu": -1.0}, "mu=-1.0"),
        ("malcom_psgd", {"levels": 5000}, "levels=5000"),
        ("split_ms", {"batches": 0}, "batches=0"),
        ("split_ms", {"bits": 99}, "bits=99"),
        ("split_ms", {"gradient": "int3"}, "gradient='int3'"),
    ],
)
def test_nothing_but_registered_methods_and_their_fields(name, hyperparameters, complaint):
    with pytest.raises(ValueError, match=complaint):
        make_method(name, hyperparameters)


def test_beta_may_be_a_number_or_spectral():
    assert make_method("sparsyfed", {"beta": 2}).hyperparameters()["beta"] == 2
    assert make_method("sparsyfed", {"beta": "spectral"}).hyperparameters()["beta"] == "spectral"


def test_hyperparameters_round_trip():
    method = make_method("sparsyfed", {"sparsity": 0.5})
    assert make_method("sparsyfed", method.hyperparameters()) == method


def test_no_server_can_exceed_the_owners_epochs():
    task, loop = digits(2), FedAvg(hello=True)
    grid = InProcessGrid(device_app(lambda _: task, Limits(max_local_epochs=2)), 2)
    config = ConfigRecord({**TRAINING, "local-epochs": 3})
    with pytest.raises(RoundFailed, match="max_local_epochs=2"):
        loop.start(grid, initial_arrays(loop, task), num_rounds=1, train_config=config)


def test_the_hello_tells_who_is_there():
    task, loop = digits(3), SparsyFed(hello=True)
    run(loop, task, rounds=1)
    nodes = loop.roster.in_partition_order()
    assert [node.partition for node in nodes] == [0, 1, 2]
    assert [node.num_examples for node in nodes] == [len(task.train_data(i)) for i in range(3)]
    assert all(node.held for node in nodes)


def test_what_devices_measure_on_their_training_data_is_called_so():
    task = digits(2)
    (report,) = run(FedAvg(values="raw", downlink_values="raw", fraction_evaluate=1.0), task, rounds=1)
    model = task.model()
    load_arrays(model, to_numpy(report.arrays))
    found = [task.evaluate(model, task.train_data(i)) for i in range(2)]
    weights = [each["num-examples"] for each in found]
    expected = np.average([each["accuracy"] for each in found], weights=weights)
    assert report.metrics["evaluate_train_accuracy"] == pytest.approx(expected)
    assert "evaluate_accuracy" not in report.metrics


def test_the_device_is_deployable_with_another_strategy_without_a_change():
    task = digits(2)
    grid = InProcessGrid(device_app(lambda _: task), 2)
    for strategy in (FedAvg(), SparsyFed(sparsity=0.5)):
        assert run(strategy, task, rounds=1, grid=grid)


ANSWERED = {
    "fedavg": {Kind.TRAIN, Kind.EVALUATE, Kind.STATISTICS, Kind.VALLEY},
    "malcom_psgd": {Kind.TRAIN, Kind.EVALUATE},
    "split_ms": {Kind.SPLIT},
}


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in ANSWERED for kind in Kind if kind not in ANSWERED[name]]
)
def test_a_kind_that_a_method_does_not_answer_is_refused(name, kind):
    content = RecordDict({RECORD: ConfigRecord({"method": name}), "config": TRAINING})
    with pytest.raises(ValueError, match=f"method '{name}' does not answer {kind}"):
        send(Limits(), kind, content)


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("form", ["plain", "opaque", "bundle"])
def test_the_bytes_of_every_kind_of_message_are_held_to_the_owners_limit(kind, form):
    data = bytes(101)
    records = {"plain": to_record({"w": np.zeros(101, np.uint8)}), "opaque": pack(data, OPAQUE)}
    content = RecordDict({"arrays": {**records, "bundle": bundle.pack(data)}[form], "config": TRAINING})
    with pytest.raises(ValueError, match="max_payload_bytes=100"):
        send(Limits(max_payload_bytes=100), kind, content)


@pytest.mark.parametrize(("name", "kind"), [("fedavg", "train"), ("malcom_psgd", "train"), ("split_ms", "query.split")])
def test_passes_over_the_data_are_held_to_the_owners_limit_before_a_method_answers(name, kind, monkeypatch):
    monkeypatch.setattr(METHODS[name], "answer", lambda *_: pytest.fail("it was asked to answer"))
    asked = {"method": name} | ({"method.batches": 1000} if name == "split_ms" else {})
    content = RecordDict({RECORD: ConfigRecord(asked), "config": ConfigRecord({**TRAINING, "local-epochs": 3})})
    with pytest.raises(ValueError, match="max_local_epochs=2"):
        send(Limits(max_local_epochs=2), kind, content)


def test_a_method_with_messages_of_its_own_answers_them_itself(monkeypatch):
    def answer(self, kind, visit):
        said = {"kind": str(kind), "node": visit.node, "examples": len(visit.data), "lr": visit.config["lr"]}
        return RecordDict({RECORD: ConfigRecord(said)})

    monkeypatch.setattr(METHODS["fedavg"], "answer", answer)
    reply = send(Limits(), Kind.VALLEY, RecordDict({"config": TRAINING}))
    examples = len(digits(2).train_data(1))
    assert dict(record_of(reply.content)) == {"kind": "evaluate.valley", "node": 1, "examples": examples, "lr": 0.1}


def send(limits, kind, content):
    """Return the reply of node 1 of two to one message."""
    set_identity(run_id=1)
    context = Context(run_id=1, node_id=5, node_config={"partition-id": 1}, state=RecordDict(), run_config={})
    return device_app(lambda _: digits(2), limits)(Message(content, 5, str(kind)), context)
