"""Plays scenes to a device, and judges what it said."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fedrecon.ops.conformance.judging import ALWAYS, Expected, outcome
from fedrecon.ops.conformance.material import EXAMPLES, POPULATION, Material, conformance_material
from fedrecon.ops.conformance.playing import Play
from fedrecon.ops.conformance.rules import RULES, Rule
from fedrecon.ops.conformance.scenes import MINIMUM_GROUP, Scene, unchanged
from fedrecon.ops.conformance.serving import Stage
from fedrecon.v1 import coordinator_pb2, task_pb2
from fedrecon.v1.common_pb2 import BlobReference, RoundKey
from fedrecon.v1.coordinator_pb2 import Assignment, Floors
from fedrecon.v1.task_pb2 import LocalWork, SecureSum
from fedrecon.wire.digests import digest_of
from fedrecon.wire.proofs import SESSION_KEY_BYTES

SESSION_BYTES = 16
ROUNDING = "rounding"
ENOUGH_REPORTS = 8
"""Two reports of the plan are rounded alike by chance in 7 of 100 cases, eight in one of some millions."""
REPORT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Order:
    """What a device under test is told: how its app would set it up, and one user's examples.

    Attributes:
        scene: what is going to happen.
        target: of coordinator, blobs and aggregator.
        population: of the app.
        trusted_plans: publishers whose plans may run, hexadecimal.
        secure_sum: `required`, or `allowed` to be in clear.
        min_group: smallest group.
        min_contributors: devices that must be expected to update every row.
        examples: by field, oldest first.
    """

    scene: str
    target: str
    population: str
    trusted_plans: list[str]
    secure_sum: Literal["required", "allowed"]
    min_group: int
    min_contributors: int
    examples: dict[str, list[Any]]


class DeviceFailedError(Exception):
    """A device did not do what it was started for; the message says what is known."""


Start = Callable[[Order], None]
"""Lets a device take part once; returns when it is done, or raises `DeviceFailedError`."""


@dataclass(slots=True)
class Verdict:
    """What is known of one rule.

    Attributes:
        rule: the rule.
        scenes: in which it was judged.
        complaints: what the device did, by scene.
    """

    rule: Rule
    scenes: list[str] = field(default_factory=list)
    complaints: dict[str, list[str]] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether no scene has a complaint."""
        return not self.complaints

    def add(self, scene: str, complaints: Iterable[str]) -> None:
        """Adds what a scene says."""
        found = list(complaints)
        self.scenes.append(scene)
        if found:
            self.complaints.setdefault(scene, []).extend(found)


async def judge_device(
    scenes: Sequence[Scene],
    start: Start,
    target: str,
    *,
    clock: Callable[[], float] = time.monotonic,
    listening: Callable[[str], None] = lambda _target: None,
) -> list[Verdict]:
    """Returns what scenes tell of a device, for every rule that they judge.

    Args:
        scenes: which to play.
        start: lets the device take part once.
        target: where to listen, `host:port`.
        clock: seconds.
        listening: is told where devices find the services, before the first of them starts.
    """
    material = conformance_material()
    verdicts = {rule.name: Verdict(rule) for rule in RULES}
    stage = Stage(clock)
    bound, elsewhere = await stage.open(target)
    alike: list[bytes] = []
    listening(bound)
    try:
        for scene in scenes:
            stage.play = play = set_up(scene, material, bound, elsewhere)
            failure = await asyncio.to_thread(_started, start, order_of(scene, material, bound))
            stage.play = None
            for name, complaints in judge(scene, play, failure).items():
                verdicts[name].add(scene.name, complaints)
            if scene.change is unchanged and play.acknowledged:
                alike.append(bytes(play.received))
    finally:
        await stage.close()
    if len(alike) >= ENOUGH_REPORTS:
        verdicts[ROUNDING].add(f"{len(alike)} reports of the same work", rounding_complaints(alike))
    return [verdict for verdict in verdicts.values() if verdict.scenes]


def rounding_complaints(reports: Sequence[bytes]) -> Iterator[str]:
    """Yields what is wrong with reports of the same work in many sessions: they differ by their rounding alone."""
    if len(set(reports)) == 1:
        yield "all of them were rounded alike: sums of such reports are biased"


def judge(scene: Scene, play: Play, failure: str = "") -> dict[str, list[str]]:
    """Returns the complaints of one scene, by rule."""
    expected = Expected(floors_of(scene, play.material), scene.outcomes, scene.shape)
    own = [failure] if failure else []
    if not play.transcript.calls:
        return {"readable": play.unreadable, scene.rule: [*own, "it did not check in"]}
    own += [*outcome(play, expected), *scene.judge(play)]
    found = {name: list(rule(play, expected)) for name, rule in ALWAYS.items()}
    return {"readable": play.unreadable, **found, scene.rule: [*found.get(scene.rule, []), *own]}


def set_up(scene: Scene, material: Material, target: str, elsewhere: str) -> Play:
    """Returns the services of a scene."""
    manifest, blobs = material.manifest, dict(material.blobs)
    plan = BlobReference(digest=digest_of(material.content), size=len(material.content))
    assignment = Assignment(
        session=os.urandom(SESSION_BYTES),
        round=RoundKey(task="conformance", round=7, attempt=2),
        kind=coordinator_pb2.SESSION_KIND_TRAIN,
        plan=plan,
        signature=material.signature,
        checkpoint=manifest.initial_checkpoint,
        aggregator=target,
        blobs=target,
        secure_sum=SecureSum(
            protocol=task_pb2.SUM_PROTOCOL_TRUSTED,
            ring_bits=32,
            maximum_reports=100,
            maximum_weight=20,
            minimum_group=max(MINIMUM_GROUP, scene.minimum_group),
        ),
        work=LocalWork(split=task_pb2.SPLIT_RULE_ALTERNATE_BATCHES, minimum_examples=2),
        layout=manifest.layout,
        report_within_milliseconds=REPORT_SECONDS * 1000,
        round_token=os.urandom(40),
        session_key=os.urandom(SESSION_KEY_BYTES),
    )
    scene.change(assignment, blobs)
    return Play(material, assignment, blobs, elsewhere, scene.intercept)


def order_of(scene: Scene, material: Material, target: str) -> Order:
    """Returns what the device of a scene is told."""
    return Order(
        scene=scene.name,
        target=target,
        population=POPULATION,
        trusted_plans=[material.signature.publisher_key.hex()],
        secure_sum=scene.secure_sum,
        min_group=scene.minimum_group,
        min_contributors=scene.minimum_contributors,
        examples={name: list(values) for name, values in EXAMPLES.items()},
    )


def floors_of(scene: Scene, material: Material) -> Floors:
    """Returns what the device of a scene says that its app insists on."""
    return Floors(
        trusted_plans=[material.signature.publisher_key],
        secure_sum_required=scene.secure_sum == "required",
        minimum_group=scene.minimum_group,
        minimum_contributors=scene.minimum_contributors,
    )


def _started(start: Start, order: Order) -> str:
    try:
        start(order)
    except DeviceFailedError as error:
        return str(error)
    return ""
