"""Metrics as Prometheus reads them."""

from __future__ import annotations

import re
import socket
import urllib.request
from dataclasses import fields

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedrecon.ops.metrics import Metrics, serve_metrics
from fedrecon.ops.mistakes import UserMistake


def read(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def test_the_page_shows_what_was_counted() -> None:
    metrics = Metrics.create("coordinator")
    metrics.rounds_total.labels(task="films", outcome="committed").inc(2)
    metrics.report_bytes.observe(5000)
    with serve_metrics(metrics, "127.0.0.1", 0) as endpoint:
        page = read(endpoint.address)
    assert 'fedrecon_rounds_total{outcome="committed",task="films"} 2.0' in page
    assert "fedrecon_report_bytes_sum 5000.0" in page
    assert re.search(r'fedrecon_build_info\{python="3[^"]+",service="coordinator",version="[^"]+"\} 1.0', page)
    assert list(text_string_to_metric_families(page))


def test_names_in_code_are_names_on_the_page() -> None:
    metrics = Metrics.create("coordinator")
    on_page = {family.name for family in metrics.registry.collect()}
    for one in fields(Metrics):
        if one.name != "registry":
            assert f"fedrecon_{one.name.removesuffix('_total')}" in on_page


def test_no_metric_has_a_label_for_a_device_or_a_round() -> None:
    metrics = Metrics.create("coordinator")
    for one in fields(Metrics):
        labels = set(getattr(getattr(metrics, one.name), "_labelnames", ()))
        assert not labels & {"device", "session", "round", "client"}


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
