"""What every service counts, for Prometheus, and the page on which Prometheus reads it.

Rules: those of `described_metrics`. Every service has its own registry, so that tests and several services in one
process do not meet; what only one service counts is in the `measures` of its room. The page is made once for all who
wait for it: a hundred scrapers cost little more than one.
"""

from __future__ import annotations

import platform
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from fedrecon.ops.described_metrics import DescribedRegistry
from fedrecon.ops.mistakes import UserMistake

CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
STORES = ("journal", "blobs")
STORE_OUTCOMES = ("ok", "full", "read_only", "away", "refused")

disable_created_metrics()  # type: ignore[no-untyped-call]  # when a series began is of no use here, and doubles counters


@dataclass(frozen=True, slots=True)
class Metrics:
    """The metrics that every service has; `Metrics.create` makes them.

    Attributes:
        described: Where they are collected, and rooms add their own.
    """

    described: DescribedRegistry
    grpc_server_handled_total: Counter
    grpc_server_handling_seconds: Histogram
    download_bytes_total: Counter
    storage_seconds: Histogram
    storage_up: Gauge
    storage_used_ratio: Gauge
    clock_skew_seconds: Gauge
    certificate_expiry_timestamp_seconds: Gauge
    build_info: Gauge

    @property
    def registry(self) -> CollectorRegistry:
        """Where they are collected; give it to `serve_metrics`."""
        return self.described.collected

    @classmethod
    def create(cls, service: str) -> Self:
        """Make the metrics of one service.

        Args:
            service: Name of the service, a label of `fedrecon_build_info`.

        Returns:
            The metrics, all at zero.

        Example:
            >>> metrics = Metrics.create("coordinator")
            >>> metrics.download_bytes_total.inc(10)
            >>> metrics.registry.get_sample_value("fedrecon_download_bytes_total")
            10.0
        """
        described = DescribedRegistry(CollectorRegistry(auto_describe=True))
        ProcessCollector(registry=described.collected)
        made = cls(
            described=described,
            grpc_server_handled_total=described.counter(
                "grpc_server_handled_total",
                "Calls that ended, by method and code.",
                grpc_method="`package.Service/Method` of the contract",
                grpc_code="name of gRPC's status",
            ),
            grpc_server_handling_seconds=described.histogram(
                "grpc_server_handling_seconds",
                "Time from a call's arrival to its end; calls that wait for a selection or a group do so in it.",
                CALL_SECONDS,
                grpc_method="`package.Service/Method` of the contract",
            ),
            download_bytes_total=described.counter("download_bytes_total", "Bytes of blobs sent from here."),
            storage_seconds=described.histogram(
                "storage_seconds",
                "Time that one trip to the journal, or one operation on blobs, took, by how it ended.",
                CALL_SECONDS,
                store=STORES,
                outcome=STORE_OUTCOMES,
            ),
            storage_up=described.gauge(
                "storage_up", "1 if the store did what it was asked for last, 0 if not.", store=STORES
            ),
            storage_used_ratio=described.gauge(
                "storage_used_ratio",
                "Share of the journal's memory, or of the disk that blobs lie on, that is used.",
                only="of blobs only where they lie in a folder",
                store=STORES,
            ),
            clock_skew_seconds=described.gauge(
                "clock_skew_seconds", "This machine's clock less that of the journal's server."
            ),
            certificate_expiry_timestamp_seconds=described.gauge(
                "certificate_expiry_timestamp_seconds",
                "Unix time at which the certificate expires that this service shows.",
                only="only with TLS",
            ),
            build_info=described.gauge(
                "build_info",
                "1; its labels say what runs.",
                service=("coordinator", "aggregator", "inference", "console"),
                version="version of fedrecon",
                python="version of Python",
            ),
        )
        made.build_info.labels(service=service, version=version("fedrecon"), python=platform.python_version()).set(1)
        return made


class _Page:
    """The text of all metrics, made at most twice for however many wait for it at a time.

    Args:
        registry: What is shown.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._making = threading.Lock()
        self._made: dict[str, tuple[float, bytes]] = {}

    def read(self, accepted: str) -> tuple[str, bytes]:
        """Return the form that a scraper accepts, and a text whose making began after this call."""
        encode, form = choose_encoder(accepted)
        asked = time.monotonic()
        with self._making:
            began, text = self._made.get(form, (0.0, b""))
            if began < asked:
                began = time.monotonic()
                text = encode(self._registry)
                self._made[form] = began, text
            return form, text


class _Server(ThreadingMixIn, WSGIServer):
    """Answers each scraper in a thread of its own, so that a slow one holds up nobody."""

    daemon_threads = True
    request_queue_size = 128


class _ServerOfIpv6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    """Answers without a line for each scrape."""

    timeout = 10.0

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Say nothing."""


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
    page = _Page(metrics.registry)

    def answer(environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environment["PATH_INFO"] not in {"/", "/metrics"}:
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"see /metrics\n"]
        form, text = page.read(environment.get("HTTP_ACCEPT", ""))
        start("200 OK", [("Content-Type", form)])
        return [text]

    try:
        server = make_server(host, port, answer, _ServerOfIpv6 if ":" in host else _Server, _Quiet)
    except OSError as error:
        raise UserMistake(
            f"Metrics cannot be served on {host}:{port}: {error.strerror or error}.",
            "Set FEDRECON_METRICS_PORT to another port, to 0 for a free one, or to none.",
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    return MetricsEndpoint(server, thread, host)
