"""Log lines as a collector reads them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from fedrecon.ops.logs import configure_logs, logger_of


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_json_with_service_level_and_utc_time() -> None:
    stream = io.StringIO()
    configure_logs("coordinator", stream=stream)
    logger_of("room.module").info("round committed", round=3, task="films", path=Path("blobs/a"))
    (line,) = lines(stream)
    moment = datetime.fromisoformat(line.pop("timestamp"))
    assert abs((datetime.now(UTC) - moment).total_seconds()) < 60
    assert line == {
        "event": "round committed",
        "round": 3,
        "task": "films",
        "path": "blobs/a",
        "level": "info",
        "logger": "room.module",
        "service": "coordinator",
    }


def test_lines_of_libraries_take_the_same_road() -> None:
    stream = io.StringIO()
    configure_logs("aggregator", stream=stream)
    logging.getLogger("some.library").warning("slow answer after %s tries", 3)
    (line,) = lines(stream)
    assert (line["event"], line["service"], line["level"]) == ("slow answer after 3 tries", "aggregator", "warning")


def test_less_than_the_level_is_silent() -> None:
    stream = io.StringIO()
    configure_logs("coordinator", level="warning", stream=stream)
    log = logger_of("room")
    log.info("quiet")
    log.error("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]


@pytest.mark.parametrize("key", ["device_key", "session", "Session", "examples", "tensor", "token", "seal_key"])
def test_what_belongs_to_a_device_is_withheld(key: str) -> None:
    stream = io.StringIO()
    configure_logs("coordinator", stream=stream)
    logger_of("room").info("report accepted", **{key: "4f2a"})
    assert lines(stream)[0][key] == "withheld"
    assert "4f2a" not in stream.getvalue()


def test_bound_values_are_withheld_too() -> None:
    stream = io.StringIO()
    configure_logs("coordinator", stream=stream)
    structlog.contextvars.bind_contextvars(session="4f2a")
    try:
        logger_of("room", device_key="77aa").info("report accepted")
    finally:
        structlog.contextvars.clear_contextvars()
    assert "4f2a" not in stream.getvalue()
    assert "77aa" not in stream.getvalue()


@pytest.mark.parametrize("value", [np.ones(3, np.float32), b"\x01\x02", [4.5, 3.0], {"film": 5}, "x" * 600])
def test_values_that_could_be_content_are_withheld(value: object) -> None:
    stream = io.StringIO()
    configure_logs("coordinator", stream=stream)
    logger_of("room").info("something happened", content=value)
    assert lines(stream)[0]["content"].startswith("withheld: ")


@pytest.mark.parametrize("form", ["json", "console"])
def test_tracebacks_come_without_local_variables(form: Any) -> None:
    stream = io.StringIO()
    configure_logs("coordinator", form=form, stream=stream)
    ratings = [4.5, 1.25]
    try:
        ratings[7]
    except IndexError:
        logger_of("room").exception("call failed")
    assert "IndexError: list index out of range" in stream.getvalue()
    assert "1.25" not in stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_text() -> None:
    stream = Terminal()
    configure_logs("coordinator", stream=stream)
    logger_of("room").info("round committed", round=3)
    assert "round committed" in stream.getvalue()
    with pytest.raises(json.JSONDecodeError):
        json.loads(stream.getvalue())
