"""Rules that hold for every method in the folder, the ones that come later too."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_federation import small_config

from flsparse.clients import METHODS
from flsparse.configs import open_parameters
from flsparse.runtime import launch
from flsparse.strategies import STRATEGIES

RING = {"topology": {"name": "ring"}, "num_nodes": 3}
NEEDS: dict[str, dict[str, Any]] = {
    "split_ms": {"cut": "2", "steps_per_round": 1},
    "malcom_psgd": RING,
    "choco_sgd": RING,
    "d_psgd": RING,
}
INT8 = {"values": "int8", "rounding": "nearest", "downlink_values": "int8"}


def trained(name: str, folder: Path, **changes: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Run two rounds on three nodes; return the summary and the weights."""
    settings = {
        "num_clients": 3,
        "num_rounds": 2,
        "fraction_train": 1.0,
        "dataset": {"name": "digits", "mean": 0.5, "std": 0.5, "validation_fraction": 0.1, "train_samples": 200},
        "client": {"lr": 0.1, "batch_size": 32, "local_steps": 2, "momentum": 0.0},
        "strategy": {"name": name, **NEEDS.get(name, {})},
        "codec": INT8 if "values" in open_parameters(STRATEGIES[name]) else {},
        "output_dir": str(folder),
    }
    summary = launch(small_config(**(settings | changes)))
    return summary, load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_seed_gives_one_result_bit_for_bit(name: str, tmp_path: Path) -> None:
    (first, weights), (second, again) = (trained(name, tmp_path / each) for each in ("a", "b"))
    assert first["uplink_bytes"] == second["uplink_bytes"]
    assert (first["uplink_bytes"] > 0) == (name != "local_only")
    assert {key: array.tobytes() for key, array in weights.items()} == {k: a.tobytes() for k, a in again.items()}


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ("scaffold", "local_only")])
def test_local_noise_is_one_part_of_any_method(name: str, tmp_path: Path) -> None:
    _, usual = trained(name, tmp_path / "usual")
    summary, noisy = trained(name, tmp_path / "noisy", parts={"noise": {"std": 0.01}})
    assert (summary["status"], summary["failures"], summary["rejected_payloads"]) == ("completed", 0, 0)
    assert any((noisy[key] != array).any() for key, array in usual.items())


def test_noise_that_a_control_variate_would_go_around_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'noise' cannot stand beside 'control_variates'"):
        trained("scaffold", tmp_path / "run", parts={"noise": {"std": 0.01}})


def test_every_method_is_a_pair() -> None:
    assert STRATEGIES.keys() == METHODS.keys()


def test_a_proximal_term_of_weight_0_is_federated_averaging(tmp_path: Path) -> None:
    _, plain = trained("fedavg", tmp_path / "fedavg")
    _, zero = trained("fedprox", tmp_path / "zero", strategy={"name": "fedprox", "mu": 0.0})
    _, held = trained("fedprox", tmp_path / "held", strategy={"name": "fedprox", "mu": 1.0})
    assert all((zero[key] == array).all() for key, array in plain.items())
    assert any((held[key] != array).any() for key, array in plain.items())
