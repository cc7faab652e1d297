"""Rules, alerts, dashboards and their pages hold together: every query asks for what services really tell."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest

from fedrecon.ops.described_metrics import Description
from fedrecon.ops.metrics import Metrics

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "ops" / "prometheus"
DASHBOARDS = ROOT / "ops" / "grafana" / "dashboards"
OTHERS = {"up", "scrape_duration_seconds"}
"""What Prometheus itself tells."""

TARGET_LABELS = {"job", "instance", "role"}
SEVERITIES = {"page", "ticket"}


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@cache
def described() -> dict[str, tuple[str, Description]]:
    found: dict[str, tuple[str, Description]] = load(ROOT / "docs" / "write_metrics.py").described()
    return found


@cache
def rules(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@cache
def recorded() -> frozenset[str]:
    return frozenset(rule["record"] for rule in rules("rules.yml"))


@dataclass(frozen=True)
class Asked:
    """A series that an expression asks for."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]


_SERIES = re.compile(
    r"(?<![\w:\"])((?:(?:task|role|activity|device_class):)?(?:fedrecon|process)_[\w:]+|up|scrape_duration_seconds)\b(\{[^}]*\})?"
)
_MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|on|without)\s*\(([^)]*)\)")


def asked(expression: str) -> Iterator[Asked]:
    for found in _SERIES.finditer(expression):
        yield Asked(found[1], tuple(_MATCHER.findall(found[2] or "")))


def expressions() -> Iterator[tuple[str, str]]:
    for name in ("rules.yml", "alerts.yml"):
        for rule in rules(name):
            yield rule.get("record") or rule["alert"], rule["expr"]
    for path in sorted(DASHBOARDS.glob("*.json")):
        for panel in panels(path):
            for target in panel.get("targets", ()):
                yield f"{path.stem}: {panel['title']}", target["expr"]


def panels(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["panels"]
    return found


def problems(expression: str) -> Iterator[str]:
    names = 0
    for each in asked(expression):
        names += 1
        if each.name in recorded() or each.name in OTHERS or each.name.startswith("process_"):
            continue
        name = re.sub(r"_(bucket|sum|count)$", "", each.name)
        told = described().get(each.name) or described().get(name)
        if told is None:
            yield f"there is no metric {each.name}"
            continue
        _, what = told
        if (each.name != what.name) != (what.kind == "histogram"):
            yield f"{each.name} is not how a {what.kind} is read"
        for label, operator, value in each.matchers:
            yield from wrong_matcher(what, label, operator, value)
    if not names:
        yield "nothing is asked for"


def wrong_matcher(what: Description, label: str, operator: str, value: str) -> Iterator[str]:
    if label in TARGET_LABELS or (label == "le" and what.kind == "histogram"):
        return
    if label not in what.labels:
        yield f"{what.name} has no label {label}"
        return
    words = what.labels[label]
    if isinstance(words, str) or "$" in value:
        return
    values = value.split("|") if operator in {"=~", "!~"} else [value]
    if operator in {"=~", "!~"} and re.search(r"[.*+\[\]\\]", value):
        if not any(re.fullmatch(value.replace("\\\\", "\\"), word) for word in words):
            yield f"no {label} of {what.name} matches {value}"
        return
    for each in values:
        if each not in words:
            yield f"no {label} of {what.name} is {each}"


def test_every_expression_asks_for_metrics_and_labels_that_exist() -> None:
    found = {name: list(problems(expression)) for name, expression in expressions()}
    assert len(found) > 40
    assert not {name: wrong for name, wrong in found.items() if wrong}


def test_every_grouping_is_by_labels_that_exist() -> None:
    labels = TARGET_LABELS | {"le"} | {label for _, what in described().values() for label in what.labels}
    for name, expression in expressions():
        for grouping in _GROUPING.findall(expression):
            assert {label.strip() for label in grouping.split(",")} - {""} <= labels, name


@pytest.mark.parametrize(
    "wrong",
    [
        'fedrecon_made_up_total{task="films"}',
        'fedrecon_reports_total{outcome="acceptd"}',
        'fedrecon_reports_total{task="films"}',
        'fedrecon_reports_total{outcome=~"accepted|lost"}',
        "fedrecon_session_seconds > 3",
        "fedrecon_round_current_bucket > 3",
        "1 > 2",
    ],
)
def test_a_wrong_expression_is_found(wrong: str) -> None:
    assert list(problems(wrong))


def test_every_metric_is_on_a_dashboard_or_in_a_rule() -> None:
    used = {
        re.sub(r"_(bucket|sum|count)$", "", each.name) for _, expression in expressions() for each in asked(expression)
    }
    assert described().keys() - used == set()


def test_the_page_of_metrics_is_as_the_code() -> None:
    writing = load(ROOT / "docs" / "write_metrics.py")
    assert writing.PAGE.read_text() == writing.page(), "run: python docs/write_metrics.py"


PROMISED = {
    "rounds_total": {"task", "outcome"},
    "round_phase_seconds": {"task", "phase"},
    "round_current": {"task"},
    "round_devices": {"task", "state"},
    "round_dropout_ratio": {"task"},
    "round_overselection_ratio": {"task"},
    "round_last_commit_timestamp_seconds": {"task"},
    "check_ins_total": {"task", "outcome"},
    "retry_window_seconds": set(),
    "assignments_total": {"state"},
    "session_shapes_total": {"shape"},
    "device_versions": {"version"},
    "reports_total": {"outcome"},
    "report_bytes": set(),
    "download_bytes_total": set(),
    "upload_chunks_resumed_total": set(),
    "update_rejected_total": {"reason"},
    "update_norm": set(),
    "sum_norm": {"task"},
    "secure_sum_voided_total": set(),
    "secure_sum_clients": {"phase"},
    "secure_sum_dropouts_total": {"phase"},
    "secure_sum_seconds": {"phase"},
    "aggregator_pending_bytes": set(),
    "aggregator_recovered_reports_total": set(),
    "model_version": {"task"},
    "model_bytes": {"task"},
    "train_loss": {"task"},
    "eval_rmse": {"task", "cohort"},
    "eval_recall_at_k": {"task", "k"},
    "privacy_epsilon": {"task"},
    "privacy_epsilon_budget": {"task"},
    "recommend_seconds": {"stage"},
    "served_model_version": {"task"},
    "model_staleness_seconds": {"task"},
    "export_total": {"outcome"},
    "grpc_server_handled_total": {"grpc_method", "grpc_code"},
    "grpc_server_handling_seconds": {"grpc_method"},
    "build_info": {"service", "version", "python"},
}
"""Names and labels on which operators' own dashboards and alerts may rest: they stay."""


def test_the_names_that_operators_rest_on_stay() -> None:
    for name, labels in PROMISED.items():
        assert set(described()[f"fedrecon_{name}"][1].labels) == labels, name


def test_no_label_is_a_device_a_session_or_a_round() -> None:
    for _, what in described().values():
        assert not set(what.labels) & {"device", "session", "round", "client", "group"}, what.name


def test_every_alert_has_a_severity_a_summary_and_a_runbook() -> None:
    page = (ROOT / "docs" / "runbooks.md").read_text()
    alerts = rules("alerts.yml")
    assert len({alert["alert"] for alert in alerts}) == len(alerts)
    for alert in alerts:
        name = alert["alert"]
        assert alert["labels"]["severity"] in SEVERITIES
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["runbook_url"] == f"docs/runbooks.md#{name.lower()}"
        assert f"\n## {name}\n" in page
    assert page.count("\n## ") == len(alerts), "no section without its alert"


def test_every_alert_is_tried_where_it_fires_and_where_it_does_not() -> None:
    tried: dict[str, set[bool]] = {}
    for test in yaml.safe_load((PROMETHEUS / "tests" / "alerts.yml").read_text())["tests"]:
        for each in test["alert_rule_test"]:
            tried.setdefault(each["alertname"], set()).add(bool(each["exp_alerts"]))
    assert tried == {alert["alert"]: {True, False} for alert in rules("alerts.yml")}


def test_every_recording_rule_is_used() -> None:
    used = {each.name for _, expression in expressions() for each in asked(expression)}
    assert recorded() <= used


def test_alertmanager_silences_by_alerts_that_exist() -> None:
    settings = yaml.safe_load((PROMETHEUS / "alertmanager.yml").read_text())
    known = {alert["alert"] for alert in rules("alerts.yml")}
    receivers = {receiver["name"] for receiver in settings["receivers"]}
    routes = [settings["route"], *settings["route"]["routes"]]
    assert {route["receiver"] for route in routes} == receivers
    matchers = [
        matcher
        for rule in settings["inhibit_rules"]
        for side in ("source", "target")
        for matcher in rule[f"{side}_matchers"]
    ]
    named = {name for matcher in matchers for name in re.findall(r"Fedrecon\w+", matcher)}
    assert named
    assert named <= known


@pytest.mark.parametrize("name", ["rounds", "services", "serving"])
def test_the_dashboard_is_as_it_is_drawn(name: str) -> None:
    drawing = load(ROOT / "ops" / "grafana" / "draw_dashboards.py")
    kept = (drawing.FOLDER / f"{name}.json").read_text()
    assert kept == drawing.draw(name), "run: python ops/grafana/draw_dashboards.py"
    assert {path.stem for path in drawing.FOLDER.glob("*.json")} == set(drawing.DASHBOARDS)


def test_panels_say_when_there_is_nothing_to_see() -> None:
    for path in DASHBOARDS.glob("*.json"):
        for panel in panels(path):
            names = {
                re.sub(r"_(bucket|sum|count)$", "", each.name) for t in panel["targets"] for each in asked(t["expr"])
            }
            limited = [described()[name][1].only for name in names if name in described()]
            if limited and all(limited):
                assert "nly" in panel.get("description", ""), panel["title"]


PROMTOOL = shutil.which("promtool") or ""
needs_promtool = pytest.mark.skipif(not PROMTOOL, reason="promtool is not here; see make test-operations")


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "rules.yml", "alerts.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "tests/alerts.yml"),
    ],
)
def test_promtool_finds_nothing_wrong(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [PROMTOOL, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize("room", ["coordinator", "aggregator", "inference"])
def test_promtool_likes_names_and_help_of_metrics(room: str) -> None:
    metrics = Metrics.create(room)
    load(ROOT / "docs" / "write_metrics.py").ROOMS[room](metrics)
    text = generate_latest(metrics.registry)
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
