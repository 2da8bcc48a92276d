"""What the documentation names exists, and what exists is named there."""

import ast
import dataclasses
import re
import tomllib
import typing
from pathlib import Path

import pytest
import yaml

from chns_jax import __version__
from chns_jax.config import Config

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "chns_jax"
README = ROOT / "README.md"
PAGES = sorted([README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
COMMANDS = [path for path in sorted(PACKAGE.glob("*.py")) if "def main(argv" in path.read_text()]
OF_A_RUN = {"config.yaml"}  # files with such an ending that are no config of ours
OF_OTHERS = {"pythonpath"}  # options of other programs

each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


def keys(kind: type, prefix: str = "") -> set[str]:
    """The dotted keys of a dataclass, those of groups of keys too."""
    found = set()
    for name, annotation in typing.get_type_hints(kind).items():
        found.add(prefix + name)
        if dataclasses.is_dataclass(annotation):
            found |= keys(annotation, f"{prefix}{name}.")
    return found


KEYS = keys(Config)
GROUPS = {key.partition(".")[0] for key in KEYS if "." in key}


def options() -> set[str]:
    """What follows -- in the options that commands define."""
    strings = (
        node.value
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    found = (re.fullmatch(r"--([a-z_\d]+)", string) for string in strings)
    return {match[1] for match in found if match} | {"help"}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_commands_exist(path):
    named = set(re.findall(r"python -m chns_jax\.(\w+)", path.read_text()))
    assert named <= {command.stem for command in COMMANDS}


@each_page
def test_configs_exist(path):
    named = set(
        re.findall(r"(?<![\w$/.-])((?:configs/)?(?:lab/)?[\w.]+\.yaml)\b", path.read_text())
    )
    ours = {path.name for path in CONFIGS}
    ours |= {path.relative_to(ROOT).as_posix() for path in CONFIGS}
    assert named - OF_A_RUN <= ours


@each_page
def test_paths_exist(path):
    text = path.read_text()
    named = set(re.findall(r"(?<![\w/.])(?:chns_jax|tests|docs|configs|colab)/[\w/.-]*\w/?", text))
    missing = {name for name in named if not (ROOT / name).exists()}
    assert not missing


@each_page
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"[a-z]+://", link):
            continue
        target, _, anchor = link.partition("#")
        page = path.parent / target if target else path
        assert page.exists(), link
        assert not anchor or anchor in anchors(page), link


@each_page
def test_keys_and_options_exist(path):
    text = path.read_text()
    given = set(re.findall(r"(?<![\w-])--([a-z][\w.]*\w)", text))
    assert given <= KEYS | options() | OF_OTHERS
    # And keys in running text: `sampler.table`, but neither files nor modules of the package.
    spoken = set(re.findall(r"`(\w+(?:\.\w+)+)`", text))
    spoken = {name for name in spoken if name.partition(".")[0] in GROUPS}
    assert {name for name in spoken if not re.search(r"\.(npz|onnx|py|png|yaml)$", name)} <= KEYS


def test_the_readme_names_every_command_config_and_page():
    text = README.read_text()
    assert [path.stem for path in COMMANDS if f"python -m chns_jax.{path.stem} " not in text
            and f"python -m chns_jax.{path.stem}`" not in text] == []  # fmt: skip
    assert [path.name for path in CONFIGS if f"`{path.name}`" not in text] == []
    pages = {path.relative_to(ROOT).as_posix() for path in PAGES if path != README}
    assert pages <= set(re.findall(r"\]\(([^)#]+)", text))


def test_the_readme_names_every_folder_in_the_order_of_the_contract():
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    contract = next(c for c in linter["contracts"] if c["type"] == "layers")
    layers = [name for name in contract["layers"] if "|" not in name]
    commands = {path.stem for path in (ROOT / "chns_jax").glob("*.py")} - {"config"}
    folders = [name for name in layers if name not in commands]
    section = README.read_text().partition("## Architecture")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `(\w+)(?:/|\.py)` \|", section, re.MULTILINE)
    assert named == folders[::-1]


def test_the_architecture_has_a_line_for_every_file():
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"^\| `([\w/]+\.py)` \|", text, re.MULTILINE)
    files = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    without_code = {name for name in files if name.endswith("__init__.py")}
    assert set(named) - without_code == files - without_code
    assert set(named) <= files and len(named) == len(set(named))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_error_rates_in_a_config_are_those_of_the_pages(path):
    heads = re.findall(r"^# EER: ((?:.|\n# )+)", path.read_text(), re.MULTILINE)
    assert heads or path.name.endswith(".study.yaml")
    figures = set(re.findall(r"\d+\.\d+", " ".join(heads)))
    assert figures <= set(re.findall(r"\d+\.\d+", " ".join(map(Path.read_text, PAGES))))


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__


def test_golden_files_are_described():
    folder = ROOT / "tests" / "golden"
    described = set(re.findall(r"^\| `(\w+\.npz)` \|", (folder / "README.md").read_text(), re.M))
    assert described == {path.name for path in folder.glob("*.npz")}
