"""Writes docs/metrics.md from the descriptions in the code: `python docs/write_metrics.py`."""

from __future__ import annotations

from pathlib import Path

from fedrecon.aggregator.measures import Measures as AggregatorMeasures
from fedrecon.coordinator.measures import Measures as CoordinatorMeasures
from fedrecon.inference.measures import Measures as InferenceMeasures
from fedrecon.ops.described_metrics import Description
from fedrecon.ops.metrics import Metrics

PAGE = Path(__file__).with_name("metrics.md")

ROOMS = {"coordinator": CoordinatorMeasures, "aggregator": AggregatorMeasures, "inference": InferenceMeasures}
_EVERY = "every service"
_HEADINGS = {
    _EVERY: "Every service",
    "coordinator": "Coordinator",
    "aggregator": "Aggregator",
    "inference": "Inference",
}
_TEXT = """# Metrics

Written from the code; do not edit. After a change: `python docs/write_metrics.py`.

Every service serves these for Prometheus on `FEDRECON_METRICS_PORT`; `fedrecon up` prints the addresses, and writes
them for Prometheus into `.fedrecon/metrics_targets.json`. No label is ever a device, a session or a round. What a task
stands at is told by the coordinator that leads it, and by no other: `max by (task) (...)` over all of them is right in
every moment. What is counted is counted where it happened: sum it. Counters whose labels have words only begin at 0.

Give every target the label `role` (`coordinator`, `aggregator`, `inference`): some alerts and panels use it.

Whom drop-out leaves out is told of apps that want it (`Device(device_class=...)`): with the end of a session goes the
class that the app gives the device, and in three steps how many examples it has. The coordinator keeps neither, counts
each by itself and never both together, and lets a count move in steps of 20 sessions only, so that no two looks differ
by fewer. The receipt says what was told. Devices that vanish tell nothing.

[Prometheus](../ops/prometheus/prometheus.yml), [rules](../ops/prometheus/rules.yml),
[alerts](../ops/prometheus/alerts.yml) with their [runbooks](runbooks.md), and [dashboards](../ops/grafana/README.md)
lie in `ops/`. Beside these there are the usual `process_...` metrics of the client library: CPU, memory, open files,
start.
{tables}"""


def described() -> dict[str, tuple[str, Description]]:
    """Returns every metric by its name: where it is told, and what it is."""
    found: dict[str, tuple[str, Description]] = {}
    for room, measures in ROOMS.items():
        metrics = Metrics.create(room)
        shared = len(metrics.described.descriptions)
        measures(metrics)
        for place, each in enumerate(metrics.described.descriptions):
            found[each.name] = (_EVERY if place < shared else room, each)
    return found


def page() -> str:
    """Returns the page as the code is now."""
    tables = ""
    for where, heading in _HEADINGS.items():
        tables += f"\n## {heading}\n| metric | kind | what | labels |\n|---|---|---|---|\n"
        tables += "".join(_row(each) for told, each in described().values() if told == where)
    return _TEXT.format(tables=tables)


def _row(each: Description) -> str:
    meaning = each.meaning + (f" ({each.only})" if each.only else "")
    if each.buckets:
        meaning += f" Buckets from {each.buckets[0]:g} to {each.buckets[-1]:g}."
    labels = "; ".join(
        f"`{label}`: {words if isinstance(words, str) else ', '.join(f'`{word}`' for word in words)}"
        for label, words in each.labels.items()
    )
    return f"| `{each.name}` | {each.kind} | {meaning} | {labels} |\n"


if __name__ == "__main__":
    PAGE.write_text(page())
