"""The pages: links lead somewhere, every page is listed, every method has a card, docs/parts.md says what runs."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from flsparse.runtime.making import make_parts
from flsparse.strategies import STRATEGIES

ROOT = Path(__file__).parents[1]
PARTS = (ROOT / "docs" / "parts.md").read_text(encoding="utf-8")
HEADINGS = ["What", "When to use it", "Hyper-parameters", "Measured", "Limits"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_nothing_tells_to_install_flsparse_by_its_name() -> None:
    """It is not on PyPI: whoever takes the name there would be run."""
    folders = ("docs", "examples", "flsparse", "strategies", "clients", "conf", "benchmarks")
    files = [*PAGES, *(path for folder in folders for path in (ROOT / folder).rglob("*"))]
    named = re.compile(
        r"\b(?:pip|uv)[^\n`]* (?:install|add)[^\n`]*[ '\"]flsparse\b|flsparse\[\w|dependencies = .*flsparse"
    )
    for path in files:
        if path.suffix in (".md", ".py", ".toml", ".yaml"):
            assert not named.search(path.read_text(encoding="utf-8")), path


def test_every_page_is_listed() -> None:
    listed = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs").rglob("*.md")):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "README.md" or f"({name})" in listed, f"docs/README.md does not list {name}"


@pytest.mark.parametrize("method", sorted(STRATEGIES))
def test_every_method_has_a_card_with_the_same_headings(method: str) -> None:
    card = (ROOT / "docs" / "methods" / f"{method}.md").read_text(encoding="utf-8")
    assert [each for each in re.findall(r"^## (.+)$", card, re.MULTILINE) if each in HEADINGS] == HEADINGS


def composed(command: str) -> dict[str, object]:
    """Return the configuration of a command line without its ``flsparse``."""
    with initialize_config_module("flsparse.conf", version_base="1.3"):
        config = compose("config", [*shlex.split(command, comments=True), "output_dir=null"])
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def test_the_table_of_parts_has_every_part_with_its_settings() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (?:device|server|both) \|([^|]*)\|", PARTS, re.MULTILINE))
    options = {path.stem for path in (ROOT / "conf" / "parts").glob("*.yaml")}
    assert set(rows) == options
    for name, settings in rows.items():
        made = composed(f"strategy=fedavg parts=[{name}]")["parts"]
        assert isinstance(made, dict)
        assert make_parts(made)[0].name == name
        assert re.findall(r"`(\w+): ([^`]+)`", settings) == [(key, str(value)) for key, value in made[name].items()]
