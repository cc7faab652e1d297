"""The pages on protocol and data model say what the code does: reasons, codes and events, each of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from fedrecon.aggregator import attempts, group_events, summing
from fedrecon.aggregator.device_service import CODES
from fedrecon.coordinator import draining, entries, forgotten, recommenders, round_events, tasks
from fedrecon.device_sdk.calling import Patience
from fedrecon.device_sdk.session import CHECK_IN_SECONDS
from fedrecon.ops.boundary import ERROR_METADATA
from fedrecon.ops.journal.codec import Codec
from fedrecon.wire import chunks, fixed_point, manifests, schedules

ROOT = Path(__file__).resolve().parent.parent.parent
REASON = re.compile(r"[A-Z][A-Z]+(?:_[A-Z]+)*")

FACING_DEVICES = (
    "aggregator/fedrecon/aggregator/device_service.py",
    "aggregator/fedrecon/aggregator/ingest.py",
    "aggregator/fedrecon/aggregator/secagg_plus.py",
    "aggregator/fedrecon/aggregator/summing.py",
    "aggregator/fedrecon/aggregator/trusted.py",
    "coordinator/fedrecon/coordinator/enrolment_service.py",
    "coordinator/fedrecon/coordinator/service.py",
    "coordinator/fedrecon/coordinator/speakers.py",
    "ops/fedrecon/ops/blob_service.py",
    "ops/fedrecon/ops/boundary.py",
    "ops/fedrecon/ops/session_calls.py",
    "ops/fedrecon/ops/storage_refusals.py",
)
CODES_OF_KINDS = {kind: code.name for kind, code in CODES.items()}
FOR_SERVICES_ONLY = {"SUM_LOST", "SERVICE_IDENTITY_REQUIRED", "UNKNOWN_OPERATOR", "ROLE_TOO_LOW"}


def refusals_in(path: Path) -> Iterator[tuple[str, str]]:
    """Reason and gRPC code of every refusal that a module makes; no code where a helper adds it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id not in {"Refusal", "refuse_as", "_refuse", "MessageRefusedError"}:
            continue
        words = [each.value for each in node.args if isinstance(each, ast.Constant)]
        kind = CODES_OF_KINDS.get(str(words[0])) if node.func.id == "MessageRefusedError" and words else None
        code = kind or next(
            (each.attr for each in node.args if isinstance(each, ast.Attribute) and each.attr.isupper()), ""
        )
        for each in node.args:
            if isinstance(each, ast.Constant) and isinstance(each.value, str) and REASON.fullmatch(each.value):
                yield each.value, code


def reasons_in(folder: str) -> set[str]:
    return {reason for path in sorted((ROOT / folder).rglob("*.py")) for reason, _ in refusals_in(path)}


def section(page: str, heading: str) -> str:
    text = (ROOT / page).read_text()
    return text[text.index(f"## {heading}\n") :].split("\n## ")[0]


def rows_of(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("|---"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def told_refusals() -> dict[str, set[str]]:
    """What the protocol's page says: reason -> codes."""
    told: dict[str, set[str]] = {}
    for _, reasons, code, _ in list(rows_of(section("docs/protocol.md", "Refusals")))[1:]:
        for reason in re.findall(r"`([A-Z_]+)`", reasons):
            told.setdefault(reason, set()).add(code)
    return told


def test_every_refusal_that_a_device_may_hear_is_in_the_protocol() -> None:
    made = {reason for path in FACING_DEVICES for reason, _ in refusals_in(ROOT / path)}
    assert len(made) > 20
    assert made - FOR_SERVICES_ONLY <= told_refusals().keys()


def test_the_protocol_names_no_refusal_and_no_code_that_services_do_not_send() -> None:
    made: dict[str, set[str]] = {"INTERNAL": {"INTERNAL"}}
    for room in ("aggregator", "coordinator", "ops"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for reason, code in refusals_in(path):
                made.setdefault(reason, set()).add(code or "INVALID_ARGUMENT")
    for reason, codes in told_refusals().items():
        assert reason in made, reason
        assert codes <= made[reason], reason


def test_the_protocol_names_the_reasons_for_which_a_device_refuses() -> None:
    told = set(re.findall(r"^\| `([A-Z_]+)`", section("docs/protocol.md", "Before anything is fetched"), re.MULTILINE))
    source = (ROOT / "device_sdk/fedrecon/device_sdk/floors.py").read_text()
    assert told == set(re.findall(r'reason="([A-Z_]+)"', source))


def test_the_protocol_names_the_reasons_for_which_a_device_leaves_a_secure_sum() -> None:
    told = set(re.findall(r"^\| `([A-Z_]+)`", section("docs/protocol.md", "Secure sums"), re.MULTILINE))
    folder = ROOT / "device_sdk/fedrecon/device_sdk"
    source = (folder / "neighbourhood.py").read_text() + (folder / "masking.py").read_text()
    assert told == set(re.findall(r'reason="([A-Z_]+)"', source))


def test_the_aggregators_readme_names_its_reasons() -> None:
    told = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)*)`", section("aggregator/README.md", "Reasons")))
    made = reasons_in("aggregator")
    assert made <= told
    assert told <= made | reasons_in("ops")


def test_the_data_model_names_every_event_of_every_stream() -> None:
    told: dict[str, set[str]] = {}
    for task, stream, _, events in list(rows_of(section("docs/data-model.md", "The journal")))[1:9]:
        told[f"{task} {stream.split('`')[1]}"] = set(re.findall(r"`(\w+)`", events))
    assert told == {
        f"`{entries.REGISTRY_TASK}` {entries.REGISTRY_STREAM}": {entries.TaskRegistered.__name__},
        f"`{entries.REGISTRY_TASK}` {forgotten.STREAM}": {forgotten.KeyForgotten.__name__},
        f"NAME {entries.TASK_STREAM}": {event.__name__ for event in tasks.EVENT_TYPES},
        f"NAME {entries.RECOMMENDERS_STREAM}": {event.__name__ for event in recommenders.EVENT_TYPES},
        f"NAME {entries.round_stream(7)}": {event.__name__ for event in round_events.EVENT_TYPES},
        f"`{attempts.REGISTRY_TASK}` {attempts.REGISTRY_STREAM}": {attempts.TaskJoined.__name__},
        f"`{entries.REGISTRY_TASK}` {draining.STREAM}": {
            draining.AggregatorDrained.__name__,
            draining.AggregatorUndrained.__name__,
        },
        "NAME group/7.1/0": names_known_to(summing.CODEC),
    }


def names_known_to(codec: Codec[group_events.Event]) -> set[str]:
    return set(codec._adapters)


def test_the_numbers_and_words_of_the_protocol_are_those_of_the_code() -> None:
    page = (ROOT / "docs/protocol.md").read_text()
    patience = Patience()
    for said in (
        f"1 to {chunks.CHUNK_BYTES:,} bytes",
        f"x 2^{fixed_point.METRIC_SCALE.bit_length() - 1})",
        f"more than 2^{schedules.LARGEST_ORDER.bit_length() - 1} places",
        f"the {len(manifests.SIGNING_DOMAIN)}\nASCII bytes `{manifests.SIGNING_DOMAIN.decode()}`",
        f"give the call {CHECK_IN_SECONDS:.0f} s",
        f"`{ERROR_METADATA}`",
        f"begins at {patience.first_seconds} s, doubles up to\n  {patience.longest_seconds:.0f} s",
        f"{patience.attempts} tries, within a session {patience.session_attempts} ",
    ):
        assert said in page, said
