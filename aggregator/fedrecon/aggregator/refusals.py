"""What devices are told when a report cannot be taken or kept."""

from __future__ import annotations

import grpc

from fedrecon.ops.boundary import Refusal


def round_closed() -> Refusal:
    """Returns the answer to a report that comes too late."""
    return Refusal(
        grpc.StatusCode.FAILED_PRECONDITION,
        "ROUND_CLOSED",
        "The round takes no more reports.",
        "End the session; the coordinator says when to come back.",
    )


def round_interrupted() -> Refusal:
    """Returns the answer to reports that are on their way when the aggregator stops."""
    return Refusal(
        grpc.StatusCode.UNAVAILABLE,
        "STOPPING",
        "The aggregator stops before the report is durable.",
        "Ask for the upload's status and go on from there.",
        retry_milliseconds=(1_000, 5_000),
    )


def storage_full() -> Refusal:
    """Returns the answer to reports that found the disk full."""
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "STORAGE_FULL",
        "The aggregator's disk is full: the report was not kept.",
        "Upload it again later; the operator frees space or enlarges the disk.",
        retry_milliseconds=(10_000, 60_000),
    )


def storage_failed(error: OSError) -> Refusal:
    """Returns the answer to reports that could not be written."""
    return Refusal(
        grpc.StatusCode.UNAVAILABLE,
        "STORAGE_FAILED",
        f"The aggregator's disk does not write ({error.strerror}): the report was not kept.",
        "Upload it again later; the operator looks at the disk.",
        retry_milliseconds=(10_000, 60_000),
    )


def sum_lost(group: bytes, error: Exception) -> Refusal:
    """Returns the answer to a merge of a group whose sum is gone."""
    return Refusal(
        grpc.StatusCode.DATA_LOSS,
        "SUM_LOST",
        f"The sum of group {group.hex()} cannot be read: {error}.",
        "Its reports are void: the round goes on without them, or is tried again.",
    )


def taken_over() -> Refusal:
    """Returns the answer to reports of a group that another aggregator holds now."""
    return Refusal(
        grpc.StatusCode.ABORTED,
        "GROUP_MOVED",
        "Another aggregator holds the group now.",
        "Ask the coordinator which one, and go on there.",
    )
