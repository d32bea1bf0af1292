"""Objects are built from a name and plain arguments: one refusal for each mistake, whatever is built."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import pytest

from flsparse.configs import Fixed, build, fits, open_parameters, parameters, settled
from flsparse.ranges import one_of, within
from flsparse.strategies import DPSGD, STRATEGIES, ChocoSGD, LocalSGD, MalcomPSGD, Scaffold, SplitMS


class Base:
    def __init__(self, *, rate: float = 1.0, kind: Literal["a", "b"] = "a", hello: bool = False) -> None:
        within("(0, 1]", "a share", rate=rate)
        self.rate, self.kind, self.hello = rate, kind, hello


class Method(Base):
    fixed: ClassVar[Fixed] = {"hello": (True, "state goes by partition")}

    def __init__(self, *, layers: list[str], rate: float = 0.5, **base: Any) -> None:
        super().__init__(rate=rate, **settled(base, self.fixed))
        self.layers = layers


class Child(Method):
    """A class without a constructor of its own."""


def plain(nodes: int, *, probability: float = 0.5, edges: Sequence[Sequence[int]] | None = None) -> Any:
    return nodes, probability, edges


REGISTRY: dict[str, Any] = {"base": Base, "method": Method, "child": Child, "plain": plain}


def made(name: object, offered: Mapping[str, Any] | None = None, /, **arguments: Any) -> Any:
    return build(REGISTRY, name, arguments, what="thing", offered=offered)


def test_parameters_are_those_of_all_constructors_that_a_class_forwards_to() -> None:
    assert list(parameters(Child)) == ["layers", "rate", "kind", "hello"]
    assert parameters(Child)["rate"].default == 0.5
    assert parameters(Child)["layers"].annotation == list[str]
    assert "hello" not in open_parameters(Child)
    assert list(parameters(plain)) == ["nodes", "probability", "edges"]


def test_arguments_reach_the_base_class_and_offers_those_that_take_them() -> None:
    child = made("child", {"kind": "b", "hello": False, "seed": 3}, layers=["x"], rate=1)
    assert (child.layers, child.rate, child.kind, child.hello) == (["x"], 1, "b", True)
    assert made("child", {"kind": "b"}, layers=[], kind="a").kind == "a"
    assert made("plain", {"nodes": 4, "seed": 0}, edges=[[0, 1]]) == (4, 0.5, [[0, 1]])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("bas", {}, "thing='bas' is none of base, method, child, plain; did you mean base?"),
        (None, {}, "thing=None is none of base, method, child, plain"),
        (["base"], {}, "thing=['base'] is none of base, method, child, plain"),
        ("child", {"layer": []}, "thing.layer is not a setting of child; did you mean layers?"),
        ("base", {"x": 1}, "thing.x is not a setting of base, which takes rate, kind, hello"),
        ("plain", {"nodes": 4}, "thing.nodes is not a setting of plain, which takes probability, edges"),
        ("child", {}, "thing.layers must be set for child"),
        ("child", {"layers": None}, "thing.layers must be set for child"),
        ("child", {"layers": ["x", 1]}, "thing.layers=['x', 1] is not a list, each a text"),
        ("base", {"rate": "fast"}, "thing.rate='fast' is not a number"),
        ("base", {"rate": True}, "thing.rate=True is not a number"),
        ("base", {"kind": "c"}, "thing.kind='c' is not one of a, b"),
        ("base", {"rate": 0}, "thing.rate=0 is not in (0, 1]: it is a share"),
        (
            "child",
            {"layers": [], "hello": False},
            "thing.hello=False cannot be chosen: it is True, since state goes by partition; leave it out",
        ),
        ("plain", {"edges": [0]}, "thing.edges=[0] is not a list, each a list, each a whole number or null"),
    ],
)
def test_a_mistake_is_refused_with_the_full_name_of_its_key(
    name: object, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        made(name, **arguments)
    assert str(error.value) == message


def test_an_error_about_something_else_passes_as_it_is() -> None:
    def broken(*, rate: float = 1.0) -> None:
        raise ValueError("no file there")

    with pytest.raises(ValueError, match=r"^no file there$"):
        build({"broken": broken}, "broken", {"rate": 0.5}, what="thing")


def test_an_error_that_has_its_full_name_already_gets_no_second_one() -> None:
    topology = {"name": "erdos_renyi", "probability": 2.0}
    with pytest.raises(ValueError, match=r"^topology\.probability=2\.0 is not in "):
        build(STRATEGIES, "d_psgd", {"topology": topology, "num_nodes": 4}, what="strategy")


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, float, True),
        (1.0, int, False),
        (True, int, False),
        (1, bool, False),
        ("spectral", float | Literal["spectral"], True),
        (True, Literal[1], False),
        (None, int | None, True),
        ("ab", list[str], False),
        ([1.5, 2], Sequence[float], True),
        ({0: 0.5}, Mapping[int, float], True),
        ({"0-4": "x"}, Mapping[str, float], False),
        (object(), Any, True),
        (Base(), Mapping[str, Any] | Base, True),
    ],
)
def test_plain_values_fit_types(value: object, hint: Any, expected: bool) -> None:
    assert fits(value, hint) is expected


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1)", (0, 0.5), (1, -0.1, float("nan"))),
        ("(0, 1]", (0.1, 1), (0, 1.1)),
        ("(0, inf)", (1e-9, 1e9), (0, float("inf"), float("nan"))),
        ("[1, 8]", (1, 8), (0, 9)),
    ],
)
def test_intervals(interval: str, inside: Sequence[float], outside: Sequence[float]) -> None:
    within(interval, x=None)
    for value in inside:
        within(interval, x=value)
    for value in outside:
        with pytest.raises(ValueError, match=f"^x={value} is not in "):
            within(interval, x=value)


def test_choices() -> None:
    one_of(("a", "b"), kind="a")
    with pytest.raises(ValueError, match=r"^kind=None is none of a, b$"):
        one_of(("a", "b"), kind=None)


RING = {"topology": {"name": "ring"}, "num_nodes": 4}


@pytest.mark.parametrize(
    ("strategy", "needed", "key", "fixed", "other"),
    [
        (Scaffold, {}, "server_optimizer", "none", "adam"),
        (Scaffold, {}, "server_lr", 1.0, 0.1),
        (Scaffold, {}, "hello", True, False),
        (LocalSGD, {}, "hello", True, False),
        (MalcomPSGD, RING, "values", "raw", "int8"),
        (ChocoSGD, RING, "downlink_values", "raw", "int8"),
        (DPSGD, RING, "rounding", "nearest", "stochastic"),
        (SplitMS, {"cut": "2"}, "prunable", [], ["a.weight"]),
        (SplitMS, {"cut": "2"}, "fraction_evaluate", 0.0, 0.5),
    ],
)
def test_a_strategy_says_what_it_fixes(
    strategy: Any, needed: dict[str, Any], key: str, fixed: object, other: object
) -> None:
    strategy(**needed, **{key: fixed})
    with pytest.raises(ValueError, match=f"^{key}=.* cannot be chosen: it is .*, since "):
        strategy(**needed, **{key: other})


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize(
    ("key", "value"),
    [("min_replies", 0), ("round_timeout_s", 0.0), ("round_timeout_s", float("inf")), ("min_available_nodes", 0)],
)
def test_every_strategy_refuses_an_impossible_quorum_or_deadline(name: str, key: str, value: float) -> None:
    needed = {"split_ms": {"cut": "2"}, "malcom_psgd": RING, "choco_sgd": RING, "d_psgd": RING}.get(name, {})
    with pytest.raises(ValueError, match=f"^strategy.{key}={value} is not in "):
        build(STRATEGIES, name, {**needed, key: value}, what="strategy")
