"""A small federation on the embedded digits, as a composed configuration."""

from typing import Any


def small_config(**changes: Any) -> dict[str, Any]:
    """Return a configuration of 4 rounds on 6 nodes, 3 a round; a few seconds in all."""
    config: dict[str, Any] = {
        "seed": 1,
        "num_rounds": 4,
        "num_clients": 6,
        "fraction_train": 0.5,
        "threads": 1,
        "dataset": {"name": "digits", "mean": 0.5, "std": 0.5, "validation_fraction": 0.1, "train_samples": 600},
        "partition": {"kind": "dirichlet_equal", "alpha": 1.0},
        "model": {"name": "cnn", "width": 8},
        "client": {"lr": 0.3, "lr_final": 0.03, "batch_size": 32, "local_epochs": 1, "weight_decay": 0.001},
        "codec": {"values": "int4", "rounding": "nearest", "downlink_values": "int8"},
        "strategy": {"name": "sparsyfed", "sparsity": 0.9},
        "runtime": {"name": "inprocess"},
        "evaluate": {"every": 1, "on": "test"},
        "superlink": None,
        "resume": None,
        "output_dir": None,
    }
    return config | changes
