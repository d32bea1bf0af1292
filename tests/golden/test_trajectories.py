"""Five rounds of every strategy, as they once went: what moves here was meant to, or is a regression.

Losses and bytes are compared with room for another processor's rounding. After a change that is meant to move them:
``python tests/golden/test_trajectories.py`` writes them anew.
"""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from federation_kit import digits, run

from flsparse.strategies import (
    DPPF,
    DPSGD,
    STRATEGIES,
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
SPARSE = {"sparsity": 0.9, "hello": True}
RING = {"topology": {"name": "ring"}, "num_nodes": 4}
CASES: dict[str, RoundLoop] = {
    "fedavg": FedAvg(values="raw", downlink_values="raw", hello=True),
    "fedavg_int8_adam": FedAvg(values="int8", server_optimizer="adam", server_lr=0.01, hello=True),
    "topk": TopK(**SPARSE),
    "sparsyfed": SparsyFed(**SPARSE),
    "sparsyfed_paper": SparsyFed(**SPARSE, ramp=False, reprune=False, activation_pruning=True, values="fp32"),
    "local_sgd": LocalSGD(values="raw", downlink_values="raw", hello=True),
    "scaffold": Scaffold(values="int8", hello=True),
    "dppf": DPPF(values="int4", hello=True),
    "dppf_exact": DPPF(alpha=0.5, lambda_=0.5, schedule="constant", values="raw", downlink_values="raw", hello=True),
    "dppf_sparse_with_control": DPPF(
        sparsity=0.9, control_variates=True, values="int8", fraction_train=0.5, hello=True
    ),
    "sparsyfed_spectral_layers": SparsyFed(**SPARSE, beta="spectral", scope="layer", fraction_train=0.5),
    "malcom_psgd": MalcomPSGD(**RING, mu=0.001),
    "choco_sgd": ChocoSGD(**RING, gamma=0.6, coder="rans"),
    "d_psgd": DPSGD(**RING),
    "split_ms": SplitMS(cut="2", sparsity=0.99, bits=2, steps_per_round=4, values="int8", hello=True),
    "split_ms_labels_kept": SplitMS(
        cut="5", sparsity=0.99, bits=2, labels="kept", steps_per_round=2, batches_per_message=2, hello=True
    ),
}
KEYS = (
    "train_loss",
    "uplink_bytes",
    "downlink_bytes",
    "broadcast_sparsity",
    "mask_iou",
    "regrowth",
    "consensus_error",
    "width",
)


def trajectory(strategy: RoundLoop) -> list[dict[str, float]]:
    """Return the numbers of each of five rounds."""
    return [{k: r.metrics[k] for k in KEYS if k in r.metrics} for r in run(strategy, digits(), rounds=5)]


@pytest.mark.parametrize("name", CASES)
def test_trajectory(name):
    expected = json.loads(FILE.read_text())[name]
    for now, then in zip(trajectory(CASES[name]), expected, strict=True):
        assert now == pytest.approx(then, rel=0.02, abs=1e-3)


def test_every_strategy_has_a_trajectory():
    assert {case.name for case in CASES.values()} == set(STRATEGIES)


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: trajectory(case) for name, case in CASES.items()}, indent=1) + "\n")
