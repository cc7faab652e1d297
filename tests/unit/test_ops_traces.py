"""Traces: off by default, the same ids in every service, and a package that is asked for by name."""

from __future__ import annotations

import sys

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.settings import Settings
from fedrecon.ops.traces import Attempt, Traces, open_traces, span, tell_span, use_traces

ATTEMPT = Attempt("films", 3, 1)
PACKAGE = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"


def test_no_traces_are_made_unless_somebody_names_a_collector() -> None:
    exporter = InMemorySpanExporter()
    open_traces("coordinator", Settings().traces_url)()
    with span("upload", ATTEMPT, bytes=5):
        tell_span("reporting", ATTEMPT, 0, 5)
    assert not exporter.get_finished_spans()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(UserMistake, match="FEDRECON_TRACES_URL") as caught:
        open_traces("coordinator", "http://127.0.0.1:4317")
    assert "fedrecon[traces]" in caught.value.advice


def test_services_that_share_no_word_put_spans_into_one_trace() -> None:
    exporters = [InMemorySpanExporter(), InMemorySpanExporter()]
    for service, exporter in zip(("coordinator", "aggregator"), exporters, strict=True):
        end = use_traces(Traces(service, SimpleSpanProcessor(exporter)))
        tell_span("reporting", ATTEMPT, 1_000, 4_000)
        tell_span("round", ATTEMPT, 1_000, 5_000, is_root=True, outcome="committed")
        end()
    (phase, root), (other, _) = (exporter.get_finished_spans() for exporter in exporters)
    assert phase.context.trace_id == root.context.trace_id == other.context.trace_id
    assert (root.start_time, root.end_time) == (1_000_000_000, 5_000_000_000)
    assert phase.parent is not None
    assert phase.parent.span_id == root.context.span_id
    assert phase.context.span_id != other.context.span_id
    assert Attempt("films", 3, 2).trace_id != ATTEMPT.trace_id


def test_a_block_that_raises_is_told_as_one() -> None:
    exporter = InMemorySpanExporter()
    end = use_traces(Traces("aggregator", SimpleSpanProcessor(exporter)))
    with pytest.raises(ZeroDivisionError), span("merge", ATTEMPT, groups=2):
        _ = 1 / 0
    end()
    (told,) = exporter.get_finished_spans()
    assert (told.attributes or {})["fedrecon.succeeded"] is False
