"""The in-process grid under plain Flower: no method of ours, a small NumPy ClientApp."""

import random
import sys
import time

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy import FedAdam, FedAvg

from flsparse.runtime import InProcessGrid


def numpy_app() -> ClientApp:
    """Pull the weights towards the partition id; count the rounds in the node's state."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        node = int(context.node_config["partition-id"])
        (weights,) = message.content.array_records["arrays"].to_numpy_ndarrays()
        seen = context.state.config_records["count"]["seen"] if "count" in context.state else 0
        assert isinstance(seen, int)
        context.state["count"] = ConfigRecord({"seen": seen + 1})
        new = (weights + np.float32(0.5) * (np.float32(node) - weights)).astype(np.float32)
        metrics = MetricRecord({"num-examples": 10 + node, "seen": seen + 1})
        return Message(RecordDict({"arrays": ArrayRecord([new]), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        (weights,) = message.content.array_records["arrays"].to_numpy_ndarrays()
        return Message(
            RecordDict({"metrics": MetricRecord({"mean": float(weights.mean()), "num-examples": 1})}), reply_to=message
        )

    return app


def instruction(grid: InProcessGrid, node: int, **config: float) -> Message:
    content = RecordDict({"arrays": ArrayRecord([np.zeros(3, np.float32)]), "config": ConfigRecord({**config})})
    return Message(content, dst_node_id=node, message_type="train")


def test_fedavg_runs_unmodified() -> None:
    grid = InProcessGrid(numpy_app(), num_nodes=6)
    result = FedAvg(fraction_train=1.0, fraction_evaluate=0.5, min_available_nodes=6).start(
        grid=grid, initial_arrays=ArrayRecord([np.zeros(3, np.float32)]), num_rounds=3
    )
    expected = np.float32(0)
    for _ in range(3):
        local = [expected + 0.5 * (node - expected) for node in range(6)]
        expected = np.average(local, weights=[10 + node for node in range(6)])
    np.testing.assert_allclose(result.arrays.to_numpy_ndarrays()[0], expected, rtol=1e-6)
    assert [result.train_metrics_clientapp[r]["seen"] for r in (1, 2, 3)] == pytest.approx([1, 2, 3])  # state survives


def test_the_same_seed_gives_the_same_weights_twice() -> None:
    def run() -> bytes:
        random.seed(3)
        grid = InProcessGrid(numpy_app(), num_nodes=20)
        strategy = FedAdam(fraction_train=0.3, fraction_evaluate=0.0, min_available_nodes=20)
        arrays = strategy.start(grid, ArrayRecord([np.zeros(3, np.float32)]), num_rounds=3).arrays
        return arrays.to_numpy_ndarrays()[0].tobytes()

    assert run() == run()


def test_node_ids_are_fixed_and_no_partition_ids() -> None:
    grid = InProcessGrid(numpy_app(), num_nodes=50)
    ids = grid.get_node_ids()
    assert ids == InProcessGrid(numpy_app(), num_nodes=50).get_node_ids()
    assert len(set(ids)) == 50
    assert min(ids) > 1000
    assert [info.node_id for info in grid.get_nodes()] == ids


def test_pull_runs_one_node_a_call_in_push_order() -> None:
    ran: list[int] = []
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        ran.append(context.node_id)
        assert context.run_config == {"lr": 0.1}
        assert context.node_config["num-partitions"] == 4
        assert context.node_config["site"] == "a"
        return Message(RecordDict(), reply_to=message)

    grid = InProcessGrid(app, num_nodes=4, run_config={"lr": 0.1}, node_config={"site": "a"})
    nodes = grid.get_node_ids()[::-1]
    ids = grid.push_messages(instruction(grid, node) for node in nodes)
    assert len(set(ids)) == 4
    assert ran == []
    for done in range(1, 5):
        (reply,) = grid.pull_messages(set(ids))
        assert ran == nodes[:done]
        assert reply.metadata.reply_to_message_id == ids[done - 1]
        assert reply.metadata.src_node_id == nodes[done - 1]
    assert grid.pull_messages(ids) == []


def test_what_is_pushed_is_what_arrives() -> None:
    grid = InProcessGrid(numpy_app(), num_nodes=1)
    message = instruction(grid, grid.get_node_ids()[0])
    ids = grid.push_messages([message])
    message.content["arrays"] = ArrayRecord([np.full(3, 99, np.float32)])
    (reply,) = grid.pull_messages(ids)
    np.testing.assert_array_equal(reply.content.array_records["arrays"].to_numpy_ndarrays()[0], np.zeros(3))


def failing_app(error: BaseException) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        context.state["half-done"] = ConfigRecord({"x": 1})
        raise error

    return app


def test_a_failing_client_becomes_an_error_reply() -> None:
    grid = InProcessGrid(failing_app(ZeroDivisionError("no batches")), num_nodes=2)
    replies = grid.send_and_receive([instruction(grid, node) for node in grid.get_node_ids()])
    assert [reply.error.code for reply in replies] == [ErrorCode.CLIENT_APP_RAISED_EXCEPTION] * 2
    assert "no batches" in str(replies[0].error.reason)
    assert grid.state_dict()["nodes"] == {}  # what a failed call left in the state is gone, as in Flower


def test_on_error_raise_lets_the_exception_through() -> None:
    grid = InProcessGrid(failing_app(ZeroDivisionError("no batches")), num_nodes=1, on_error="raise")
    with pytest.raises(ZeroDivisionError, match="no batches"):
        grid.send_and_receive([instruction(grid, grid.get_node_ids()[0])])


def test_ctrl_c_passes_and_exit_is_a_crash() -> None:
    grid = InProcessGrid(failing_app(KeyboardInterrupt()), num_nodes=1)
    with pytest.raises(KeyboardInterrupt):
        grid.send_and_receive([instruction(grid, grid.get_node_ids()[0])])
    grid = InProcessGrid(failing_app(SystemExit(3)), num_nodes=1)
    (reply,) = grid.send_and_receive([instruction(grid, grid.get_node_ids()[0])])
    assert reply.error.code == ErrorCode.CLIENT_APP_CRASHED


def test_unknown_nodes_missing_functions_and_wrong_returns() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return None  # type: ignore[return-value]

    grid = InProcessGrid(app, num_nodes=1)
    node = grid.get_node_ids()[0]
    content = RecordDict()
    messages = [Message(content, node, "train"), Message(content, node, "query"), Message(content, node + 1, "train")]
    replies = grid.send_and_receive(messages)
    assert [reply.error.code for reply in replies] == [
        ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
        ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
        ErrorCode.NODE_UNAVAILABLE,
    ]
    assert "NoneType" in str(replies[0].error.reason)


def test_ttl_and_timeout() -> None:
    grid = InProcessGrid(numpy_app(), num_nodes=2)
    node = grid.get_node_ids()[0]
    stale = Message(RecordDict(), node, "train", ttl=0.01)
    ids = grid.push_messages([stale])
    time.sleep(0.02)
    (reply,) = grid.pull_messages(ids)
    assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    messages = [instruction(grid, each) for each in grid.get_node_ids()]
    assert grid.send_and_receive(messages, timeout=0.0) == []
    assert grid.pull_messages([each.metadata.message_id for each in messages]) == []
    assert len(grid.send_and_receive([instruction(grid, node)], timeout=60.0)) == 1


def test_two_grids_take_turns() -> None:
    grids = [InProcessGrid(numpy_app(), num_nodes=2) for _ in range(2)]
    assert grids[0].run.run_id != grids[1].run.run_id
    for grid in grids * 2:
        replies = grid.send_and_receive([instruction(grid, node) for node in grid.get_node_ids()])
        assert all(reply.has_content() and reply.metadata.run_id == grid.run.run_id for reply in replies)


def test_state_goes_on_in_a_new_grid() -> None:
    grid = InProcessGrid(numpy_app(), num_nodes=3)
    grid.send_and_receive([instruction(grid, node) for node in grid.get_node_ids()[:2]])
    state = grid.state_dict()
    assert len(state["nodes"]) == 2
    other = InProcessGrid(numpy_app(), num_nodes=3)
    other.load_state_dict(state)
    assert other.run.run_id == grid.run.run_id
    replies = other.send_and_receive([instruction(other, node) for node in other.get_node_ids()])
    assert [reply.content.metric_records["metrics"]["seen"] for reply in replies] == [2, 2, 1]
    with pytest.raises(ValueError, match="partition"):
        InProcessGrid(numpy_app(), num_nodes=1).load_state_dict({**state, "nodes": {"2": np.zeros(0, np.uint8)}})


def test_a_federation_needs_a_node() -> None:
    with pytest.raises(ValueError, match="num_nodes is 0"):
        InProcessGrid(numpy_app(), num_nodes=0)


def test_a_broadcast_is_held_once() -> None:
    grid = InProcessGrid(numpy_app(), num_nodes=500)
    arrays = ArrayRecord([np.random.default_rng(0).normal(size=20_000)])
    content = RecordDict({"arrays": arrays})
    grid.push_messages(Message(content, node, "train") for node in grid.get_node_ids())
    held = {id(data): sys.getsizeof(data) for each in grid._pending.values() for data in each.values()}
    assert sum(held.values()) < 160_000 + 500 * 1_000
