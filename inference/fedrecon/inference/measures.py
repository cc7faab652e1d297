"""What inference counts, by the rules of `fedrecon.ops.described_metrics`; never who asked, or what was answered."""

from __future__ import annotations

import time
from collections.abc import Callable

from fedrecon.ops.described_metrics import TASK
from fedrecon.ops.metrics import CALL_SECONDS, Metrics

EXPORT_OUTCOMES = ("published", "refused", "failed")
STAGES = ("waiting", "model")


class Measures:
    """The measures of one inference service.

    Args:
        shared: What every service counts.
        now: Unix seconds.

    Attributes:
        recommend_seconds: Time of a recommendation, by stage.
        exports: Exports by outcome.
    """

    def __init__(self, shared: Metrics, now: Callable[[], float] = time.time) -> None:
        self._now = now
        make = shared.described
        self.recommend_seconds = make.histogram(
            "recommend_seconds",
            "Time of a recommendation: waiting for a thread, and the model, which reconstructs and scores in one run.",
            CALL_SECONDS,
            stage=STAGES,
        )
        self.exports = make.counter("export_total", "Exports of recommenders, by outcome.", outcome=EXPORT_OUTCOMES)
        self._served = make.gauge("served_model_version", "Round that made the checkpoint that is served.", task=TASK)
        self._bytes = make.gauge("served_model_bytes", "Size of the recommender that is served.", task=TASK)
        self._staleness = make.gauge(
            "model_staleness_seconds",
            "For how long another checkpoint has been live than the one that is served; 0: it is the one.",
            task=TASK,
        )
        self._live: dict[str, bytes] = {}
        self._served_digests: dict[str, bytes] = {}
        self._stale_since: dict[str, float] = {}

    def note_live(self, task: str, checkpoint: bytes) -> None:
        """Notes which checkpoint should be served.

        Args:
            task: Whose.
            checkpoint: Its digest.
        """
        if task not in self._live:
            self._stale_since[task] = 0.0
            self._staleness.labels(task=task).set_function(lambda: self._stale_for(task))
        self._live[task] = checkpoint
        self._compare(task)

    def note_served(self, task: str, round_number: int, checkpoint: bytes, size: int) -> None:
        """Notes which checkpoint is served from now on.

        Args:
            task: Whose.
            round_number: The round that made it.
            checkpoint: Its digest.
            size: Bytes of the recommender.
        """
        self._served_digests[task] = checkpoint
        self._served.labels(task=task).set(round_number)
        self._bytes.labels(task=task).set(size)
        self._compare(task)

    def _compare(self, task: str) -> None:
        if self._live.get(task) == self._served_digests.get(task):
            self._stale_since[task] = 0.0
        elif not self._stale_since.get(task):
            self._stale_since[task] = self._now()

    def _stale_for(self, task: str) -> float:
        since = self._stale_since[task]
        return self._now() - since if since else 0.0
