"""A strategy, its parts and the model that its nodes train, made from a composed configuration."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from flsparse.clients import PARTS, Part
from flsparse.configs import AUTO, build, did_you_mean, parameters, sampled_nodes
from flsparse.metering.clock import VirtualClock
from flsparse.metering.network import network_of
from flsparse.runtime.learning import evaluates_on_nodes, go_by, start_of
from flsparse.runtime.rate_search import check_searchable
from flsparse.sparsity import check_outputs, is_sparsified, prunable_names
from flsparse.strategies import SERVER_PARTS, STRATEGIES, RoundLoop
from flsparse.strategies.core.pace import PACES, in_flight
from flsparse.strategies.core.part import RoundPart
from flsparse.tasks import Data, Task


def make_strategy(cfg: Mapping[str, Any], prunable: list[str]) -> RoundLoop:
    """Build the strategy of a configuration: ``strategy`` holds its arguments, ``codec`` further ones if it takes them.

    Raises
    ------
    ValueError
        The name is unknown, or an argument is unknown, of another type or out of range, of ``link`` and ``pace`` as
        well; or the strategy cannot go at that pace.
    """
    arguments, codec = dict(cfg["strategy"]), dict(cfg.get("codec") or {})
    for key in codec.keys() - parameters(RoundLoop).keys():
        raise ValueError(f"codec.{key} is not a setting{did_you_mean(key, parameters(RoundLoop))}")
    offered = {
        "fraction_train": float(cfg.get("fraction_train", 1.0)),
        "min_train_nodes": sampled_nodes(cfg),
        "min_available_nodes": arguments.get("min_replies", 1),  # a device that dies does not stop a run
        **codec,
        "seed": int(cfg["seed"]),
        "hello": True,
        "weighting": cfg.get("weighting") or "examples",
        "prunable": prunable,
    }
    partition = cfg.get("partition") or {}
    if partition.get("kind") == "own" and not partition.get("server_root"):
        offered["fraction_evaluate"] = 1.0  # the server has nothing to evaluate on
    if (cfg.get("model") or {}).get("local"):
        offered["fraction_evaluate"] = 1.0  # nodes alone have the whole of their models
    offered |= {"parts": make_parts(cfg.get("parts") or {})}
    strategy = build(STRATEGIES, arguments.pop("name"), arguments, what="strategy", offered=offered)
    _over_links(strategy, cfg)
    return strategy


def _over_links(strategy: RoundLoop, cfg: Mapping[str, Any]) -> None:
    """Give a strategy the clock of ``link``, and let it go at ``pace``."""
    if network := network_of(cfg.get("link"), int(cfg["seed"])):
        strategy.wire.clock = VirtualClock(network)
        for name, link in network.classes.items():
            if link.dropout and not strategy.round_timeout_s:
                raise ValueError(
                    f"link.classes.{name}.dropout={link.dropout} needs an end to the wait for nodes that drop out: "
                    "+strategy.round_timeout_s=600, or another number of seconds"
                )
    settings = dict(cfg.get("pace") or {"name": "sync"})
    pace = build(PACES, settings.pop("name"), settings, what="pace")
    runtime = (cfg.get("runtime") or {}).get("name", "inprocess")
    if pace.name != "sync" and runtime == "inprocess" and not network:
        raise ValueError(
            f"pace={pace.name} goes by how fast nodes are, which in process is what their links say: add link=lte or "
            "another, or link=mixed"
        )
    strategy.in_flight = in_flight(pace, strategy.name, strategy.why_sync, strategy.parts)


def prepare(cfg: Mapping[str, Any], task: Task, data: Data) -> tuple[RoundLoop, nn.Module]:
    """Build the strategy of a configuration, and the model that its nodes train.

    Raises
    ------
    ValueError
        As for :func:`make_strategy`, `start_of`, `go_by`; or a sparsified model's outputs are not the plain one's, or
        there are no data to search a learning rate on.
    """
    plain = start_of(cfg, task)
    strategy = make_strategy(cfg, prunable_names(plain))
    model = strategy.prepare(plain)
    if (cfg["model"].get("weights") and not task.frozen) or cfg.get("init"):
        strategy.wire.downlink.initial = None  # no node builds it from the seed
    if is_sparsified(model):
        check_outputs(start_of(cfg, task), model, task.example(data))
    go_by(cfg, strategy, task, data)
    if cfg["client"]["lr"] == AUTO:
        runtime = (cfg.get("runtime") or {}).get("name", "inprocess")
        check_searchable(cfg, strategy, in_process=runtime == "inprocess")
        if not evaluates_on_nodes(task, data):
            task.validation_data()  # that rates are compared on
    return strategy, model


def make_parts(cfg: Mapping[str, Mapping[str, Any] | None]) -> list[Part | RoundPart]:
    """Build the parts of a configuration, settings by name; a part of the server carries its side on the device."""
    registry: dict[str, Callable[..., Part | RoundPart]] = {
        **{name: part for name, part in PARTS.items() if not part.needs_server},
        **SERVER_PARTS,
    }
    for name in cfg.keys() - registry.keys():
        raise ValueError(f"parts: {name!r} is none of {', '.join(sorted(registry))}{did_you_mean(name, registry)}")
    return [build(registry, name, settings or {}, what=f"parts.{name}") for name, settings in cfg.items()]
