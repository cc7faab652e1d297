"""What an operator does with a running stack: the commands, what they print, metrics, health, TLS."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from fedrecon.ops.admin_client import open_sync_channel
from fedrecon.ops.boundary import refusal_of
from fedrecon.ops.command import main
from fedrecon.ops.embedded_valkey import EmbeddedValkey
from fedrecon.ops.fleet.people import People
from fedrecon.ops.settings import Settings, load_settings
from fedrecon.ops.stack import Stack
from fedrecon.ops.tls import server_authority
from fedrecon.v1 import admin_pb2 as admin
from fedrecon.v1.admin_pb2_grpc import AdminStub
from support.authority import make_authority
from support.town import DEFAULTS, TASK, Town

METRICS = {
    "aggregator": (
        "reports_total",
        "report_bytes_count",
        "secure_sum_clients",
        "secure_sum_seconds_count",
        "sum_norm",
        "download_bytes_total",
        "grpc_server_handling_seconds_count",
        "build_info",
        "storage_up",
        "storage_used_ratio",
        "storage_seconds_count",
        "certificate_expiry_timestamp_seconds",
    ),
    "coordinator": (
        "check_ins_total",
        "rounds_total",
        "round_current",
        "round_window_seconds",
        "round_reports_total",
        "round_phase_seconds_count",
        "round_overselection_ratio",
        "round_last_commit_timestamp_seconds",
        "assignments_total",
        "session_seconds_count",
        "session_shapes_total",
        "retry_window_seconds_count",
        "device_versions",
        "model_bytes",
        "train_loss",
    ),
    "inference": ("export_total", "served_model_version", "served_model_bytes", "storage_up"),
}
"""What each service tells of after a few rounds, and not as a zero."""


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    """Run a command that prints JSON, as a person does, and return what it printed."""
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_task_is_steered_by_commands(
    town: Town, plan_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDRECON_HOME", str(town.stack.home))
    settings = [part for value in DEFAULTS for part in ("--set", value)]
    assert main(["task", "create", TASK, "--plan", str(plan_folder), *settings, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["state"] == "TASK_STATE_RUNNING"
    assert "All rows of items are summed, also those of a single device." in printed.err
    (paused,) = run(capsys, "task", "pause", TASK, "--reason", "to look")
    assert paused["state"] == "TASK_STATE_PAUSED"
    (edited,) = run(capsys, "task", "edit", TASK, "--set", "rounds.maximum_rounds=5")
    assert edited["spec"]["rounds"]["maximum_rounds"] == "5"
    (resumed,) = run(capsys, "task", "resume", TASK)
    assert resumed["state"] == "TASK_STATE_RUNNING"
    town.wake(dropout=0.1)
    states = run(capsys, "rounds", "watch", TASK)
    assert states[-1]["state"] == "TASK_STATE_COMPLETED"
    assert [int(state["committed"]) for state in states] == sorted(int(state["committed"]) for state in states)
    (listed,) = run(capsys, "rounds", "list", TASK)
    committed = [each for each in listed["rounds"] if each["phase"] == "ROUND_PHASE_COMMITTED"]
    assert [int(each["key"]["round"]) for each in committed] == [5, 4, 3, 2, 1]
    (why,) = run(capsys, "rounds", "why", TASK, "2")
    assert "opened from checkpoint" in why["story"][0]
    (collected,) = run(capsys, "blobs", "collect", "--dry-run")
    assert (collected["removed"], collected["blocked"]) == ("0", "")
    assert int(collected["needed"]) > 5 + 5, "parts of the plan, checkpoints and optimizer states"
    assert any("Committed checkpoint" in sentence for sentence in why["story"])
    (tasks,) = run(capsys, "task", "list")
    assert [each["spec"]["name"] for each in tasks["tasks"]] == [TASK]
    (shown,) = run(capsys, "task", "show", TASK)
    assert shown["committed"] == "5"
    (found,) = run(capsys, "checkpoints", "list", TASK)
    digests = {int(each.get("round", 0)): each["blob"]["digest"] for each in found["checkpoints"]}
    assert shown["checkpoint"]["digest"] == digests[5]
    (rolled_back,) = run(capsys, "checkpoints", "rollback", TASK, "3", "--reason", "better")
    assert rolled_back["checkpoint"]["digest"] == digests[3]
    assert_metrics_tell(town)
    assert_every_service_is_healthy(town)


def test_a_cancelled_task_gives_no_more_rounds(
    town: Town, plan_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDRECON_HOME", str(town.stack.home))
    town.create_task(plan_folder, "rounds.maximum_rounds=0")
    town.wake()
    town.wait_until(lambda task: task.committed >= 1)
    (cancelled,) = run(capsys, "task", "cancel", TASK, "--reason", "enough")
    assert cancelled["state"] == "TASK_STATE_CANCELLED"
    ended = town.wait_until(
        lambda task: task.round.phase in {admin.ROUND_PHASE_COMMITTED, admin.ROUND_PHASE_ABANDONED}, seconds=30
    )
    town.sleep()
    assert town.task().committed == ended.committed


def assert_metrics_tell(town: Town) -> None:
    for name, expected in METRICS.items():
        address = town.stack.roles[name].metrics_address
        text = urllib.request.urlopen(f"http://{address}/metrics", timeout=10).read().decode()
        found = {
            sample.name for family in text_string_to_metric_families(text) for sample in family.samples if sample.value
        }
        assert {f"fedrecon_{metric}" for metric in expected} <= found
        assert "session=" not in text
        assert "device=" not in text


def assert_every_service_is_healthy(town: Town) -> None:
    for role in town.stack.roles.values():
        with open_sync_channel(role.address, town.stack.home) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_rounds_run_over_tls(
    tmp_path: Path, people: People, plan_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = make_authority("fedrecon test authority")
    trusted = authority.write(tmp_path / "authority.pem")
    certificate, key = authority.issue(tmp_path, "services")
    monkeypatch.setenv("FEDRECON_TLS_CERTIFICATE", str(certificate))
    monkeypatch.setenv("FEDRECON_TLS_KEY", str(key))
    monkeypatch.setenv("FEDRECON_TLS_SERVER_AUTHORITY", str(trusted))
    with Stack(Settings(home=tmp_path / "home")) as stack:
        town = Town(stack, people)
        town.create_task(plan_folder, "rounds.maximum_rounds=1")
        town.wake()
        try:
            town.wait_until(lambda task: task.state == admin.TASK_STATE_COMPLETED)
        finally:
            town.sleep()
        with grpc.insecure_channel(stack.roles["coordinator"].address) as plain, pytest.raises(grpc.RpcError):
            health_pb2_grpc.HealthStub(plain).Check(health_pb2.HealthCheckRequest(), timeout=3)


def test_a_device_cannot_call_what_operators_call(town: Town, plan_folder: Path) -> None:
    town.create_task(plan_folder)
    trusted = server_authority(town.stack.settings)
    with grpc.secure_channel(town.stack.roles["coordinator"].address, grpc.ssl_channel_credentials(trusted)) as channel:
        stub = AdminStub(channel)
        calls = (
            lambda: stub.CancelTask(admin.CancelTaskRequest(task=TASK), timeout=5),
            lambda: next(iter(stub.WatchTask(admin.WatchTaskRequest(task=TASK), timeout=5))),
            lambda: stub.PutBlob(iter([admin.PutBlobRequest()]), timeout=5),
        )
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                call()
            refusal = refusal_of(caught.value)
            assert refusal is not None
            assert refusal.reason == "SERVICE_IDENTITY_REQUIRED"
    assert town.task().state == admin.TASK_STATE_RUNNING


def test_rounds_run_on_a_redis_and_a_blob_store_of_ones_own(
    tmp_path: Path, people: People, plan_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = tmp_path / "blobs elsewhere"
    with EmbeddedValkey(tmp_path / "journal elsewhere") as server:
        monkeypatch.setenv("FEDRECON_REDIS_URL", server.url)
        monkeypatch.setenv("FEDRECON_BLOBS_URL", str(blobs))
        with Stack(load_settings(Settings, home=tmp_path / "home")) as stack:
            assert stack.valkey is None
            town = Town(stack, people)
            town.create_task(plan_folder, "rounds.maximum_rounds=1")
            town.wake()
            try:
                town.wait_until(lambda task: task.state == admin.TASK_STATE_COMPLETED)
            finally:
                town.sleep()
    assert any(blobs.rglob("*"))
    assert not (tmp_path / "home" / "valkey").exists()
    assert not (tmp_path / "home" / "blobs").exists()
