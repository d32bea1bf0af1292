"""Five rounds of every strategy, as they once went: what moves here was meant to, or is a regression.

Training goes through convolutions and matrix products, whose last bits differ by processor, and a gradient's last bit
decides which weight is rounded up or pruned. So floating results have a tolerance of their own, about twice the largest
difference seen between a processor with AVX-512 and the same one with all optional features off: 0.5 % of a loss, 1.2 %
of bytes, 0.8 % of a consensus error. The bytes of one broadcast have a wider one: a single weight that is pruned on one
processor and kept on another can be the largest change of its layer, and with it the grid's step (gradients disturbed
by 1e-4 of themselves: 5.6 % of a round's bytes, 1.6 % of five rounds'). The fraction of zeros that a method was asked
for is a count, and the same everywhere. What is equal bit for bit is in ``test_exact_trajectories.py``. After a change
that is meant to move them: ``python tests/golden/test_trajectories.py`` writes them anew.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from federation_kit import digits, run

from flsparse.strategies import (
    DPPF,
    DPSGD,
    ChocoSGD,
    FedAvg,
    LocalSGD,
    MalcomPSGD,
    RoundLoop,
    Scaffold,
    SparsyFed,
    SplitMS,
    TopK,
)

FILE = Path(__file__).with_name("trajectories.json")
SPARSE: dict[str, Any] = {"sparsity": 0.9, "hello": True}
RING: dict[str, Any] = {"topology": {"name": "ring"}, "num_nodes": 4}
CASES: dict[str, Callable[[], RoundLoop]] = {
    "fedavg": lambda: FedAvg(values="raw", downlink_values="raw", hello=True),
    "fedavg_int8_adam": lambda: FedAvg(values="int8", server_optimizer="adam", server_lr=0.01, hello=True),
    "topk": lambda: TopK(**SPARSE),
    "sparsyfed": lambda: SparsyFed(**SPARSE),
    "sparsyfed_paper": lambda: SparsyFed(
        **SPARSE, scope="global", ramp=False, reprune=False, activation_pruning=True, values="fp32"
    ),
    "local_sgd": lambda: LocalSGD(values="raw", downlink_values="raw", hello=True),
    "scaffold": lambda: Scaffold(values="int8", hello=True),
    "dppf": lambda: DPPF(values="int4", hello=True),
    "dppf_exact": lambda: DPPF(
        alpha=0.5, lambda_=0.5, schedule="constant", values="raw", downlink_values="raw", hello=True
    ),
    "dppf_sparse_with_control": lambda: DPPF(
        sparsity=0.9, control_variates=True, values="int8", fraction_train=0.5, hello=True
    ),
    "sparsyfed_spectral_layers": lambda: SparsyFed(**SPARSE, beta="spectral", scope="layer", fraction_train=0.5),
    "malcom_psgd": lambda: MalcomPSGD(**RING, mu=0.001),
    "choco_sgd": lambda: ChocoSGD(**RING, gamma=0.6, coder="rans"),
    "d_psgd": lambda: DPSGD(**RING),
    "split_ms": lambda: SplitMS(cut="2", sparsity=0.99, bits=2, steps_per_round=4, values="int8", hello=True),
    "split_ms_labels_kept": lambda: SplitMS(
        cut="5", sparsity=0.99, bits=2, labels="kept", steps_per_round=2, batches_per_message=2, hello=True
    ),
}
TOLERANCES = {  # relative; 0 is exact
    "train_loss": 0.01,
    "uplink_bytes": 0.025,
    "downlink_bytes": 0.12,
    "broadcast_sparsity": 0.0,
    "mask_iou": 0.01,
    "regrowth": 0.01,
    "consensus_error": 0.02,
    "width": 0.002,
}
IN_ALL = {"downlink_bytes": 0.035}


def trajectory(strategy: RoundLoop) -> list[dict[str, float]]:
    """Return the numbers of each of five rounds."""
    return [{k: r.metrics[k] for k in TOLERANCES if k in r.metrics} for r in run(strategy, digits(), rounds=5)]


@pytest.mark.parametrize("name", CASES)
def test_trajectory(name):
    expected = json.loads(FILE.read_text())[name]
    rounds = trajectory(CASES[name]())
    for now, then in zip(rounds, expected, strict=True):
        for key, value in then.items():
            assert now[key] == pytest.approx(value, rel=TOLERANCES[key], abs=0), key
    for key, tolerance in IN_ALL.items():
        if key in expected[0]:
            total = sum(then[key] for then in expected)
            assert sum(now[key] for now in rounds) == pytest.approx(total, rel=tolerance), key


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: trajectory(case()) for name, case in CASES.items()}, indent=1) + "\n")
