"""The configuration tree: every YAML composes, its strategy and its model build, and one override swaps a method."""

from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from flsparse.app.preview import preview
from flsparse.app.settings import check
from flsparse.configs import parameters
from flsparse.runtime.making import make_strategy
from flsparse.strategies import STRATEGIES
from flsparse.tasks import build_task

CONF = files("flsparse.conf")
NEEDS = {
    ("client", "adamw"): ["client.lr=0.01"],  # the default strategy brings a rate of SGD
    ("dataset", "hf"): ["dataset.repo=ylecun/mnist"],
    # of one's own data, which say the number themselves
    **{("dataset", name): ["num_clients=2"] for name in ("arrays", "folder", "python", "series", "table")},
    **{("pace", name): ["link=lte"] for name in ("quorum", "overselect", "fedbuff")},  # in process
    ("parts", "masks"): ["strategy=fedavg"],  # others have it by themselves
}


RECIPES = {"fedavg_4bit"}  # a strategy with another codec


def options(group: str) -> list[str]:
    return sorted(
        each.name.removesuffix(".yaml") for each in CONF.joinpath(group).iterdir() if each.name != "__init__.py"
    )


GROUPS = [each.name for each in CONF.iterdir() if each.is_dir() and each.name != "__pycache__"]
EVERY_YAML = [(group, option) for group in sorted(GROUPS) for option in options(group)]


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    with initialize_config_module("flsparse.conf", version_base="1.3"):
        yield


def composed(*overrides: str) -> dict[str, Any]:
    config = compose("config", [*overrides, "output_dir=null"])
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def test_the_tree_is_found() -> None:
    assert {"strategy", "codec", "client", "dataset", "model", "runtime", "experiment"} <= set(GROUPS)
    assert set(options("strategy")) == {*STRATEGIES, *RECIPES}


@pytest.mark.parametrize(("group", "option"), EVERY_YAML)
def test_every_yaml_composes_and_instantiates(group: str, option: str) -> None:
    cfg = composed(f"{group}={option}", *NEEDS.get((group, option), []))
    check(cfg)
    strategy = make_strategy(cfg, [])
    assert strategy.name == cfg["strategy"]["name"]
    if group != "experiment" and option not in RECIPES:
        assert option in (cfg[group].get("name", option), cfg["codec"]["values"])


@pytest.mark.parametrize("dataset", [each for each in options("dataset") if each != "hf"])
def test_a_data_set_chooses_a_partition_that_exists(dataset: str) -> None:
    assert composed(f"dataset={dataset}")["partition"]["kind"] in ("iid", "dirichlet", "dirichlet_equal", "natural")


# Defaults of conf/strategy/*.yaml that are not the constructors', with the reason.
ON_PURPOSE = {
    ("choco_sgd", "levels"): "its usual setting, for comparisons: docs/methods/malcom_psgd.md",
    ("choco_sgd", "gamma"): "its usual setting; the constructor's is that of all gossip",
    ("choco_sgd", "coder"): "its usual setting, without an entropy coder",
}
FOLLOWS = {"name", "cut", "topology", "num_nodes", "min_available_nodes"}  # of other keys of the configuration


@pytest.mark.parametrize("option", [each for each in options("strategy") if each not in RECIPES])
def test_defaults_of_a_strategy_are_those_of_its_constructor(option: str) -> None:
    takes = parameters(STRATEGIES[option])
    listed = {key: value for key, value in composed(f"strategy={option}")["strategy"].items() if key not in FOLLOWS}
    different = {key for key, value in listed.items() if value != takes[key].default}
    assert different == {key for name, key in ON_PURPOSE if name == option}


def test_one_override_swaps_the_method_with_its_client_and_codec() -> None:
    dense, sparse = composed("strategy=fedavg"), composed("strategy=sparsyfed")
    assert (dense["codec"]["values"], sparse["codec"]["values"]) == ("raw", "int4")
    assert dense["client"]["lr"] != sparse["client"]["lr"]
    assert composed()["strategy"] == sparse["strategy"]


def test_the_command_line_wins_over_the_strategy() -> None:
    assert composed("strategy=fedavg", "codec=int8")["codec"]["values"] == "int8"
    assert composed("codec=int8", "strategy=fedavg")["codec"]["values"] == "int8"
    assert composed("strategy=sparsyfed", "client.lr=0.7")["client"]["lr"] == 0.7


def test_an_experiment_wins_over_the_root_and_the_strategy_and_the_command_line_over_both() -> None:
    paper = composed("experiment=sparsyfed_paper")
    assert (paper["strategy"]["ramp"], paper["codec"]["values"], paper["client"]["lr"]) == (False, "fp32", 0.5)
    assert paper["num_rounds"] == 700
    assert composed("experiment=sparsyfed_paper", "num_rounds=5")["num_rounds"] == 5
    assert composed("experiment=demo", "strategy=fedavg")["strategy"]["name"] == "fedavg"
    assert composed("experiment=demo", "strategy=fedavg")["codec"]["values"] == "raw"


def test_the_paper_recipe_adds_nothing() -> None:
    paper = composed("experiment=sparsyfed_paper")
    assert not paper["strategy"]["ramp"]
    assert not paper["strategy"]["reprune"]
    assert paper["codec"] == {"values": "fp32", "rounding": "nearest", "downlink_values": "fp32"}


def test_run_folders_can_be_named_on_the_command_line() -> None:
    config = compose("config", return_hydra_config=True)
    for folder in (config.hydra.run.dir, config.hydra.sweep.dir):
        assert not set(folder) & set("=, ")
    assert config.hydra.run.dir.endswith("-sparsyfed-digits")


@pytest.mark.parametrize("strategy", [["strategy=scaffold"], ["strategy=dppf", "strategy.control_variates=true"]])
def test_a_preview_counts_control_variates(strategy: list[str]) -> None:
    plain = preview(composed("strategy=local_sgd", "codec=int8"))
    doubled = preview(composed(*strategy, "codec=int8"))
    assert doubled.parameters == plain.parameters
    assert doubled.dense_bytes == 2 * plain.dense_bytes
    assert doubled.downlink_bytes > 1.8 * plain.downlink_bytes


def test_a_preview_counts_no_buffers() -> None:
    cfg = composed("model=resnet20", "model.norm=batch", "strategy=fedavg")
    assert preview(cfg).parameters == sum(each.numel() for each in build_task(cfg).model().parameters())
