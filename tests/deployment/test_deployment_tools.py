"""Container files, compose file and chart, by the tools of their own formats; `make check-deployment` installs them.

Helm's own renderer and linter (as a library), the schemas of several versions of Kubernetes, hadolint, and the schema
of compose files. What needs a cluster or a container runtime is not tried here.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "ops" / "helm" / "fedrecon"
VERSIONS = ("1.29", "1.31", "1.34")
MISSING = "`make check-deployment` installs it"
LEAST: dict[str, Any] = {"blobs": {"url": "s3://bucket/prefix"}}
MOST: dict[str, Any] = {
    "image": {"registry": "registry.example.org/fedrecon/", "tag": "1.2.3", "pullSecrets": [{"name": "pull"}]},
    "redis": {"url": "rediss://redis.example.org:6380/0"},
    "blobs": {
        "url": "s3://bucket/prefix",
        "credentialsSecret": "store",
        "environment": {"AWS_ENDPOINT_URL": "https://s3.example.org"},
    },
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/films"}},
    "settings": {"FEDRECON_LOG_LEVEL": "debug", "FEDRECON_KEPT_ROUNDS": 50},
    "tls": {"secretName": ""},
    "coordinator": {
        "replicas": 3,
        "operators": "alice:viewer:" + "0" * 64,
        "service": {"type": "LoadBalancer", "annotations": {"example.org/internal": "true"}},
        "autoscaling": {"enabled": True, "queueMetric": "fedrecon_waiting_devices"},
    },
    "aggregator": {
        "replicas": 3,
        "domain": "devices.example.org",
        "perPodService": {"enabled": True},
        "storage": {"className": "fast"},
    },
    "inference": {"autoscaling": {"enabled": True, "queueMetric": "fedrecon_waiting_calls"}},
    "networkPolicy": {"clients": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "metrics": [{"podSelector": {}}]},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "films", "operator": "Exists"}],
}
SMALL: dict[str, Any] = LEAST | {
    "aggregator": {"replicas": 1},
    "inference": {"enabled": False},
    "console": {"enabled": False},
    "networkPolicy": {"enabled": False},
}
VALUES = {"least": LEAST, "most": MOST, "small": SMALL}


def rendered(values: Mapping[str, Any]) -> dict[str, str]:
    helm = pytest.importorskip("helm_python", reason=MISSING)
    with helm.Chart.load(CHART) as chart:
        made: dict[str, str] = chart.render(dict(values), name="films", namespace="science")
        return made


def resources(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason=MISSING)
    for name, text in rendered(values).items():
        if not name.endswith("NOTES.txt"):
            yield from filter(None, yaml.safe_load_all(text))


def of_kind(values: Mapping[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in resources(values) if each["kind"] == kind}


def containers(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    workloads = of_kind(values, "StatefulSet") | of_kind(values, "Deployment")
    return {name: each["spec"]["template"]["spec"]["containers"][0] for name, each in workloads.items()}


def environment(container: Mapping[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container["env"]}


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", VALUES)
def test_every_resource_is_valid_strictly(name: str, version: str) -> None:
    validating = pytest.importorskip("kubernetes_validate", reason=MISSING)
    found = list(resources(VALUES[name]))
    assert len(found) >= 8
    for each in found:
        validating.validate(each, version, strict=True)


@pytest.mark.slow
def test_a_resource_with_a_misspelt_field_is_not_valid() -> None:
    validating = pytest.importorskip("kubernetes_validate", reason=MISSING)
    wrong = next(iter(of_kind(LEAST, "Deployment").values()))
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(validating.ValidationError):
        validating.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", VALUES)
def test_the_linter_of_helm_has_nothing_to_say(name: str) -> None:
    helm = pytest.importorskip("helm_python", reason=MISSING)
    report = helm.lint(CHART, VALUES[name], strict=True)
    assert report["errors"] == []
    assert [each["error"] for each in report["messages"]] == ["icon is recommended"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [
        LEAST | {"agregator": {"replicas": 3}},
        LEAST | {"coordinator": {"replicas": 0}},
        LEAST | {"settings": {"LOG_LEVEL": "debug"}},
        LEAST | {"redis": {"url": "http://redis"}},
    ],
)
def test_values_that_are_misspelt_or_wrong_are_refused(wrong: dict[str, Any]) -> None:
    helm = pytest.importorskip("helm_python", reason=MISSING)
    with helm.Chart.load(CHART) as chart, pytest.raises(helm.HelmError):
        chart.validate_schema(wrong)


@pytest.mark.slow
def test_a_place_for_blobs_has_to_be_named() -> None:
    helm = pytest.importorskip("helm_python", reason=MISSING)
    with pytest.raises(helm.HelmError, match="every replica needs the same place"):
        rendered({})


@pytest.mark.slow
@pytest.mark.parametrize("name", VALUES)
def test_every_pod_is_hardened_and_every_container_is_probed(name: str) -> None:
    workloads = of_kind(VALUES[name], "StatefulSet") | of_kind(VALUES[name], "Deployment")
    assert len(workloads) >= 2
    for workload in workloads.values():
        pod = workload["spec"]["template"]["spec"]
        container = pod["containers"][0]
        assert pod["enableServiceLinks"] is False
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["resources"]["limits"]["memory"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["exec"]["command"][-1] == container["name"]
        drain = float(environment(container)["FEDRECON_DRAIN_SECONDS"])
        assert pod["terminationGracePeriodSeconds"] >= drain + 10


@pytest.mark.slow
def test_every_role_survives_the_loss_of_a_node() -> None:
    budgets = of_kind(LEAST, "PodDisruptionBudget")
    assert {"films-fedrecon-coordinator", "films-fedrecon-aggregator", "films-fedrecon-inference"} == budgets.keys()
    for budget in budgets.values():
        assert budget["spec"]["maxUnavailable"] == 1


@pytest.mark.slow
def test_coordinators_know_every_aggregator_by_the_name_of_its_pod() -> None:
    all_containers = containers(MOST)
    targets = environment(all_containers["films-fedrecon-coordinator"])["FEDRECON_AGGREGATOR_TARGET"].split(",")
    domain = "films-fedrecon-aggregators.science.svc.cluster.local"
    assert targets == [f"films-fedrecon-aggregator-{index}.{domain}:7002" for index in range(3)]
    assert (
        of_kind(MOST, "StatefulSet")["films-fedrecon-aggregator"]["spec"]["serviceName"] == "films-fedrecon-aggregators"
    )
    told = environment(all_containers["films-fedrecon-aggregator"])["FEDRECON_AGGREGATOR_ADVERTISED"]
    assert told == "$(POD_NAME).devices.example.org:7002"
    services = of_kind(MOST, "Service")
    for index in range(3):
        selector = services[f"films-fedrecon-aggregator-{index}"]["spec"]["selector"]
        assert selector["statefulset.kubernetes.io/pod-name"] == f"films-fedrecon-aggregator-{index}"


@pytest.mark.slow
def test_plaintext_has_to_be_chosen_by_word() -> None:
    for container in containers(MOST).values():
        assert environment(container)["FEDRECON_TLS"] == "off"
    for container in containers(LEAST).values():
        assert "FEDRECON_TLS" not in environment(container)
        assert environment(container)["FEDRECON_TLS_CERTIFICATE"].endswith("tls.crt")


@pytest.mark.slow
def test_what_scales_by_itself_does_so_by_queue_and_processor() -> None:
    scalers = of_kind(MOST, "HorizontalPodAutoscaler")
    assert scalers.keys() == {"films-fedrecon-coordinator", "films-fedrecon-inference"}
    for scaler in scalers.values():
        assert [metric["type"] for metric in scaler["spec"]["metrics"]] == ["Resource", "Pods"]
    for name in scalers:
        workload = (of_kind(MOST, "StatefulSet") | of_kind(MOST, "Deployment"))[name]
        assert "replicas" not in workload["spec"], "an upgrade would undo what the scaler did"


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [*sorted(ROOT.glob("*/Dockerfile")), *sorted(ROOT.glob("*/*.Dockerfile"))],
    ids=lambda path: path.parent.name,
)
def test_the_linter_of_container_files_has_nothing_to_say(path: Path) -> None:
    linter = Path(sys.executable).parent / "hadolint"
    if not linter.exists():
        pytest.skip(f"hadolint: {MISSING}")
    answer = subprocess.run([str(linter), str(path)], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (0, "")


@pytest.mark.slow
def test_the_compose_file_is_valid() -> None:
    pytest.importorskip("check_jsonschema", reason=MISSING)
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    subprocess.run([*command, str(ROOT / "ops" / "compose" / "compose.yml")], check=True)


@pytest.mark.slow
def test_the_compose_file_mounts_only_what_is_there_or_named() -> None:
    yaml = pytest.importorskip("yaml", reason=MISSING)
    path = ROOT / "ops" / "compose" / "compose.yml"
    composed = yaml.safe_load(path.read_text())
    for name, service in composed["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (path.parent / source).exists(), f"{name}: {source}"
            else:
                assert source in composed["volumes"], f"{name}: {source}"
        build = service.get("build")
        assert build is None or (path.parent / build["context"] / build["dockerfile"]).is_file()
