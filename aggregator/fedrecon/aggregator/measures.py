"""What an aggregator counts beside what every service does. Names and labels follow `fedrecon.ops.metrics`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from prometheus_client import Counter, Gauge

from fedrecon.ops.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Measures:
    """The measures of one aggregator; `Measures.create` makes them.

    Attributes:
        shared: what every service counts; reports and rejections are among them.
        pending_bytes: bytes of uploads that are not in a sum yet.
        recovered_reports: acknowledged reports that were found again at a start.
        resumed_chunks: chunks that resumed uploads did not have to send again.
        voided_reports: acknowledged reports whose group was given up.
        update_norm: Euclidean norm of the last mean update.
    """

    shared: Metrics
    pending_bytes: Gauge
    recovered_reports: Counter
    resumed_chunks: Counter
    voided_reports: Counter
    update_norm: Gauge

    @classmethod
    def create(cls, shared: Metrics) -> Self:
        """Makes the measures of one aggregator in the registry of what every service counts."""
        registry = shared.registry
        return cls(
            shared=shared,
            pending_bytes=Gauge(
                "fedrecon_aggregator_pending_bytes", "Bytes of uploads that are not in a sum yet.", registry=registry
            ),
            recovered_reports=Counter(
                "fedrecon_aggregator_recovered_reports_total",
                "Acknowledged reports that were found again at a start.",
                registry=registry,
            ),
            resumed_chunks=Counter(
                "fedrecon_upload_chunks_resumed_total",
                "Chunks that resumed uploads did not have to send again.",
                registry=registry,
            ),
            voided_reports=Counter(
                "fedrecon_secure_sum_voided_total",
                "Acknowledged reports whose group was given up.",
                registry=registry,
            ),
            update_norm=Gauge(
                "fedrecon_update_norm", "Euclidean norm of the last mean update.", ("task",), registry=registry
            ),
        )
