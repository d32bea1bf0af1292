"""Impossible settings are refused in one line; mistyped names find what they were meant to be."""

from typing import Any

import pytest

from flsparse.app.settings import SettingsError, check
from flsparse.configs import did_you_mean, keys_of, lookup, near


def possible() -> dict[str, Any]:
    return {
        "seed": 0,
        "num_rounds": 3,
        "num_clients": 10,
        "fraction_train": 0.5,
        "device": "cpu",
        "dataset": {"name": "digits"},
        "model": {"name": "cnn"},
        "evaluate": {"every": 1, "on": "test"},
        "partition": {"kind": "dirichlet_equal", "alpha": float("inf")},
        "client": {"lr": 0.1, "lr_final": 0, "batch_size": 8, "local_epochs": 1, "local_steps": 0, "momentum": 0.0},
        "codec": {"values": "int4", "rounding": "nearest", "downlink_values": "int8"},
        "strategy": {"name": "sparsyfed", "sparsity": 0.95, "beta": "spectral", "round_timeout_s": None},
    }


def test_a_rate_of_sgd_is_refused_for_adamw() -> None:
    cfg = possible()
    cfg["client"] |= {"optimizer": "adamw", "lr": 0.3}
    with pytest.raises(SettingsError, match=r"client\.lr=0\.3 is a rate of SGD.* such as client\.lr=0\.01"):
        check(cfg)
    cfg["client"]["lr"] = 0.01
    check(cfg)


def test_possible_settings_pass() -> None:
    check(possible())


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (None, "num_rounds", 0),
        (None, "num_rounds", True),
        (None, "num_clients", "many"),
        (None, "fraction_train", 1.01),
        (None, "fraction_train", 0),
        (None, "seed", -1),
        ("evaluate", "on", "train"),
        ("partition", "alpha", 0),
        ("client", "lr", "fast"),
        ("client", "momentum", 1.0),
        ("client", "batch_size", 0),
        ("client", "clip_grad", -1),
        ("dataset", "std", 0),
        ("dataset", "std", [0.5, 0]),
        ("client", "local_epochs", 0),
        ("codec", "values", "int3"),
        ("runtime", "name", "cloud"),
        ("strategy", "name", None),
        ("client", "lr", None),
        (None, "num_clients", None),
        (None, "seed", None),
        ("strategy", "min_train_nodes", 11),
        ("strategy", "min_replies", 6),
    ],
)
def test_impossible_settings_are_refused_in_one_line(section: str | None, key: str, value: Any) -> None:
    cfg = possible()
    (cfg.setdefault(section, {}) if section else cfg)[key] = value
    with pytest.raises(SettingsError) as error:
        check(cfg)
    assert key in str(error.value)
    assert ("null" if value is None else str(value)) in str(error.value)
    assert "\n" not in str(error.value)


def test_near_names() -> None:
    known = ["num_rounds", "num_clients", "strategy.sparsity", "client.lr"]
    assert near("num_round", known) == ["num_rounds"]
    assert near("sparsity", known) == ["strategy.sparsity"]
    assert near("strategy.lr", known)[0] == "client.lr"
    assert near("client.learning_rate", known) == ["client.lr"]
    assert near("xyzzy", known) == []
    assert did_you_mean("xyzzy", known) == ""


def test_dotted_keys() -> None:
    assert keys_of({"a": {"b": 1}, "c": 2}) == ["a", "a.b", "c"]
    assert lookup({"a": {"b": 1}}, "a.b") == 1
    assert lookup({"a": {"b": 1}}, "a.c") is None
    assert lookup({"a": 1}, "a.b.c") is None


def test_split_learning_does_not_clip() -> None:
    cfg = possible()
    cfg["strategy"] = {"name": "split_ms"}
    cfg["client"]["clip_grad"] = 1.0
    with pytest.raises(SettingsError, match=r"client.clip_grad=1.0 is impossible with strategy=split_ms"):
        check(cfg)
