"""Metrics that say what they are: name, meaning, and every word that a label may have.

Rules: names begin with `fedrecon_`, values are in base units (seconds, bytes), labels are words from a fixed list, or
the name of something that an operator made (a task, a version of a program). A device, a session or a round is never a
label: it would be a trace of a person, and would grow without end. What has words only is shown from the start, at
zero: a rate then sees the first time, and nobody has to ask whether a missing series is a zero. Words that are not
listed are refused where they are used (`Words`), so a list that is told to people is a list that holds.

The page `docs/metrics.md`, and the checks of dashboards and alerts, are made from these descriptions.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

Words = tuple[str, ...]
"""All values that a label may have."""

TASK = "name of the task"
"""Stands for the words of a label that has the name of a task."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a metric is.

    Attributes:
        name: As Prometheus has it.
        kind: `counter`, `gauge` or `histogram`.
        meaning: One sentence.
        labels: Their words; or, where these are not ours to list, what they are.
        only: When it exists, if not always.
        buckets: Upper bounds of a histogram's buckets.
    """

    name: str
    kind: str
    meaning: str
    labels: Mapping[str, Words | str]
    only: str = ""
    buckets: tuple[float, ...] = ()


@dataclass(slots=True)
class DescribedRegistry:
    """Where a service collects its metrics, with their descriptions.

    Attributes:
        collected: What Prometheus is shown.
        descriptions: In the order in which they were made.

    Example:
        >>> registry = DescribedRegistry(CollectorRegistry())
        >>> exports = registry.counter("export_total", "Exports, by outcome.", outcome=("published", "failed"))
        >>> exports.labels(outcome="published").inc()
        >>> registry.collected.get_sample_value("fedrecon_export_total", {"outcome": "failed"})
        0.0
    """

    collected: CollectorRegistry
    descriptions: list[Description] = field(default_factory=list)

    def counter(self, name: str, meaning: str, *, only: str = "", **labels: Words | str) -> Counter:
        """Make a metric that only grows; its name ends in `_total`."""
        self._describe("counter", name, meaning, labels, only)
        made = Counter(name, meaning, tuple(labels), namespace="fedrecon", registry=self.collected)
        _begin(made, labels)
        return made

    def gauge(self, name: str, meaning: str, *, only: str = "", **labels: Words | str) -> Gauge:
        """Make a metric that goes up and down."""
        self._describe("gauge", name, meaning, labels, only)
        return Gauge(name, meaning, tuple(labels), namespace="fedrecon", registry=self.collected)

    def histogram(
        self, name: str, meaning: str, buckets: tuple[float, ...], *, only: str = "", **labels: Words | str
    ) -> Histogram:
        """Make a metric that counts values by their size."""
        self._describe("histogram", name, meaning, labels, only, buckets)
        made = Histogram(name, meaning, tuple(labels), namespace="fedrecon", registry=self.collected, buckets=buckets)
        _begin(made, labels)
        return made

    def _describe(
        self,
        kind: str,
        name: str,
        meaning: str,
        labels: Mapping[str, Words | str],
        only: str,
        buckets: tuple[float, ...] = (),
    ) -> None:
        self.descriptions.append(Description(f"fedrecon_{name}", kind, meaning, dict(labels), only, buckets))


def _begin(made: Counter | Histogram, labels: Mapping[str, Words | str]) -> None:
    """Show every combination of words at zero, where all labels have words."""
    words = [each for each in labels.values() if not isinstance(each, str)]
    if labels and len(words) == len(labels):
        for combination in itertools.product(*words):
            made.labels(*combination)
