"""The tree keeps its layout: a method is three files of one name, links lead where they should, imports have no circle.

Import graphs that do not follow ``flsparse/strategies -> ../strategies`` see neither of its sides; these tests read the
syntax trees of the resolved files, with the imports inside functions. The graph of ``docs/architecture.md`` is drawn
here; after a change of the imports, ``python tests/test_house.py`` draws it again.
"""

import ast
import importlib
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINKED = ("strategies", "clients", "conf")
PAGE = ROOT / "docs" / "architecture.md"
ROOMS = re.compile(r"```mermaid\nflowchart .*?```\n", re.DOTALL)
SHARED = {"__init__", "__pycache__", "core", "parts"}  # beside the methods


def source_files(root: Path = ROOT) -> dict[str, Path]:
    """Return every module of the package by its dotted name, the linked folders included."""
    roots = {"flsparse": root / "flsparse", **{f"flsparse.{name}": root / name for name in LINKED}}
    found = {}
    for package, folder in roots.items():
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder)
            if package == "flsparse" and inside.parts[0] in LINKED:
                continue  # rglob follows links in some versions of Python
            names = [package, *inside.with_suffix("").parts]
            found[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    return found


def imported(source: str, modules: Mapping[str, object]) -> Iterator[str]:
    """Yield the modules that a module imports by absolute names, at its top, under a condition or inside a function.

    ``from package import name`` is an import of ``package.name`` where that is a module, of ``package`` elsewhere.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute: relative ones do not follow the links"
            for alias in node.names:
                names = (f"{node.module}.{alias.name}", str(node.module))
                yield from [name for name in names if name in modules][:1]


def import_graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Return the modules that each module imports, itself left out."""
    return {name: set(imported(text, sources)) - {name} for name, text in sources.items()}


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the modules of one circle of imports, the first also as the last, or nothing where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def imports() -> dict[str, set[str]]:
    """Return the import graph of the tree."""
    return import_graph({name: path.read_text(encoding="utf-8") for name, path in source_files().items()})


def methods(folder: str) -> set[str]:
    return {path.stem for path in (ROOT / folder).iterdir()} - SHARED


def test_a_method_is_a_server_a_device_and_a_yaml_of_one_name() -> None:
    recipes = {"fedavg_4bit"}  # another method with settings
    assert methods("strategies") == methods("clients") == methods("conf/strategy") - recipes


@pytest.mark.parametrize("name", LINKED)
def test_the_links_lead_to_the_top_level(name: str) -> None:
    link = ROOT / "flsparse" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name
    assert link.resolve() == ROOT / name


def test_imports_have_no_circle() -> None:
    graph = imports()
    assert circle(graph) == []
    for room in ("codec", "strategies", "clients", "app"):  # the walk saw both sides of the links
        assert any(name.startswith(f"flsparse.{room}") and found for name, found in graph.items())


def test_a_planted_circle_is_found() -> None:
    sources = {
        "p": "",
        "p.a": "def f():\n    from p import b",
        "p.b": "if True:\n    import p.c",
        "p.c": "from p.a import f",
        "p.d": "from p import a, b",
    }
    graph = import_graph(sources)
    assert graph == {"p": set(), "p.a": {"p.b"}, "p.b": {"p.c"}, "p.c": {"p.a"}, "p.d": {"p.a", "p.b"}}
    found = circle(graph)
    assert found[0] == found[-1]
    assert set(found) == {"p.a", "p.b", "p.c"}
    assert circle(graph | {"p.a": set()}) == []


def room_graph(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return the rooms that each room imports: folders and files below ``flsparse/``, without ``__main__``.

    >>> room_graph({"flsparse": set(), "flsparse.a": set(), "flsparse.b.c": {"flsparse", "flsparse.a", "flsparse.b.d"}})
    {'a': set(), 'b': {'a'}}
    """
    rooms: dict[str, set[str]] = {}
    for name, found in graph.items():
        room, *others = ([*each.split("."), ""][1] for each in (name, *found))
        if room not in ("", "__main__"):
            rooms.setdefault(room, set()).update(set(others) - {room, ""})
    return rooms


def reduced(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return an acyclic graph without the arrows that follow from chains of others."""
    reach: dict[str, set[str]] = {}
    for name in TopologicalSorter(graph).static_order():
        reach[name] = set(graph[name]).union(*(reach[each] for each in graph[name]))
    return {name: found - set().union(*(reach[each] for each in found)) for name, found in graph.items()}


def drawing(rooms: Mapping[str, set[str]]) -> str:
    """Return the rooms and their imports as a Mermaid block."""
    arrows = [f"    {room} --> {other}" for room, found in reduced(rooms).items() for other in sorted(found)]
    return "\n".join(["```mermaid", "flowchart TD", *sorted(arrows), "```", ""])


def walks() -> list[str]:
    """Return the sequence diagrams of the page."""
    return re.findall(r"```mermaid\n(sequenceDiagram\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def calls_of(walk: str) -> Iterator[tuple[str, str]]:
    """Yield module and function of each arrow whose text is a call; arrows of plain words are not looked at.

    >>> list(calls_of("participant M as wire.mail\\nM->>M: Mail.of(content)\\nM-->>M: an answer"))
    [('flsparse.wire.mail', 'Mail.of')]
    """
    modules = dict(re.findall(r"participant (\w+) as ([\w.]+)", walk))
    for receiver, function in re.findall(r"-?->>(\w+): ([\w.]+)\(", walk):
        yield f"flsparse.{modules[receiver]}", function


def test_rooms_have_no_circle() -> None:
    assert circle(room_graph(imports())) == []


def test_the_graph_of_the_rooms_is_that_of_the_imports() -> None:
    found = ROOMS.findall(PAGE.read_text(encoding="utf-8"))
    assert found == [drawing(room_graph(imports()))], "python tests/test_house.py draws it again"


def test_a_graph_is_drawn_without_the_arrows_that_follow_from_others() -> None:
    assert reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_every_module_and_function_of_the_walks_exists() -> None:
    assert len(walks()) == 5
    for walk in walks():
        found = list(calls_of(walk))
        assert found
        for module in re.findall(r"participant \w+ as ([\w.]+)", walk):
            importlib.import_module(f"flsparse.{module}")
        for module, function in found:
            value: object = importlib.import_module(module)
            for name in function.split("."):
                assert hasattr(value, name), f"docs/architecture.md: {module} has no {function}"
                value = getattr(value, name)


if __name__ == "__main__":
    PAGE.write_text(ROOMS.sub(lambda _: drawing(room_graph(imports())), PAGE.read_text(encoding="utf-8")), "utf-8")
