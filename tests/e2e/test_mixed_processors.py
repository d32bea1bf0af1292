"""A deployed federation of unlike processors: the server and one node without any optional CPU feature, the other with.

What a method keeps on both sides (references, mirrors, control variates, copies of neighbors, positions) is named by
hashes and checksums of its bits: a difference in the last one is a refused payload or a lost state, and is counted.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processors import plain_processor
from small_federation import small_config

from flsparse.runs.folder import read_rows
from flsparse.runtime import launch
from flsparse.runtime.deployment import Processes, _free_ports, _listens

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

INT8 = {"values": "int8", "rounding": "nearest", "downlink_values": "int8"}
GRAPH = {"topology": {"name": "complete"}, "num_nodes": 2, "evaluate_every": 2}
METHODS: dict[str, dict[str, Any]] = {
    "sparsyfed": {"strategy": {"name": "sparsyfed", "sparsity": 0.9}},
    "scaffold": {"strategy": {"name": "scaffold"}, "codec": INT8},
    "dppf": {"strategy": {"name": "dppf", "control_variates": True, "sparsity": 0.8}, "codec": INT8},
    "malcom_psgd": {"strategy": {"name": "malcom_psgd", "mu": 1e-3, **GRAPH}, "codec": {}},
    "choco_sgd": {"strategy": {"name": "choco_sgd", "coder": "golomb", **GRAPH}, "codec": {}},
    "split_ms": {"strategy": {"name": "split_ms", "cut": "2", "steps_per_round": 1}, "codec": INT8},
}


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a plain SuperLink, a plain SuperNode, and one with all that this processor has; give the address."""
    folder = tmp_path_factory.mktemp("federation")
    processes = Processes(folder / "logs", folder / "theirs")
    full = dict(processes.environment)
    plain = full | plain_processor()
    port, *node_ports = _free_ports(3)
    try:
        processes.environment = plain
        processes.start("superlink", "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port))
        while not _listens(port):
            processes.check()
            time.sleep(0.2)
        for partition, (node_port, environment) in enumerate(zip(node_ports, (full, plain), strict=True)):
            processes.environment = environment
            node = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(node_port)]
            config = f"partition-id={partition} num-partitions=2"
            processes.start(f"node-{partition}", *node, "--node-config", config)
        yield f"127.0.0.1:{port}"
    finally:
        processes.stop()


@pytest.mark.parametrize("name", METHODS)
def test_nothing_is_refused_or_lost_between_unlike_processors(name: str, superlink: str, tmp_path: Path) -> None:
    rounds = 3 if name in ("sparsyfed", "scaffold", "dppf") else 2  # of the others a round is many exchanges
    settings = {
        "num_clients": 2,
        "num_rounds": rounds,
        "fraction_train": 1.0,
        "client": {"lr": 0.1, "batch_size": 32, "local_steps": 2, "momentum": 0.0},
        "evaluate": {"every": rounds, "on": "test"},
        "superlink": superlink,
        "runtime": {"name": "deployment"},
        "output_dir": str(tmp_path / name),
    }
    summary = launch(small_config(**(settings | METHODS[name])))
    assert (summary["status"], summary["rounds"]) == ("completed", rounds)
    assert (summary["failures"], summary["rejected_payloads"]) == (0, 0)
    rows = read_rows(tmp_path / name / "metrics.jsonl")
    assert {row["replies"] for row in rows} == {2}
    for lost in ("rejoined", "control_lost", "client_control_lost", "resynchronized"):
        assert all(not row.get(lost) for row in rows), lost
    assert all(not row.get("resent_models") for row in rows[1:])  # in round 1 a processor may build another seed model
