"""Checks of a composed configuration before anything starts.

Plain functions over plain values: no Hydra, no torch. A refusal is one line with the value, the limit and the remedy.
Ranges here are of the application's own keys; bad arguments of a strategy are refused by its constructor.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from math import inf
from typing import Any

from flsparse.codec.wire import VALUES
from flsparse.configs import AUTO, lookup, sampled_nodes
from flsparse.kpi import KPIS


class SettingsError(ValueError):
    """A configuration that cannot run; the message is one line for the user."""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _at_least(limit: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= limit, (
        f"a whole number, {limit} or more"
    )


def _one_of(*choices: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in choices, f"one of {', '.join(choices)}"


_POSITIVE = (lambda value: _number(value) and 0 < value < inf, "a number above 0, and finite")
_NOT_NEGATIVE = (lambda value: _number(value) and 0 <= value < inf, "a number, 0 or more, and finite")
_FRACTION = (lambda value: _number(value) and 0 < value <= 1, "a fraction of the nodes, above 0 and at most 1")

_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": _at_least(0),
    "num_rounds": _at_least(1),
    "num_clients": _at_least(1),
    "fraction_train": _FRACTION,
    "weighting": _one_of("examples", "equal", "clipped"),
    "threads": _at_least(1),
    "runtime.name": _one_of("inprocess", "simulation", "deployment"),
    "runtime.num_cpus": _POSITIVE,
    "runtime.num_gpus": _NOT_NEGATIVE,
    "evaluate.every": _at_least(1),
    "evaluate.by_node": (lambda value: isinstance(value, bool), "true or false"),
    "evaluate.on": _one_of("test", "validation"),
    "evaluate.target": (
        lambda value: _number(value) and -inf < value < inf,
        "a value of the metric, such as 0.95 of accuracy",
    ),
    "metric": _one_of(*KPIS),
    "partition.alpha": (lambda value: _number(value) and value > 0, "a number above 0; inf is IID"),
    "client.lr": (
        lambda value: value == AUTO or (_number(value) and 0 < value < inf),
        "a number above 0, and finite, or auto: searched before round 1",
    ),
    "client.lr_final": _NOT_NEGATIVE,
    "client.lr_schedule": _one_of("geometric", "cosine"),
    "client.batch_size": _at_least(1),
    "client.local_epochs": _at_least(0),
    "client.local_steps": _at_least(0),
    "client.optimizer": _one_of("sgd", "adamw"),
    "client.momentum": (lambda value: _number(value) and 0 <= value < 1, "a number in [0, 1)"),
    "client.weight_decay": _NOT_NEGATIVE,
    "client.clip_grad": _NOT_NEGATIVE,
    "dataset.std": (
        lambda value: all(_number(each) and each > 0 for each in (value if isinstance(value, list) else [value])),
        "a number above 0, or one for each channel",
    ),
    "device": (
        lambda value: isinstance(value, str) and re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value) is not None,
        "cpu, cuda, cuda:N, mps, or auto: a GPU where there is one",
    ),
    "model.width": _at_least(1),
    "superlink": (
        lambda value: (
            isinstance(value, str)
            and re.fullmatch(r".+:\d{1,5}", value) is not None
            and int(value.rpartition(":")[2]) < 2**16
        ),
        "HOST:PORT, where a SuperLink listens",
    ),
    "codec.values": _one_of(*VALUES),
    "codec.downlink_values": _one_of(*VALUES),
    "codec.rounding": _one_of("nearest", "stochastic"),
    "codec.downlink_density": (
        lambda value: _number(value) and 0 < value <= 1,
        "the fraction of the weights that a broadcast changes, above 0 and at most 1",
    ),
}

_RATE_OF_SGD = 0.1
_CODEC = ("codec.values", "codec.rounding", "codec.downlink_values")
_REQUIRED = (
    *("seed", "num_rounds", "num_clients", "fraction_train", "device", "evaluate.every", "evaluate.on"),
    *("client.lr", "client.batch_size", *_CODEC),
    *("strategy.name", "dataset.name", "model.name"),
)


def check(cfg: Mapping[str, Any]) -> None:
    """Check a composed configuration; keys that are absent or null are left to their defaults, but for the required.

    Raises
    ------
    SettingsError
        A value is impossible, or two values contradict each other.
    """
    for key in _REQUIRED:
        if lookup(cfg, key) is None:
            words = _RULES[key][1] if key in _RULES else "a name"
            raise SettingsError(f"{key}=null is impossible: it is {words}")
    for key, (allowed, words) in _RULES.items():
        value = lookup(cfg, key)
        if value is not None and not allowed(value):
            raise SettingsError(f"{key}={value} is impossible: it is {words}")
    rate = lookup(cfg, "client.lr")
    if lookup(cfg, "client.optimizer") == "adamw" and _number(rate) and rate >= _RATE_OF_SGD:
        raise SettingsError(
            f"client.lr={rate} is a rate of SGD, which the strategy brings: AdamW's steps are as "
            f"large as its rate, so give one below {_RATE_OF_SGD}, such as client.lr=0.01"
        )
    if lookup(cfg, "client.local_epochs") == 0 and not lookup(cfg, "client.local_steps"):
        raise SettingsError("client.local_epochs=0 and client.local_steps=0: nodes would not train; set one of them")
    if (qsr := lookup(cfg, "strategy.qsr")) and not lookup(cfg, "client.local_steps"):
        raise SettingsError(f"strategy.qsr={qsr} needs client.local_steps above 0: the fewest that the rule may choose")
    if lookup(cfg, "strategy.name") == "split_ms" and (clip := lookup(cfg, "client.clip_grad")):
        raise SettingsError(
            f"client.clip_grad={clip} is impossible with strategy=split_ms, where no side has the whole gradient: "
            "set it to 0"
        )
    if lookup(cfg, "partition.kind") == "own" and lookup(cfg, "evaluate.on") == "validation":
        raise SettingsError(
            "evaluate.on=validation is impossible with partition.kind=own, whose nodes evaluate on their test parts: "
            "leave it out"
        )
    if lookup(cfg, "partition.kind") == "own" and lookup(cfg, "strategy.name") == "pooled":
        raise SettingsError(
            "strategy=pooled is impossible with partition.kind=own, whose data stay where they are: compare with "
            "strategy=local_only alone"
        )
    if (local := lookup(cfg, "model.local")) and lookup(cfg, "evaluate.on") == "validation":
        raise SettingsError(
            f"evaluate.on=validation is impossible with local={local}, whose nodes evaluate on their shares of the "
            "test set: leave it out"
        )
    _check_nodes(cfg)


def without_effect(cfg: Mapping[str, Any], given: Iterable[str], taken: Collection[str]) -> list[str]:
    """Return a line for each setting that the chosen strategy or runtime does not look at.

    Parameters
    ----------
    cfg : Mapping
        The composed configuration.
    given : Iterable[str]
        Keys and groups that were set by hand. Most settings have a default that may be without effect unremarked.
    taken : Collection[str]
        Arguments that the strategy leaves open (see :func:`flsparse.configs.open_parameters`).
    """
    strategy, runtime = lookup(cfg, "strategy.name"), lookup(cfg, "runtime.name")
    kind, steps, nodes = lookup(cfg, "partition.kind"), lookup(cfg, "client.local_steps"), cfg["num_clients"]
    notes = []
    if cfg.get("cut") is not None and "cut" not in cfg["strategy"]:
        notes.append(f"cut={cfg['cut']} has no effect on strategy={strategy}; strategy=split_ms cuts the model")
    if cfg.get("topology") and "topology" not in cfg["strategy"]:
        name = lookup(cfg, "topology.name")
        notes.append(f"topology={name} has no effect on strategy={strategy}, whose nodes all speak to the server")
    if cfg.get("superlink") and runtime != "deployment":
        notes.append(f"superlink={cfg['superlink']} has no effect on runtime={runtime}; add runtime=deployment")
    notes += [
        f"the tier {key} has no effect: num_clients={nodes} nodes are 0-{nodes - 1}"
        for key in lookup(cfg, "strategy.tiers") or {}
        if int(str(key).partition("-")[0]) >= nodes
    ]
    for key in given:
        if key in ("codec", *_CODEC) and (key.partition(".")[2] or "values") not in taken:
            notes.append(
                f"{_as_given(cfg, key)} has no effect on strategy={strategy}, which codes residuals its own way"
            )
        elif key == "weighting" and key not in taken:
            notes.append(f"weighting={cfg[key]} has no effect on strategy={strategy}, whose nodes weigh alike")
        elif key == "codec.rounding" and not str(lookup(cfg, "codec.values")).startswith("int"):
            notes.append(f"{_as_given(cfg, key)} has no effect on codec.values={lookup(cfg, 'codec.values')}")
        elif key in ("client.local_epochs", "client.local_steps") and "steps_per_round" in taken:
            notes.append(f"{_as_given(cfg, key)} has no effect on strategy={strategy}; strategy.steps_per_round has")
        elif key == "client.local_epochs" and steps:
            notes.append(
                f"{_as_given(cfg, key)} has no effect beside client.local_steps={steps}; add client.local_steps=0"
            )
        elif key == "partition.alpha" and kind in ("iid", "natural"):
            notes.append(f"{_as_given(cfg, key)} has no effect on partition.kind={kind}; dirichlet_equal takes it")
    return notes


def _as_given(cfg: Mapping[str, Any], key: str) -> str:
    value = lookup(cfg, key)
    return key if isinstance(value, Mapping) else f"{key}={value}"


def _check_nodes(cfg: Mapping[str, Any]) -> None:
    """Refuse rounds that want more nodes than there are, or more replies than nodes are asked."""
    nodes = cfg["num_clients"]
    for key in ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"):
        wanted = lookup(cfg, f"strategy.{key}")
        if isinstance(wanted, int) and wanted > nodes:
            raise SettingsError(f"strategy.{key}={wanted} is impossible: there are num_clients={nodes} nodes")
    sampled = sampled_nodes(cfg)
    replies = lookup(cfg, "strategy.min_replies")
    if isinstance(replies, int) and replies > sampled:
        raise SettingsError(
            f"strategy.min_replies={replies} is impossible: fraction_train={cfg.get('fraction_train')} of "
            f"num_clients={nodes} asks {sampled} nodes a round"
        )
