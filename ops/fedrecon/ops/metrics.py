"""What a service counts, for Prometheus.

Rules: names begin with `fedrecon_`, values are in base units (seconds, bytes), labels are words from a fixed list, and
the name of a task. A device, a session or a round is never a label: it would be a trace of a person, and would grow
without end. Every service has its own registry, so that tests and several services in one process do not meet.
"""

from __future__ import annotations

import platform
import threading
from dataclasses import dataclass
from importlib.metadata import version
from types import TracebackType
from typing import Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

from fedrecon.ops.mistakes import UserMistake

_CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_PHASE_SECONDS = (0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0)
_REPORT_BYTES = tuple(float(1 << bits) for bits in range(10, 31, 2))


@dataclass(frozen=True, slots=True)
class Metrics:
    """The metrics of one service; `Metrics.create` makes them.

    Attributes:
        registry: Where they are collected; give it to `serve_metrics`.
    """

    registry: CollectorRegistry
    check_ins_total: Counter
    rounds_total: Counter
    round_current: Gauge
    round_devices: Gauge
    round_phase_seconds: Histogram
    round_dropout_ratio: Gauge
    round_overselection_ratio: Gauge
    round_last_commit_timestamp_seconds: Gauge
    assignments_total: Counter
    session_shapes_total: Counter
    device_versions: Gauge
    reports_total: Counter
    report_bytes: Histogram
    download_bytes_total: Counter
    update_rejected_total: Counter
    train_loss: Gauge
    model_version: Gauge
    model_bytes: Gauge
    grpc_server_handled_total: Counter
    grpc_server_handling_seconds: Histogram
    recommend_seconds: Histogram
    export_total: Counter
    build_info: Gauge

    @classmethod
    def create(cls, service: str, registry: CollectorRegistry | None = None) -> Self:
        """Make the metrics of one service.

        Args:
            service: Name of the service, a label of `fedrecon_build_info`.
            registry: Where to collect them; a new one by default.

        Returns:
            The metrics, all at zero.

        Example:
            >>> metrics = Metrics.create("coordinator")
            >>> metrics.check_ins_total.labels(task="films", outcome="assigned").inc()
            >>> metrics.registry.get_sample_value(
            ...     "fedrecon_check_ins_total", {"task": "films", "outcome": "assigned"}
            ... )
            1.0
        """
        registry = registry or CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=registry)

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(name, meaning, labels, namespace="fedrecon", registry=registry)

        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return Gauge(name, meaning, labels, namespace="fedrecon", registry=registry)

        def histogram(name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, meaning, labels, namespace="fedrecon", registry=registry, buckets=buckets)

        made = cls(
            registry=registry,
            check_ins_total=counter("check_ins_total", "Check-ins by outcome.", "task", "outcome"),
            rounds_total=counter("rounds_total", "Attempts of rounds that ended, by outcome.", "task", "outcome"),
            round_current=gauge("round_current", "Number of the round under way.", "task"),
            round_devices=gauge(
                "round_devices", "Devices of the round under way: target, assigned, reported.", "task", "state"
            ),
            round_phase_seconds=histogram(
                "round_phase_seconds", "Time that a round spent in a phase.", _PHASE_SECONDS, "task", "phase"
            ),
            round_dropout_ratio=gauge(
                "round_dropout_ratio", "Share of assigned devices that did not report, last round.", "task"
            ),
            round_overselection_ratio=gauge(
                "round_overselection_ratio", "Assigned devices over the report goal, last round.", "task"
            ),
            round_last_commit_timestamp_seconds=gauge(
                "round_last_commit_timestamp_seconds", "Unix time of the last committed round.", "task"
            ),
            assignments_total=counter("assignments_total", "Assignments by the state in which they ended.", "state"),
            session_shapes_total=counter("session_shapes_total", "Sessions that ended, by their shape.", "shape"),
            device_versions=gauge(
                "device_versions", "Devices that called here within two days, by SDK version, estimated.", "version"
            ),
            reports_total=counter("reports_total", "Reports by outcome.", "outcome"),
            report_bytes=histogram("report_bytes", "Size of an accepted report.", _REPORT_BYTES),
            download_bytes_total=counter("download_bytes_total", "Bytes of blobs sent to devices."),
            update_rejected_total=counter("update_rejected_total", "Updates refused, by reason.", "reason"),
            train_loss=gauge("train_loss", "Mean training loss of the last committed round.", "task"),
            model_version=gauge("model_version", "Round of the newest checkpoint.", "task"),
            model_bytes=gauge("model_bytes", "Size of the newest checkpoint.", "task"),
            grpc_server_handled_total=counter(
                "grpc_server_handled_total", "Calls that ended, by method and code.", "grpc_method", "grpc_code"
            ),
            grpc_server_handling_seconds=histogram(
                "grpc_server_handling_seconds", "Time from a call's arrival to its end.", _CALL_SECONDS, "grpc_method"
            ),
            recommend_seconds=histogram(
                "recommend_seconds", "Time of a recommendation, by stage.", _CALL_SECONDS, "stage"
            ),
            export_total=counter("export_total", "Exports of recommenders, by outcome.", "outcome"),
            build_info=gauge("build_info", "1; its labels say what runs.", "service", "version", "python"),
        )
        made.build_info.labels(service=service, version=version("fedrecon"), python=platform.python_version()).set(1)
        return made


class MetricsEndpoint:
    """The open `/metrics` of one service; a context manager that closes it.

    Attributes:
        address: `host:port` where it answers.
    """

    def __init__(self, server: WSGIServer, thread: threading.Thread, host: str) -> None:
        self._server = server
        self._thread = thread
        self.address = f"{host}:{server.server_port}"

    def close(self) -> None:
        """Stop answering and free the port; waits for its thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve_metrics(metrics: Metrics, host: str, port: int) -> MetricsEndpoint:
    """Answer `/metrics` from a thread of its own.

    Args:
        metrics: What to show.
        host: Address to open.
        port: Port to open; 0 for a free one.

    Returns:
        The open endpoint.

    Raises:
        UserMistake: The port cannot be opened.
    """
    try:
        server, thread = start_http_server(port, addr=host, registry=metrics.registry)
    except OSError as error:
        raise UserMistake(
            f"Metrics cannot be served on {host}:{port}: {error.strerror or error}.",
            "Set FEDRECON_METRICS_PORT to another port, to 0 for a free one, or to none.",
        ) from error
    return MetricsEndpoint(server, thread, host)
