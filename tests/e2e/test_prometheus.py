"""A real Prometheus over real rounds: every panel, rule and alert asks for series that are there.

Needs Prometheus (Debian's package): `make test-operations`.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis import Redis

from fedrecon.ops.admin_client import open_sync_channel
from fedrecon.ops.fleet.people import People
from fedrecon.ops.metrics_targets import TARGETS_FILE
from fedrecon.ops.settings import Settings
from fedrecon.ops.stack import Stack
from fedrecon.ops.storage_watch import STORAGE_HEALTH
from fedrecon.ops.task_commands import create_task
from fedrecon.ops.task_specs import build_spec
from fedrecon.v1 import admin_pb2 as admin
from fedrecon.v1.admin_pb2_grpc import AdminStub
from fedrecon.v1.inference_pb2 import RecommendRequest
from fedrecon.v1.inference_pb2_grpc import InferenceStub
from support.town import DEFAULTS, TASK, Town

PROMETHEUS = shutil.which("prometheus") or ""
PROMTOOL = shutil.which("promtool") or ""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1_200),
    pytest.mark.skipif(not (PROMETHEUS and PROMTOOL), reason="Prometheus is not here: apt-get install prometheus"),
]

ROOT = Path(__file__).parents[2]
OPS = ROOT / "ops"
SECONDS = 240
TRUSTED, PRIVATE = "films-trusted", "films-private"
ONLY = {
    TRUSTED: ("secure_sum.protocol=SUM_PROTOCOL_TRUSTED",),
    PRIVATE: (
        "secure_sum.maximum_weight=1",
        "privacy.noise_multiplier=0.8",
        "privacy.clip_norm=0.5",
        "privacy.delta=1e-5",
        "privacy.epsilon_budget=1000",
    ),
}
"""Tasks beside the masked one: what some metrics exist only for."""

_COMPARISON = re.compile(r" (>=|<=|==|!=|>|<) ")


@dataclass(frozen=True)
class Asking:
    """A Prometheus that runs."""

    url: str

    def ask(self, expression: str) -> list[Any]:
        question = urllib.parse.urlencode({"query": expression})
        address = f"{self.url}/api/v1/query?{question}"
        with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310 - our own loopback address
            found: list[Any] = json.loads(answer.read())["data"]["result"]
        return found

    def until(self, expression: str, wanted: Callable[[list[Any]], bool] = bool) -> list[Any]:
        deadline = time.monotonic() + SECONDS
        while not wanted(found := self.ask(expression)):
            assert time.monotonic() < deadline, f"{expression}: {found}"
            time.sleep(0.5)
        return found


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory, people: People, plan_folder: Path) -> Iterator[Town]:
    """A stack whose devices take part in three tasks, and evaluate, for as long as anybody looks."""
    with Stack(Settings(home=tmp_path_factory.mktemp("busy") / "home")) as stack:
        town = Town(stack, people)
        forever = "rounds.maximum_rounds=0"
        evaluated = ("evaluation.every_rounds=2", "evaluation.held_out_share=0.3", "evaluation.report_goal=5")
        town.create_task(plan_folder, forever, *evaluated)
        with open_sync_channel(stack.roles["coordinator"].address, stack.home) as channel:
            for name, settings in ONLY.items():
                spec = build_spec(name, None, [*DEFAULTS, forever, f"population={TASK}", *settings])
                create_task(AdminStub(channel), spec, plan_folder)
        town.wake(dropout=0.1, awake=80)
        try:
            town.wait_until(lambda task: task.committed >= 3, seconds=600)
            yield town
        finally:
            town.sleep()


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory, busy: Town) -> Iterator[Asking]:
    """Prometheus, with the project's own rules, and a second between scrapes."""
    folder = tmp_path_factory.mktemp("prometheus")
    settings = yaml.safe_load((OPS / "prometheus" / "prometheus.yml").read_text())
    settings["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    settings["rule_files"] = [str(OPS / "prometheus" / name) for name in settings["rule_files"]]
    (job,) = settings["scrape_configs"]
    job["file_sd_configs"] = [{"files": [str(busy.stack.home / TARGETS_FILE)], "refresh_interval": "1s"}]
    del settings["alerting"]
    rules = yaml.safe_load((OPS / "prometheus" / "rules.yml").read_text())
    rules["groups"][0]["interval"] = "1s"
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    settings["rule_files"][0] = str(folder / "rules.yml")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [
        PROMETHEUS,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("wb") as log, subprocess.Popen(arguments, stdout=log, stderr=log) as process:
        try:
            made = Asking(f"http://127.0.0.1:{port}")
            _until_it_answers(made, process, folder / "log")
            yield made
        finally:
            process.terminate()


def _until_it_answers(made: Asking, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            if made.ask('up{job="fedrecon"} == 1'):
                return
        except OSError:
            pass
        time.sleep(0.2)


def queries() -> Iterator[tuple[str, str]]:
    for path in sorted((OPS / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                expression = target["expr"].replace("$__rate_interval", "1m").replace("$task", ".*")
                yield f"{path.stem}: {panel['title']}: {target['legendFormat']}", expression


def alerts() -> Iterator[tuple[str, str]]:
    for group in yaml.safe_load((OPS / "prometheus" / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def use_everything(town: Town) -> None:
    """Does what rounds alone do not: asks for recommendations, and calls what one may not call."""
    with open_sync_channel(town.stack.roles["inference"].address, town.stack.home) as channel:
        for _ in range(3):
            InferenceStub(channel).Recommend(RecommendRequest(task=TASK, count=3), timeout=10)
    unknown = admin.GetTaskRequest(task="no-such-task")
    address = town.stack.roles["coordinator"].address
    with open_sync_channel(address, town.stack.home) as channel, pytest.raises(grpc.RpcError):
        AdminStub(channel).GetTask(unknown, timeout=10)


def until_health(town: Town, service: str, wanted: int) -> None:
    deadline = time.monotonic() + SECONDS
    with open_sync_channel(town.stack.roles["coordinator"].address, town.stack.home) as channel:
        stub, asked = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest(service=service)
        while stub.Check(asked, timeout=10).status != wanted:
            assert time.monotonic() < deadline, service
            time.sleep(0.2)


def test_every_panel_rule_and_alert_asks_for_series_that_are_there(busy: Town, asking: Asking) -> None:
    asking.until(f'fedrecon_model_version{{task="{TASK}"}} > 0')
    for name in ONLY:
        asking.until(f'fedrecon_rounds_total{{task="{name}", outcome="committed"}} > 1')
    asking.until('fedrecon_eval_rmse{cohort="unseen"}')
    asking.until("fedrecon_update_norm_count > 0")
    use_everything(busy)
    for name, expression in queries():
        if "recall_at" in expression:
            continue  # the films' plan sums squared errors; tests/unit/test_coordinator_measures.py has recall
        assert asking.until(expression), name
    for name, expression in alerts():
        # What an alert waits for is rarely so: whether it is, is told where a comparison gives 0 or 1.
        assert asking.until(_COMPARISON.sub(r" \1 bool ", expression)), name


def test_nothing_is_alarming_about_rounds_that_go_well(busy: Town, asking: Asking) -> None:
    asking.until('ALERTS{alertname="FedreconNoCommit"} or up', bool)
    wrong = {each["metric"]["alertname"] for each in asking.ask('ALERTS{alertstate="firing"}')}
    assert wrong <= {"FedreconStorageFilling"}, "the disk of this machine may be full"
    assert busy.task().state == admin.TASK_STATE_RUNNING


@pytest.mark.parametrize("role", ["coordinator", "aggregator", "inference"])
def test_what_each_service_tells_is_well_formed(busy: Town, role: str) -> None:
    address = busy.stack.roles[role].metrics_address
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read()
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


@pytest.mark.parametrize(
    ("breaking", "mending", "outcome"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), "full"),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), "read_only"),
    ],
)
def test_a_journal_that_takes_no_writes_is_alarmed_and_no_report_is_lost(
    busy: Town, asking: Asking, breaking: tuple[str, ...], mending: tuple[str, ...], outcome: str
) -> None:
    asking.until('min(fedrecon_storage_up{store="journal"}) == 1')
    valkey = busy.stack.valkey
    assert valkey is not None
    with Redis.from_url(valkey.url) as server:
        server.execute_command(*breaking)
        asking.until(f'rate(fedrecon_storage_seconds_count{{store="journal", outcome="{outcome}"}}[1m]) > 0')
        asking.until('ALERTS{alertname="FedreconStorageFails", store="journal"}')
        until_health(busy, STORAGE_HEALTH, health_pb2.HealthCheckResponse.NOT_SERVING)
        server.execute_command(*mending)
    until_health(busy, STORAGE_HEALTH, health_pb2.HealthCheckResponse.SERVING)
    committed = busy.task().committed
    busy.wait_until(lambda task: task.committed >= committed + 2)
    made = [each for each in busy.rounds() if each.phase == admin.ROUND_PHASE_COMMITTED]
    for each in made:
        told = busy.recording.uploaded(each.key.round, each.key.attempt)
        acknowledged = [recorded for recorded in told if recorded.participation.task == TASK]
        assert len(acknowledged) <= each.counted, "whoever was told that it counts does"


def test_a_journal_that_is_gone_is_alarmed_and_rounds_go_on_when_it_is_back(busy: Town, asking: Asking) -> None:
    asking.until('min(fedrecon_storage_up{store="journal"}) == 1')
    valkey = busy.stack.valkey
    assert valkey is not None
    committed = busy.task().committed
    valkey.stop()
    asking.until('min(fedrecon_storage_up{store="journal"}) == 0')
    asking.until('ALERTS{alertname="FedreconStorageFails", store="journal"}')
    asking.until('rate(fedrecon_storage_seconds_count{store="journal", outcome="away"}[1m]) > 0')
    until_health(busy, STORAGE_HEALTH, health_pb2.HealthCheckResponse.NOT_SERVING)
    until_health(busy, "", health_pb2.HealthCheckResponse.SERVING)
    valkey.start()
    until_health(busy, STORAGE_HEALTH, health_pb2.HealthCheckResponse.SERVING)
    asking.until('min(fedrecon_storage_up{store="journal"}) == 1')
    asking.until('ALERTS{alertname="FedreconStorageFails"}', lambda found: not found)
    busy.wait_until(lambda task: task.committed >= committed + 2)
