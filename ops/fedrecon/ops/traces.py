"""OpenTelemetry traces: what became of a round's reports, from check-in to checkpoint, over all services.

Off unless `FEDRECON_TRACES_URL` names a collector; then it needs `fedrecon[traces]`. A trace is one attempt of a round.
Its id follows from task, round and attempt, so every service puts its spans into the same trace without a word between
them: devices carry nothing, and need not know. The root is told by the coordinator when the attempt has ended.

Rules: a span says task, round, attempt, and numbers or words from fixed lists; never a device, a session, a token or a
group. So the spans of one report cannot be told from another's, and no trace follows a person from round to round.

Source: OpenTelemetry's specification of traces, https://opentelemetry.io/docs/specs/otel/trace/api/.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fedrecon.ops.mistakes import UserMistake

_TRACE_BYTES, _SPAN_BYTES = 16, 8
_NANOSECONDS = 1_000_000

Attribute = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Attempt:
    """Whose trace a span belongs to.

    Attributes:
        task: Name of the task.
        round: Number of the round.
        attempt: Attempt of the round.
    """

    task: str
    round: int
    attempt: int

    @property
    def trace_id(self) -> int:
        """Id of the trace, the same for every service."""
        return int.from_bytes(self._digest("trace")[:_TRACE_BYTES], "big")

    @property
    def root_id(self) -> int:
        """Id of the span that all others of the trace are below."""
        return int.from_bytes(self._digest("root")[:_SPAN_BYTES], "big")

    def _digest(self, what: str) -> bytes:
        return hashlib.sha256(f"fedrecon {what}\0{self.task}\0{self.round}\0{self.attempt}".encode()).digest()


class Traces:
    """Spans of one service, kept by an OpenTelemetry provider.

    Args:
        service: Name of the service.
        processor: What takes spans that have ended, an OpenTelemetry `SpanProcessor`.
    """

    def __init__(self, service: str, processor: Any) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        self._ids = _make_ids()
        resource = Resource.create({"service.name": f"fedrecon-{service}"})
        self._provider = TracerProvider(resource=resource, id_generator=self._ids)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("fedrecon")

    def tell(self, name: str, of: Attempt, began: int, ended: int, *, is_root: bool, **said: Attribute) -> None:
        """Tell a span that has ended.

        Args:
            name: What was done.
            of: The attempt that it was done for.
            began: Unix nanoseconds.
            ended: Unix nanoseconds.
            is_root: Whether it is the attempt itself.
            **said: Numbers and words about it.
        """
        from opentelemetry import trace

        above = trace.SpanContext(of.trace_id, of.root_id, is_remote=True, trace_flags=trace.TraceFlags(1))
        context = None if is_root else trace.set_span_in_context(trace.NonRecordingSpan(above))
        self._ids.root = of if is_root else None
        attributes: dict[str, Attribute] = {
            "fedrecon.task": of.task,
            "fedrecon.round": of.round,
            "fedrecon.attempt": of.attempt,
        }
        attributes |= {f"fedrecon.{key}": value for key, value in said.items()}
        span = self._tracer.start_span(name, context, attributes=attributes, start_time=began)
        self._ids.root = None
        span.end(ended)

    def close(self) -> None:
        """Hand out what is left; takes a while if the collector is away."""
        self._provider.shutdown()


_current: list[Traces] = []
"""The traces of this process, if it makes any: one or none."""


def _make_ids() -> Any:
    """Return what gives spans their ids: random ones, but for the root of an attempt."""
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Ids(RandomIdGenerator):
        root: Attempt | None = None

        def generate_trace_id(self) -> int:
            return super().generate_trace_id() if self.root is None else self.root.trace_id

        def generate_span_id(self) -> int:
            return super().generate_span_id() if self.root is None else self.root.root_id

    return Ids()


def open_traces(service: str, url: str) -> Callable[[], None]:
    """Begin to send traces from this process.

    Args:
        service: Name of the service.
        url: A collector that speaks OTLP over gRPC, for example `http://127.0.0.1:4317`; empty: none is made.

    Returns:
        What ends it.

    Raises:
        UserMistake: The package for it is not installed.
    """
    if not url:
        return lambda: None
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise UserMistake(
            f"FEDRECON_TRACES_URL={url}: traces need a package that is not installed.", "pip install 'fedrecon[traces]'"
        ) from error
    exporter = OTLPSpanExporter(endpoint=url, insecure=not url.startswith("https://"))
    return use_traces(Traces(service, BatchSpanProcessor(exporter)))


def use_traces(traces: Traces) -> Callable[[], None]:
    """Let this process tell its spans to these traces, until what is returned is called."""
    _current[:] = [traces]

    def end() -> None:
        _current.clear()
        traces.close()

    return end


def tell_span(name: str, of: Attempt, began: int, ended: int, *, is_root: bool = False, **said: Attribute) -> None:
    """Tell what was done from one instant to another, if traces are made.

    Args:
        name: What was done.
        of: The attempt that it was done for.
        began: Unix milliseconds.
        ended: Unix milliseconds.
        is_root: Whether it is the attempt itself.
        **said: Numbers and words about it; never who it was about.
    """
    if _current:
        _current[0].tell(name, of, began * _NANOSECONDS, ended * _NANOSECONDS, is_root=is_root, **said)


@contextlib.contextmanager
def span(name: str, of: Attempt, **said: Attribute) -> Iterator[None]:
    """Tell how long the block took, and whether it raised, if traces are made.

    Args:
        name: What is done.
        of: The attempt that it is done for.
        **said: As in `tell_span`.
    """
    if not _current:
        yield
        return
    began, ended_well = time.time_ns(), False
    try:
        yield
        ended_well = True
    finally:
        if _current:
            _current[0].tell(name, of, began, time.time_ns(), is_root=False, succeeded=ended_well, **said)
