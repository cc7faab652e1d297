"""What is told of a device's kind: nothing by default, in a few words where the app says so, and on the receipt."""

from __future__ import annotations

from collections import Counter

import pytest

from fedrecon.coordinator.kinds import SHOWN_TOGETHER, Kinds
from fedrecon.coordinator.measures import Measures
from fedrecon.coordinator.round_events import Outcome
from fedrecon.device_sdk.kinds import ClassName, kind_of, reveals_of
from fedrecon.ops.metrics import Metrics
from fedrecon.v1 import coordinator_pb2
from fedrecon.v1.coordinator_pb2 import DeviceKind, FinishSessionRequest
from support import device_bundle as bundle
from support.device_services import Examples, Services, play

LOW_FEW = DeviceKind(device_class=coordinator_pb2.DEVICE_CLASS_LOW, activity=coordinator_pb2.ACTIVITY_FEW)


@pytest.mark.parametrize(
    ("examples", "activity"),
    [
        (0, coordinator_pb2.ACTIVITY_FEW),
        (19, coordinator_pb2.ACTIVITY_FEW),
        (20, coordinator_pb2.ACTIVITY_SOME),
        (99, coordinator_pb2.ACTIVITY_SOME),
        (100, coordinator_pb2.ACTIVITY_MANY),
        (10**6, coordinator_pb2.ACTIVITY_MANY),
    ],
)
def test_examples_are_told_in_three_steps(examples: int, activity: int) -> None:
    assert kind_of("high", examples) == DeviceKind(
        device_class=coordinator_pb2.DEVICE_CLASS_HIGH, activity=coordinator_pb2.Activity.ValueType(activity)
    )


def test_the_receipt_says_what_is_told() -> None:
    told = reveals_of(FinishSessionRequest(kind=LOW_FEW))
    assert "class low" in told
    assert "few examples" in told
    assert reveals_of(FinishSessionRequest()) == ""


@pytest.mark.parametrize("device_class", [None, "middle"])
def test_a_session_tells_the_kind_only_where_the_app_says_so(device_class: ClassName | None) -> None:
    plan = bundle.make_plan()
    services = Services(plan, bundle.make_assignment(plan))
    participation = play(services, device_class=device_class).participation
    (end,) = [each for each in participation.receipt if each.message == "FinishSession"]
    assert services.finished.HasField("kind") == (device_class is not None)
    assert ("class middle" in end.reveals) == (device_class is not None)
    if device_class is not None:
        assert services.finished.kind == kind_of("middle", Examples().count())


def test_a_count_moves_only_when_enough_sessions_can_be_shown_together() -> None:
    kinds = Kinds()
    moved = Counter(cell for _ in range(SHOWN_TOGETHER - 1) for cell in kinds.note(LOW_FEW, Outcome.UPLOADED))
    assert not moved
    moved.update(kinds.note(LOW_FEW, Outcome.LOCAL_TIMEOUT))
    assert not moved, "it ended in another way"
    moved.update(kinds.note(LOW_FEW, Outcome.UPLOADED))
    assert moved == {("device_class", "low", "reported"): 1, ("activity", "few", "reported"): 1}


def test_what_is_shown_is_whole_steps() -> None:
    metrics = Metrics.create("coordinator")
    measures = Measures(metrics)
    for _ in range(2 * SHOWN_TOGETHER + 7):
        measures.note_kind(LOW_FEW, Outcome.UPLOADED)
    measures.note_kind(DeviceKind(), Outcome.UPLOADED)

    def shown(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"fedrecon_{name}", labels)

    assert shown("sessions_by_activity_total", activity="few", end="reported") == 2 * SHOWN_TOGETHER
    assert shown("sessions_by_device_class_total", device_class="low", end="reported") == 2 * SHOWN_TOGETHER
    assert shown("sessions_by_device_class_total", device_class="low", end="not_reported") == 0


def test_words_of_another_version_are_not_counted() -> None:
    assert not list(Kinds().note(DeviceKind(device_class=coordinator_pb2.DeviceClass.ValueType(9)), Outcome.UPLOADED))
