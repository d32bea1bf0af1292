"""Plain functions over composed configurations and their keys, and what a mistyped name was meant to be."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def near(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that a mistyped one may stand for, the most alike first.

    A dotted key is also recognized by its last part, so that ``sparsity`` finds ``strategy.sparsity``, and that by its
    initials, so that ``learning_rate`` finds ``lr``.

    >>> near("num_round", ["num_rounds", "seed"])
    ['num_rounds']
    >>> near("sparsity", ["strategy.sparsity", "strategy.name"])
    ['strategy.sparsity']
    """
    names = list(known)
    whole = difflib.get_close_matches(name, names, n=3, cutoff=0.7)
    leaf = name.rsplit(".", 1)[-1]
    initials = "".join(word[:1] for word in leaf.split("_"))
    ends = {each: each.rsplit(".", 1)[-1] for each in names}
    leaves = {
        each: max(difflib.SequenceMatcher(None, leaf, end).ratio(), len(end) > 1 and end == initials)
        for each, end in ends.items()
    }
    by_leaf = sorted((each for each in names if leaves[each] >= 0.8), key=lambda each: -leaves[each])
    return list(dict.fromkeys(by_leaf + whole))[:3]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean a or b?"``, or nothing where no known name is near."""
    names = near(name, known)
    return f"; did you mean {' or '.join(names)}?" if names else ""


def keys_of(cfg: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names of all keys, branches included.

    >>> keys_of({"seed": 0, "client": {"lr": 0.1}})
    ['seed', 'client', 'client.lr']
    """
    keys = []
    for key, value in cfg.items():
        keys.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            keys += keys_of(value, f"{prefix}{key}.")
    return keys


def lookup(cfg: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key, None where it is absent."""
    value: Any = cfg
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def sampled_nodes(cfg: Mapping[str, Any]) -> int:
    """Return how many of ``num_clients`` nodes are asked each round: ``fraction_train``, at least ``min_train_nodes``.

    >>> sampled_nodes({"num_clients": 100, "fraction_train": 0.29})
    29
    """
    at_least = lookup(cfg, "strategy.min_train_nodes") or 1
    return max(at_least, int(float(cfg.get("fraction_train", 1.0)) * int(cfg["num_clients"]) + 1e-9))
