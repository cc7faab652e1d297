"""Metrics as Prometheus reads them."""

from __future__ import annotations

import re
import socket
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Semaphore

import pytest
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from fedrecon.ops.described_metrics import TASK
from fedrecon.ops.metrics import Metrics, _Page, serve_metrics
from fedrecon.ops.mistakes import UserMistake


def read(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def test_the_page_shows_what_was_counted() -> None:
    metrics = Metrics.create("coordinator")
    metrics.grpc_server_handled_total.labels(grpc_method="Hear", grpc_code="OK").inc(2)
    metrics.storage_seconds.labels(store="journal", outcome="ok").observe(0.5)
    with serve_metrics(metrics, "127.0.0.1", 0) as endpoint:
        page = read(endpoint.address)
    assert 'fedrecon_grpc_server_handled_total{grpc_code="OK",grpc_method="Hear"} 2.0' in page
    assert 'fedrecon_storage_seconds_sum{outcome="ok",store="journal"} 0.5' in page
    assert re.search(r'fedrecon_build_info\{python="3[^"]+",service="coordinator",version="[^"]+"\} 1.0', page)
    assert list(text_string_to_metric_families(page))


def test_what_has_words_only_is_shown_from_the_start() -> None:
    metrics = Metrics.create("coordinator")
    shown = metrics.described.counter("made_total", "Made.", kind=("one", "other"))
    metrics.described.counter("of_tasks_total", "Of tasks.", task=TASK, kind=("one", "other"))
    assert metrics.registry.get_sample_value("fedrecon_made_total", {"kind": "other"}) == 0.0
    assert metrics.registry.get_sample_value("fedrecon_of_tasks_total", {"task": "", "kind": "one"}) is None
    shown.labels(kind="one").inc()
    assert metrics.registry.get_sample_value("fedrecon_made_total", {"kind": "one"}) == 1.0


def test_a_hundred_scrapers_cost_little_more_than_one() -> None:
    registry, asking, go_on = CollectorRegistry(), Semaphore(0), Event()
    collected: list[int] = []

    class Slow:
        def collect(self) -> Iterator[Metric]:
            collected.append(1)
            go_on.wait(60)
            yield GaugeMetricFamily("fedrecon_slow", "Slow to tell.", value=len(collected))

    registry.register(Slow())
    page = _Page(registry)

    def scrape() -> bytes:
        asking.release()
        return page.read("")[1]

    with ThreadPoolExecutor(100) as scrapers:
        answers = [scrapers.submit(scrape) for _ in range(100)]
        for _ in range(100):
            assert asking.acquire(timeout=60)
        go_on.set()
        assert all(b"fedrecon_slow" in each.result(60) for each in answers)
    # One that is under way when they ask, and one for all of them; whoever was held up in between asks for one more.
    assert len(collected) < 50


def test_a_page_is_never_older_than_the_question() -> None:
    metrics = Metrics.create("coordinator")
    with serve_metrics(metrics, "127.0.0.1", 0) as endpoint:
        for count in range(1, 4):
            metrics.download_bytes_total.inc()
            assert f"fedrecon_download_bytes_total {count}.0" in read(endpoint.address)


def test_two_services_in_one_process_do_not_meet() -> None:
    first, second = Metrics.create("coordinator"), Metrics.create("aggregator")
    first.download_bytes_total.inc(10)
    assert second.registry.get_sample_value("fedrecon_download_bytes_total") == 0


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserMistake, match=str(port)) as caught:
            serve_metrics(Metrics.create("coordinator"), "127.0.0.1", port)
    assert "FEDRECON_METRICS_PORT" in caught.value.advice
