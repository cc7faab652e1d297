"""Which of a population's tasks a device is offered to.

Rules: only tasks that the device fits: its SDK, its plan formats, and what its app insists on. Among those, tasks that
gather devices come first, then the one that has had the fewest offers for its traffic weight; names settle ties.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedrecon.coordinator.specs import Prepared, parse_version
from fedrecon.v1 import coordinator_pb2, task_pb2
from fedrecon.v1.coordinator_pb2 import CheckInRequest, Floors, RejectionReason
from fedrecon.v1.task_pb2 import TaskSpec


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why a device does not fit a task.

    Attributes:
        reason: For programs.
        why: For people.
    """

    reason: RejectionReason.ValueType
    why: str


@dataclass(frozen=True, slots=True)
class Choice:
    """A task that a device fits.

    Attributes:
        name: The task.
        gathers: Whether it gathers devices now.
        weight: Its traffic weight; 0 counts as 1.
    """

    name: str
    gathers: bool
    weight: float


def misfit_of(request: CheckInRequest, spec: TaskSpec, prepared: Prepared) -> Misfit | None:
    """Returns why a device does not fit a task; None if it does.

    Args:
        request: The device's offer.
        spec: The task's.
        prepared: What its rounds take from its plan.
    """
    plan_format = prepared.manifest.format
    if plan_format not in request.plan_formats:
        formats = ", ".join(map(str, request.plan_formats)) or "none"
        why = f"the plan has format {plan_format}, the SDK runs {formats}: upgrade the app"
        return Misfit(coordinator_pb2.REJECTION_REASON_VERSION, why)
    version = parse_version(request.sdk_version)
    oldest, newest = spec.eligibility.minimum_sdk_version, spec.eligibility.maximum_sdk_version
    if oldest or newest:
        lowest, highest = parse_version(oldest), parse_version(newest)
        if version is None or (lowest and version < lowest) or (highest and version > highest):
            allowed = " ".join(part for part in (oldest and f"from {oldest}", newest and f"up to {newest}") if part)
            why = f"the task takes SDK versions {allowed}, this is {request.sdk_version or 'unknown'}: upgrade the app"
            return Misfit(coordinator_pb2.REJECTION_REASON_VERSION, why)
    return _below_floors(request.floors, spec, prepared.contributing_share)


def choose(choices: Sequence[Choice], offers: Mapping[str, int]) -> str:
    """Returns the task that the next device is offered to.

    Args:
        choices: Tasks that it fits, at least one.
        offers: Offers that each task has had.

    Example:
        >>> choose([Choice("a", True, 1.0), Choice("b", True, 2.0)], {"a": 1, "b": 1})
        'b'
    """

    def rank(choice: Choice) -> tuple[bool, float, str]:
        return not choice.gathers, offers.get(choice.name, 0) / (choice.weight or 1.0), choice.name

    return min(choices, key=rank).name


def _below_floors(floors: Floors, spec: TaskSpec, contributing_share: float) -> Misfit | None:
    floor = coordinator_pb2.REJECTION_REASON_FLOORS
    if floors.trusted_plans and spec.signature.publisher_key not in floors.trusted_plans:
        return Misfit(floor, "the app trusts other publishers than the one that signed the plan")
    if floors.secure_sum_required and spec.secure_sum.protocol == task_pb2.SUM_PROTOCOL_TRUSTED:
        return Misfit(floor, "the app reports only under a secure sum, and the task uses TRUSTED")
    if floors.minimum_group > spec.secure_sum.minimum_group:
        why = f"the app joins groups of at least {floors.minimum_group}, the task opens {spec.secure_sum.minimum_group}"
        return Misfit(floor, why)
    expected = contributing_share * spec.secure_sum.minimum_group
    if expected < floors.minimum_contributors:
        why = f"the app wants rows with {floors.minimum_contributors} contributors, the task expects {expected:g}"
        return Misfit(floor, why)
    return None
