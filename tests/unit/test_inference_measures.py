"""What inference tells of itself: what it serves, and for how long something newer has waited."""

from __future__ import annotations

from fedrecon.inference.measures import Measures
from fedrecon.ops.metrics import Metrics


def test_what_is_served_grows_stale_while_something_else_is_live() -> None:
    metrics, now = Metrics.create("inference"), [1_000.0]
    measures = Measures(metrics, lambda: now[0])

    def told(name: str) -> float | None:
        return metrics.registry.get_sample_value(f"fedrecon_{name}", {"task": "films"})

    assert told("model_staleness_seconds") is None
    measures.note_live("films", b"first")
    now[0] += 5
    assert told("model_staleness_seconds") == 5
    measures.note_served("films", 1, b"first", 700)
    assert (told("model_staleness_seconds"), told("served_model_version"), told("served_model_bytes")) == (0, 1, 700)
    now[0] += 60
    measures.note_live("films", b"first")
    assert told("model_staleness_seconds") == 0
    measures.note_live("films", b"second")
    now[0] += 7
    measures.note_live("films", b"third")
    now[0] += 3
    assert told("model_staleness_seconds") == 10
    measures.note_served("films", 2, b"second", 700)
    assert told("model_staleness_seconds") == 10, "the third is live already"
    measures.note_served("films", 3, b"third", 700)
    assert told("model_staleness_seconds") == 0
