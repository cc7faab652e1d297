"""The contract's messages as values of the cores, and back. Whatever is malformed is refused here."""

from __future__ import annotations

import os

import grpc

from fedrecon.aggregator import group_events
from fedrecon.aggregator.attempt import Attempt
from fedrecon.aggregator.group_events import Config, Phase
from fedrecon.aggregator.secagg_plus import SecAggPlusSum
from fedrecon.aggregator.secure_sum import SecureSum
from fedrecon.aggregator.summing import Summing
from fedrecon.aggregator.trusted import TrustedSum
from fedrecon.ops.boundary import Refusal
from fedrecon.ops.journal import checked_name
from fedrecon.v1 import aggregator_pb2, coordinator_pb2, task_pb2
from fedrecon.v1.aggregator_pb2 import GroupProgress, OpenRequest
from fedrecon.v1.coordinator_pb2 import ReportFate
from fedrecon.wire.digests import DIGEST_BYTES
from fedrecon.wire.sum_context import MOST_DROP_OUT

_PHASES: dict[Phase, aggregator_pb2.GroupPhase.ValueType] = {
    Phase.JOINING: aggregator_pb2.GROUP_PHASE_JOINING,
    Phase.SHARING: aggregator_pb2.GROUP_PHASE_SHARING,
    Phase.UPLOADING: aggregator_pb2.GROUP_PHASE_UPLOADING,
    Phase.UNMASKING: aggregator_pb2.GROUP_PHASE_UNMASKING,
    Phase.CLOSED: aggregator_pb2.GROUP_PHASE_CLOSED,
    Phase.ABORTED: aggregator_pb2.GROUP_PHASE_ABORTED,
}


def protocol_of(config: Config) -> SecureSum:
    """Returns the protocol of a group.

    Raises:
        ValueError: this version has none such.
    """
    match config.protocol:
        case task_pb2.SUM_PROTOCOL_TRUSTED:
            return TrustedSum(config.fixed_point)
        case task_pb2.SUM_PROTOCOL_SECAGG_PLUS:
            return SecAggPlusSum(config, os.urandom)
        case _:
            raise ValueError(f"sum protocol {config.protocol} needs a newer version")


def config_of(request: OpenRequest, largest_vector_bytes: int) -> Config:
    """Returns what groups are to be opened for.

    Args:
        request: the coordinator's wish.
        largest_vector_bytes: most bytes that one report may have here.

    Raises:
        Refusal: it is malformed, or this version cannot do it.
    """
    try:
        config = _config_of(request)
        protocol_of(config)
        size = config.fixed_point.vector_bytes
    except ValueError as error:
        raise malformed(str(error)) from error
    if size > largest_vector_bytes:
        raise malformed(
            f"a report would have {size} bytes, and uploads may hold {largest_vector_bytes} together: "
            "raise FEDRECON_AGGREGATOR_STAGING_BYTES"
        )
    return config


def _config_of(request: OpenRequest) -> Config:
    _check_round(request)
    segments = request.layout.segments
    if len(segments) != len(request.segment_elements):
        raise ValueError(f"{len(segments)} segments, but the elements of {len(request.segment_elements)}")
    if any(len(segment.row_set_digest) not in {0, DIGEST_BYTES} for segment in segments):
        raise ValueError(f"the digest of a row set has {DIGEST_BYTES} bytes")
    names = [segment.parameter for segment in segments]
    if len(set(names)) != len(names):
        raise ValueError("two segments of the layout are of one parameter")
    if len({metric.name for metric in request.metrics}) != len(request.metrics):
        raise ValueError("two metric sums have one name")
    match request.kind:
        case coordinator_pb2.SESSION_KIND_TRAIN if not segments:
            raise ValueError("a training round needs segments: there is nothing to sum")
        case coordinator_pb2.SESSION_KIND_EVALUATE if segments:
            raise ValueError("reports of an evaluation have no body: the layout must be empty")
        case coordinator_pb2.SESSION_KIND_TRAIN | coordinator_pb2.SESSION_KIND_EVALUATE:
            pass
        case _:
            raise ValueError("the kind of the sessions is not stated")
    return Config(
        task=checked_name(request.round.task),
        round=request.round.round,
        attempt=request.round.attempt,
        kind=request.kind,
        protocol=request.secure_sum.protocol,
        segments=tuple(
            group_events.Segment(segment.parameter, elements, segment.bound, segment.row_set_digest)
            for segment, elements in zip(segments, request.segment_elements, strict=True)
        ),
        metrics=tuple(group_events.Metric(metric.name, metric.bound) for metric in request.metrics),
        ring_bits=request.secure_sum.ring_bits,
        maximum_reports=request.secure_sum.maximum_reports,
        maximum_weight=request.secure_sum.maximum_weight,
        minimum_group=request.secure_sum.minimum_group,
        cohort_size=request.cohort_size,
        plan_digest=request.plan_digest,
        checkpoint_digest=request.checkpoint_digest,
        expires_milliseconds=request.expires_unix_milliseconds,
        report_goal=request.report_goal,
        joining_ends_milliseconds=request.joining_ends_unix_milliseconds,
        phase_milliseconds=request.phase_milliseconds,
        part=request.round.part,
        drop_out=request.secure_sum.drop_out,
    )


def _check_round(request: OpenRequest) -> None:
    if (request.secure_sum.protocol == task_pb2.SUM_PROTOCOL_SECAGG_PLUS) != (request.report_goal > 0):
        raise ValueError("a masked sum, and no other, needs the reports that are wanted")
    if request.report_goal and (request.joining_ends_unix_milliseconds < 1 or request.phase_milliseconds < 1):
        raise ValueError("a masked sum needs the end of joining, and how long a phase may take")
    if not 0 <= request.secure_sum.drop_out <= MOST_DROP_OUT:
        raise ValueError(f"a drop-out of {request.secure_sum.drop_out}: at most {MOST_DROP_OUT} can be withstood")
    if request.cohort_size < 1 or request.round.round < 1 or request.round.attempt < 1:
        raise ValueError("cohort size, round and attempt count from 1")
    for name, digest in (("plan", request.plan_digest), ("checkpoint", request.checkpoint_digest)):
        if len(digest) != DIGEST_BYTES:
            raise ValueError(f"{name}_digest has {len(digest)} bytes, not {DIGEST_BYTES}")


def phase_of(summing: Summing) -> aggregator_pb2.GroupPhase.ValueType:
    """Returns a group's phase, as the contract calls it."""
    return _PHASES[summing.group.phase]


def progress_of(attempt: Attempt) -> list[GroupProgress]:
    """Returns what a coordinator is told of an attempt."""
    return [
        GroupProgress(
            group=summing.group.group,
            phase=phase_of(summing),
            joined=len(joined | summing.group.reports.keys()),
            reports=len(summing.group.reports),
            voided=len(summing.group.reports) if summing.group.phase is Phase.ABORTED else 0,
        )
        for summing, joined in zip(attempt.summings, attempt.joined, strict=True)
    ]


def fate_of(summing: Summing, session: bytes) -> ReportFate.ValueType:
    """Returns what became of a session's report, as far as an aggregator knows.

    That it is in a committed checkpoint only the coordinator can say: until then it is pending.
    """
    if session not in summing.group.reports:
        return coordinator_pb2.REPORT_FATE_UNSPECIFIED
    if summing.group.phase is Phase.ABORTED:
        return coordinator_pb2.REPORT_FATE_VOID
    return coordinator_pb2.REPORT_FATE_PENDING


def malformed(message: str) -> Refusal:
    """Returns the answer to a request that makes no sense."""
    return Refusal(
        grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST", f"{message}.", "Send what the contract describes."
    )
