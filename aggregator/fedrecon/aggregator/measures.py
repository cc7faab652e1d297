"""What an aggregator counts, by the rules of `fedrecon.ops.described_metrics`.

Rules: of a single update nothing is shown that a masked sum hides. Its norm, and refusals for what is in it, exist
only under `trusted`, where the aggregator sees updates; the norm of a sum exists always.
"""

from __future__ import annotations

from fedrecon.aggregator.group_events import Event as GroupEvent
from fedrecon.aggregator.group_events import RosterFrozen, SharesFixed, UploadsEnded
from fedrecon.aggregator.groups import Group
from fedrecon.ops.described_metrics import TASK
from fedrecon.ops.metrics import Metrics
from fedrecon.v1.task_pb2 import SUM_PROTOCOL_SECAGG_PLUS

REPORT_OUTCOMES = ("accepted", "duplicate", "late", "invalid", "unauthorized", "too_large")
REJECTION_REASONS = ("shape", "norm", "weight")
MASKED_PHASES = ("joining", "sharing", "uploading", "unmasking")

_REPORT_BYTES = tuple(float(1 << bits) for bits in range(10, 31, 2))
_NORMS = tuple(10.0**exponent * step for exponent in range(-4, 4) for step in (1.0, 3.0))
_PHASE_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_ONLY_TRUSTED = "only under `trusted`"
_ONLY_MASKED = "only under a masked sum"


class Measures:
    """The measures of one aggregator.

    Args:
        shared: What every service counts.

    Attributes:
        reports: Reports by outcome.
        report_bytes: Size of an accepted report.
        rejected: Updates refused for what is in them, by reason.
        pending_bytes: Bytes of uploads that are not in a sum yet.
        recovered_reports: Acknowledged reports that were found again at a start.
        resumed_chunks: Chunks that resumed uploads did not have to send again.
        voided_reports: Acknowledged reports whose group was given up.
        update_norm: Norm of single updates.
        sum_norm: Norm of the last mean update.
    """

    def __init__(self, shared: Metrics) -> None:
        make = shared.described
        self.reports = make.counter("reports_total", "Reports by outcome.", outcome=REPORT_OUTCOMES)
        self.report_bytes = make.histogram("report_bytes", "Size of an accepted report.", _REPORT_BYTES)
        self.rejected = make.counter(
            "update_rejected_total",
            "Updates refused, by reason.",
            only="`norm` and `weight` only under `trusted`: under a masked sum the device checks them",
            reason=REJECTION_REASONS,
        )
        self.pending_bytes = make.gauge("aggregator_pending_bytes", "Bytes of uploads that are not in a sum yet.")
        self.recovered_reports = make.counter(
            "aggregator_recovered_reports_total", "Acknowledged reports that were found again at a start."
        )
        self.resumed_chunks = make.counter(
            "upload_chunks_resumed_total", "Chunks that resumed uploads did not have to send again."
        )
        self.voided_reports = make.counter(
            "secure_sum_voided_total", "Acknowledged reports whose group was given up, masked or not."
        )
        self.update_norm = make.histogram(
            "update_norm", "Euclidean norm of an update, over its weight.", _NORMS, only=_ONLY_TRUSTED
        )
        self.sum_norm = make.gauge("sum_norm", "Euclidean norm of the last mean update.", task=TASK)
        self._clients = make.gauge(
            "secure_sum_clients",
            "Members that the last masked group here had after a phase.",
            only=_ONLY_MASKED,
            phase=MASKED_PHASES[:3],
        )
        self._dropouts = make.counter(
            "secure_sum_dropouts_total",
            "Members of masked groups that were lost in a phase.",
            only=_ONLY_MASKED,
            phase=MASKED_PHASES[1:3],
        )
        self._seconds = make.histogram(
            "secure_sum_seconds",
            "Time that masked groups spent in a phase.",
            _PHASE_SECONDS,
            only=_ONLY_MASKED,
            phase=MASKED_PHASES,
        )

    def note_group(self, before: Group, after: Group, event: GroupEvent) -> None:
        """Counts what an event of a group means, if the group is masked.

        Args:
            before: The group before it.
            after: The group after it.
            event: What happened.
        """
        if before.config.protocol != SUM_PROTOCOL_SECAGG_PLUS:
            return
        phase = before.phase.name.lower()
        if after.phase is not before.phase and phase in MASKED_PHASES:
            spent = after.phase_since_milliseconds - before.phase_since_milliseconds
            self._seconds.labels(phase=phase).observe(spent / 1000)
        match event:
            case RosterFrozen(sessions=sessions):
                self._clients.labels(phase="joining").set(len(sessions))
            case SharesFixed(sharers=sharers):
                self._note_lost("sharing", len(before.indices), len(sharers))
            case UploadsEnded() if before.shared is not None:
                self._note_lost("uploading", len(before.shared.sharers), len(before.reports))
            case _:
                pass

    def _note_lost(self, phase: str, came: int, stayed: int) -> None:
        self._clients.labels(phase=phase).set(stayed)
        self._dropouts.labels(phase=phase).inc(came - stayed)
