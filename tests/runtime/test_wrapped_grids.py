"""Grids around grids."""

import threading

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from flsparse.runtime import CountingGrid, InProcessGrid
from flsparse.runtime.wrappers import StoppableGrid


def echo_grid() -> InProcessGrid:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        content = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    return InProcessGrid(app, 3)


def test_a_counting_grid_counts_both_ways() -> None:
    grid = CountingGrid(echo_grid())
    arrays = ArrayRecord([np.arange(1000, dtype=np.float32)])
    FedAvg(fraction_evaluate=0.0, min_available_nodes=3).start(grid, arrays, num_rounds=2)
    assert (grid.uplink_messages, grid.downlink_messages) == (6, 6)
    for sent in (grid.uplink_wire_bytes, grid.downlink_wire_bytes):
        assert 6 * 4000 < sent < 6 * 6000
    assert grid.run.run_id == grid._grid.run.run_id


def test_a_stoppable_grid_stops_its_server() -> None:
    stop = threading.Event()
    grid = StoppableGrid(echo_grid(), stop)
    message = grid.create_message(RecordDict(), "train", next(iter(grid.get_node_ids())), "1")
    ids = grid.push_messages([message])
    stop.set()
    for use in (grid.get_node_ids, lambda: grid.pull_messages(ids), lambda: grid.push_messages([message])):
        with pytest.raises(KeyboardInterrupt):
            use()
