"""Settings of the console."""

from __future__ import annotations

from pydantic import Field

from fedrecon.ops.settings import Port, Settings


class ConsoleSettings(Settings):
    """What the console needs beside what all services share."""

    console_port: Port = Field(7005, description="port of the console's gRPC health; 0 for a free one")
    console_http_port: Port = Field(7006, description="port of the console's pages; 0 for a free one")
    coordinator_target: str = Field(
        "127.0.0.1:7001", min_length=1, description="where the coordinator answers: host:port or another gRPC name"
    )
