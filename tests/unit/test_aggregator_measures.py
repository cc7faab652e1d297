"""What an aggregator tells of masked groups, phase by phase."""

from __future__ import annotations

import math

import numpy as np

from fedrecon.aggregator import groups
from fedrecon.aggregator.group_events import (
    Accepted,
    Closed,
    Config,
    Event,
    Opened,
    Phase,
    Report,
    RosterFrozen,
    Segment,
    SharesFixed,
    UploadsEnded,
)
from fedrecon.aggregator.groups import Group
from fedrecon.aggregator.measures import Measures
from fedrecon.aggregator.trusted import TrustedSum
from fedrecon.ops.metrics import Metrics
from fedrecon.v1.task_pb2 import SUM_PROTOCOL_SECAGG_PLUS, SUM_PROTOCOL_TRUSTED
from fedrecon.wire.fixed_point import quantise

SESSIONS = tuple(bytes([number]) * 16 for number in range(6))
DIGEST = bytes(32)


def config(protocol: int) -> Config:
    return Config("films", 1, 1, 1, protocol, (Segment("items", 4, 1.0),), (), 32, 10, 1, 2, 6, DIGEST, DIGEST, 10**9)


def played(protocol: int, phase: Phase, *events: Event) -> Metrics:
    metrics = Metrics.create("aggregator")
    measures = Measures(metrics)
    group: Group = groups.step(None, Opened(b"g" * 16, config(protocol), "here", phase, 0))[0]
    for event in events:
        after = groups.step(group, event)[0]
        measures.note_group(group, after, event)
        group = after
    return metrics


def told(metrics: Metrics, name: str, phase: str) -> float | None:
    return metrics.registry.get_sample_value(f"fedrecon_{name}", {"phase": phase})


def test_members_and_time_of_a_masked_group_are_told_by_phase() -> None:
    reports = tuple(Report(session, DIGEST) for session in SESSIONS[:4])
    metrics = played(
        SUM_PROTOCOL_SECAGG_PLUS,
        Phase.JOINING,
        RosterFrozen(SESSIONS, DIGEST, tuple(range(6)), 4, 3, bytes(32), 2_000),
        SharesFixed((0, 1, 2, 3, 5), DIGEST, 3_000),
        Accepted(reports, 4, DIGEST, DIGEST, 4_000),
        UploadsEnded(8_000),
        Closed(4, DIGEST, 8_500, DIGEST),
    )
    assert [told(metrics, "secure_sum_clients", phase) for phase in ("joining", "sharing", "uploading")] == [6, 5, 4]
    assert [told(metrics, "secure_sum_dropouts_total", phase) for phase in ("sharing", "uploading")] == [1, 1]
    phases = ("joining", "sharing", "uploading", "unmasking")
    assert [told(metrics, "secure_sum_seconds_sum", phase) for phase in phases] == [2, 1, 5, 0.5]
    assert [told(metrics, "secure_sum_seconds_count", phase) for phase in phases] == [1, 1, 1, 1]


def test_a_trusted_group_tells_nothing_of_masks() -> None:
    report = Report(SESSIONS[0], DIGEST)
    accepted = Accepted((report, Report(SESSIONS[1], DIGEST)), 2, DIGEST, DIGEST, 4_000)
    metrics = played(SUM_PROTOCOL_TRUSTED, Phase.UPLOADING, accepted, Closed(2, DIGEST, 5_000))
    assert told(metrics, "secure_sum_seconds_count", "uploading") == 0
    assert told(metrics, "secure_sum_clients", "uploading") is None


def test_the_norm_of_a_trusted_update_is_that_of_the_update() -> None:
    fixed_point = config(SUM_PROTOCOL_TRUSTED).fixed_point
    update = np.array([0.3, -0.4, 0.0, 0.0], dtype=np.float32)
    vector = quantise([update], 1, [], fixed_point, bytes(32))
    assert math.isclose(TrustedSum(fixed_point).norm_of(vector), 0.5, rel_tol=1e-5)
