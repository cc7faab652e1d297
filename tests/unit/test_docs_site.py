"""The site holds every page, and its references say what protos and settings do."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from fedrecon.ops.settings import Settings, room_settings, variable_of
from fedrecon.v1 import admin_pb2, aggregator_pb2, coordinator_pb2, task_pb2

ROOT = Path(__file__).resolve().parent.parent.parent


def load(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> str:
    writing = load("write_reference")
    text: str = writing.protocol_reference(writing.compiled())
    return text


def test_the_reference_of_the_protocol_has_every_call_message_and_field(reference: str) -> None:
    for module in (admin_pb2, aggregator_pb2, coordinator_pb2, task_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            assert f"\n### {service.name}\n" in reference
            for method in service.methods:
                assert f"| `{method.name}` |" in reference
        for message in module.DESCRIPTOR.message_types_by_name.values():
            section = reference.split(f"\n### {message.name}\n")[1].partition("\n### ")[0]
            for field in message.fields:
                assert f"| {field.number} | `{field.name}` |" in section, message.name


def test_nothing_in_the_reference_of_the_protocol_is_without_a_word(reference: str) -> None:
    silent = [line for line in reference.splitlines() if re.fullmatch(r"\| \d+ \| `\w+` \|.*\|  \|", line)]
    assert silent == []


def test_the_reference_of_the_settings_has_every_variable_and_no_secret() -> None:
    text = load("write_reference").configuration()
    classes: tuple[type[Settings], ...] = (Settings, *room_settings()[0].values())
    for settings in classes:
        for field in settings.model_fields:
            assert f"| `{variable_of(field)}` |" in text
    assert "\n| `FEDRECON_SEAL_KEY` |  | 64 hex digits" in text


def test_the_site_holds_every_page_and_what_they_link_to() -> None:
    gathered = load("site").gathered()
    pages = {*ROOT.glob("docs/*.md"), *ROOT.glob("docs/decisions/*.md"), *ROOT.glob("[a-z]*/README.md")}
    assert pages <= gathered
    assert ROOT / "docs" / "images" / "round.svg" in gathered


def test_the_navigation_names_pages_that_are_there() -> None:
    named = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    written = {"docs/protocol-reference.md", "docs/configuration.md"}
    assert len(named) > 20
    for page in set(named) - written:
        assert (ROOT / ("README.md" if page == "index.md" else page)).exists(), page


@pytest.mark.slow
def test_a_link_that_leads_nowhere_fails_the_site(tmp_path: Path) -> None:
    building = pytest.importorskip("mkdocs.commands.build", reason="`make docs` installs it")
    config = pytest.importorskip("mkdocs.config")
    errors = pytest.importorskip("mkdocs.exceptions")
    pages, site = tmp_path / "pages", str(tmp_path / "site")
    load("site").main(pages)
    load("write_reference").main(pages / "docs")
    (pages / "docs" / "concepts.md").write_text("[nowhere](no-such-page.md)")
    with pytest.raises(errors.Abort):
        building.build(config.load_config(str(ROOT / "mkdocs.yml"), docs_dir=str(pages), site_dir=site))
