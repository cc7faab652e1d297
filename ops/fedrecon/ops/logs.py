"""Logs: one JSON object a line on stderr, or coloured text on a terminal.

Rules:
- An event is a phrase without values (`round committed`); values are keys beside it, so that lines can be grouped.
- Never a device, an example or a tensor: keys that could carry one are withheld, and so is every value that is not a
  number, a truth value, a short string or None. Tracebacks come without local variables for the same reason.
- Lines of libraries that use `logging` take the same road.
"""

from __future__ import annotations

import logging
import sys
from pathlib import PurePath
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

FORBIDDEN_KEYS = frozenset(
    {
        "body",
        "checkpoint",
        "credentials",
        "device",
        "device_id",
        "device_key",
        "example",
        "examples",
        "key",
        "locals",
        "mac",
        "nonce",
        "request",
        "seal_key",
        "session",
        "session_id",
        "sessions",
        "signature",
        "tensor",
        "tensors",
        "token",
        "update",
        "updates",
        "weights",
    }
)
"""Keys that could name a person's device or carry what belongs to them, or a secret."""

LONGEST_STRING = 500
"""Characters of a value; longer strings are more likely content than a word."""

_KEYS_OF_STRUCTLOG = frozenset({"event", "exception", "exc_info", "stack", "stack_info", "_record", "_from_structlog"})


def withhold_private_values(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Replace what must not be in a log by a word that says so.

    Example:
        >>> withhold_private_values(None, "info", {"event": "report accepted", "session": "4f", "bytes": 10})
        {'event': 'report accepted', 'session': 'withheld', 'bytes': 10}
    """
    del logger, method
    for key, value in event.items():
        if key in _KEYS_OF_STRUCTLOG:
            continue
        if key.lower() in FORBIDDEN_KEYS:
            event[key] = "withheld"
        elif isinstance(value, PurePath):
            event[key] = str(value)
        elif isinstance(value, str) and len(value) > LONGEST_STRING:
            event[key] = f"withheld: {len(value)} characters"
        elif value is not None and not isinstance(value, str | int | float):
            event[key] = f"withheld: {type(value).__name__}"
    return event


def configure_logs(
    service: str,
    *,
    level: str = "info",
    form: Literal["auto", "json", "console"] = "auto",
    stream: TextIO | None = None,
) -> None:
    """Send all log lines of this process through the rules of this module.

    Args:
        service: Name of the service, bound to every line.
        level: Least level that is logged: debug, info, warning or error.
        form: json, console, or auto: console where `stream` is a terminal.
        stream: Where lines go; stderr by default.
    """
    stream = stream or sys.stderr
    console = form == "console" or (form == "auto" and stream.isatty())

    def name_service(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        del logger, method
        event["service"] = service
        return event

    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
        name_service,
    ]
    after: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, withhold_private_values]
    if console:
        after.append(
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback, timestamp_key="timestamp"
            )
        )
    else:
        after += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]

    lines = logging.StreamHandler(stream)
    lines.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=before, processors=after))
    root = logging.getLogger()
    root.handlers = [lines]
    root.setLevel(level.upper())
    structlog.configure(
        processors=[*before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def logger_of(name: str, **bound: Any) -> FilteringBoundLogger:
    """A logger.

    Args:
        name: Name of the module that logs: `__name__`.
        **bound: Values that every line of this logger carries.

    Returns:
        The logger; its lines follow the latest `configure_logs`, also where it was made before.
    """
    return cast("FilteringBoundLogger", structlog.stdlib.get_logger(name, **bound))
