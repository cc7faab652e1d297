"""Pages point to what is there, and say nothing that the project does not speak of."""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import pytest

from fedrecon.ops.settings import NAMES_BESIDE_SETTINGS, Settings, room_settings, variable_of

ROOT = Path(__file__).resolve().parent.parent.parent
ROOMS = ("aggregator", "benchmarks", "coordinator", "datasets", "device_sdk", "inference", "learning", "ops", "protos")
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / room / "README.md" for room in ROOMS)])

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
NOT_OURS = re.compile(
    r"\bissue #|\bpull request #|session limit|context window|\.\./shared|(?<![\w.~*])/(?:work|tmp|root|home|Users)/",
    re.IGNORECASE,
)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def load(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def tables(text: str) -> list[tuple[list[str], list[list[str]]]]:
    """The tables of a page: heading and rows, as cells."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE):
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        found.append((lines[0], lines[2:]))
    return found


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_points_to_something(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    for target in LINK.findall(text):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{name_of(page)}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_speaks_of_a_workplace(page: Path) -> None:
    found = NOT_OURS.search(page.read_text())
    assert found is None, f"{name_of(page)}: {found}"


def test_what_must_not_be_said_is_recognised() -> None:
    for text in (
        "see issue #3",
        "in /work/main/docs",
        "a file in /tmp/try",
        "the session limit",
        "(../shared/notes.md)",
    ):
        assert NOT_OURS.search(text), text
    for text in ("home/blobs/ab", "docs/index.md", "https://example.org/home/page", "./.fedrecon"):
        assert not NOT_OURS.search(text), text


def test_every_page_of_the_documentation_is_linked_from_its_index() -> None:
    for folder, index in ((ROOT / "docs", "index.md"), (ROOT / "docs" / "decisions", "README.md")):
        linked = {(folder / target).resolve() for target in LINK.findall((folder / index).read_text())}
        assert set(folder.glob("*.md")) - {folder / index} <= linked


def test_every_room_has_a_readme_that_the_index_links() -> None:
    linked = LINK.findall((ROOT / "docs" / "index.md").read_text())
    assert {f"../{room}/README.md" for room in ROOMS} <= set(linked)


@pytest.mark.parametrize("room", ROOMS)
def test_the_modules_that_a_readme_names_are_there(room: str) -> None:
    places = (ROOT / room / "fedrecon" / room, ROOT / room / "fedrecon" / "wire")
    for heading, rows in tables((ROOT / room / "README.md").read_text()):
        if heading[0] != "module":
            continue
        for row in rows:
            names = quoted(row[0])
            assert names, f"{room}: {row}"
            for name in names:
                stem = name.removesuffix(".py")
                assert any((place / f"{stem}.py").exists() or (place / stem).is_dir() for place in places), name


def test_the_readme_of_the_contract_names_every_file() -> None:
    named = set(quoted((ROOT / "protos" / "README.md").read_text()))
    assert {path.name for path in (ROOT / "protos" / "fedrecon" / "v1").glob("*.proto")} <= named
    modules = {path.stem for path in (ROOT / "protos" / "fedrecon" / "wire").glob("*.py")} - {"__init__"}
    assert modules <= named


def test_the_page_of_state_machines_is_drawn_from_the_tables() -> None:
    drawing = load(ROOT / "docs" / "draw_state_machines.py")
    assert drawing.PAGE.read_text() == drawing.page(), "run: python docs/draw_state_machines.py"


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")), ids=name_of)
def test_a_decision_says_why_what_was_measured_and_what_follows(page: Path) -> None:
    text = page.read_text()
    assert text.startswith(f"# {page.name[:4]} ")
    places = [text.find(f"**{part}.**") for part in ("Context", "Decision", "Measured", "Consequences")]
    if page.name.startswith("0009"):  # what it reveals stands where others say what was measured
        places[2] = text.find("**What it reveals.**")
    assert -1 < places[0] < places[1] < places[2] < places[3]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    classes: tuple[type[Settings], ...] = (Settings, *room_settings()[0].values())
    known = {variable_of(field) for one in classes for field in one.model_fields} | NAMES_BESIDE_SETTINGS
    named = set(re.findall(r"\bFEDRECON_[A-Z_]*[A-Z]\b", page.read_text()))
    assert named <= known


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_verb_that_a_page_names_exists(page: Path) -> None:
    known = {point.name for point in entry_points(group="fedrecon.commands")} | {"settings", "doctor"}
    text = page.read_text()
    named = set(re.findall(r"`fedrecon ([a-z]+)", text)) | set(re.findall(r"^\s*fedrecon ([a-z]+)", text, re.MULTILINE))
    words_of_prose = {"is", "trains", "alone"}
    assert named - words_of_prose <= known
