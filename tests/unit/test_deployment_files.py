"""Container files, compose file and chart say of services what is true; `make check-deployment` asks their own tools.

Read as text: a bare machine has no tool that knows these formats.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from fedrecon.ops.settings import NAMES_BESIDE_SETTINGS, Settings, room_settings, variable_of

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "ops" / "helm" / "fedrecon"
COMPOSE = ROOT / "ops" / "compose" / "compose.yml"
IMAGES = {
    "aggregator": ROOT / "aggregator" / "Dockerfile",
    "console": ROOT / "ops" / "console.Dockerfile",
    "coordinator": ROOT / "coordinator" / "Dockerfile",
    "inference": ROOT / "inference" / "Dockerfile",
    "tools": ROOT / "ops" / "Dockerfile",
}
SERVICES = tuple(sorted(IMAGES.keys() - {"tools"}))
FILES = (*IMAGES.values(), COMPOSE, *sorted(CHART.rglob("*.yaml")), *sorted(CHART.rglob("*.tpl")))


def project() -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def known_settings() -> set[str]:
    classes: tuple[type[Settings], ...] = (Settings, *room_settings()[0].values())
    return {variable_of(field) for one in classes for field in one.model_fields} | NAMES_BESIDE_SETTINGS


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_setting_that_is_named_exists(path: Path) -> None:
    named = set(re.findall(r"\bFEDRECON_[A-Z_]*[A-Z]\b", path.read_text()))
    assert named <= known_settings()


@pytest.mark.parametrize("role", IMAGES)
def test_an_image_runs_as_nobody_special_on_a_pinned_base(role: str) -> None:
    text = IMAGES[role].read_text()
    base = re.search(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
    assert base is not None
    assert re.fullmatch(r"docker\.io/library/python:3\.11\.\d+-slim-\w+", base[1])
    assert text.count("FROM ${BASE}") == 2, "built in one stage, run in another"
    assert re.search(r"^USER 10001:10001$", text.split("FROM ${BASE}")[2], re.MULTILINE)
    assert f"--file {IMAGES[role].relative_to(ROOT)} --tag fedrecon-{role} ." in text


@pytest.mark.parametrize("role", SERVICES)
def test_an_image_opens_its_own_ports_and_asks_its_own_health(role: str) -> None:
    text = IMAGES[role].read_text()
    settings = room_settings()[0][role]
    ports = [
        str(field.default)
        for name, field in settings.model_fields.items()
        if re.fullmatch(rf"{role}(_http)?_port", name)
    ]
    assert f"EXPOSE {' '.join(ports)} 9090\n" in text
    assert f'CMD ["python", "-m", "fedrecon.ops.probe", "{role}"]' in text
    module = "fedrecon.ops.console" if role == "console" else f"fedrecon.{role}"
    assert f'ENTRYPOINT ["python", "-m", "{module}"]' in text
    for port in ports:
        assert f"containerPort: {port}}}" in (CHART / "templates" / f"{role}.yaml").read_text()


def test_all_images_share_one_base_and_one_user() -> None:
    bases = {re.findall(r"^ARG BASE=.*$", path.read_text(), re.MULTILINE)[0] for path in IMAGES.values()}
    assert len(bases) == 1
    assert bases.pop().removeprefix("ARG BASE=") in COMPOSE.read_text()
    helpers = (CHART / "templates" / "_helpers.tpl").read_text()
    assert "runAsUser: 10001" in helpers
    assert "enableServiceLinks: false" in helpers


def test_what_images_install_is_an_extra_of_the_package() -> None:
    extras = project()["optional-dependencies"]
    assert isinstance(extras, dict)
    for role, path in IMAGES.items():
        installed = re.findall(r"'\.\[([a-z0-9,]+)\]'", path.read_text())
        assert len(installed) == 1, role
        assert set(installed[0].split(",")) <= extras.keys(), role


def test_everything_that_is_deployed_is_of_the_package_s_version() -> None:
    version = project()["version"]
    assert f'appVersion: "{version}"' in (CHART / "Chart.yaml").read_text()
    assert set(re.findall(r"\$\{VERSION:-([^}]+)\}", COMPOSE.read_text())) == {version}


def test_services_are_ended_by_force_later_than_they_end_by_themselves() -> None:
    drain = Settings().drain_seconds
    grace = re.search(r"stop_grace_period: (\d+)s", COMPOSE.read_text())
    assert grace is not None
    assert float(grace[1]) >= drain + 10
    values, helpers = (CHART / "values.yaml").read_text(), (CHART / "templates" / "_helpers.tpl").read_text()
    assert f"\ndrainSeconds: {drain:.0f}\n" in values
    assert "terminationGracePeriodSeconds: {{ add (int .root.Values.drainSeconds) 15 }}" in helpers
    assert 'command: ["sleep", "5"]' in helpers


def test_the_journal_of_the_compose_file_loses_nothing() -> None:
    assert '"--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"' in COMPOSE.read_text()


def test_no_port_is_open_beyond_the_machine_unless_somebody_says_so() -> None:
    mapped = re.findall(r'"([^"]+):\d{4}:\d{4}"', COMPOSE.read_text())
    assert len(mapped) >= 6
    assert set(mapped) <= {"127.0.0.1", "${PUBLISH:-127.0.0.1}"}


def test_the_values_of_the_chart_are_those_of_its_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    named = re.findall(r"^([a-zA-Z]+):", (CHART / "values.yaml").read_text(), re.MULTILINE)
    assert {*named, "global"} == schema["properties"].keys()
    assert schema["additionalProperties"] is False
