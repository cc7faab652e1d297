"""Settings of inference, beside those that all services share."""

from __future__ import annotations

from pydantic import Field

from fedrecon.ops.settings import OptionalPort, Port, Settings


class InferenceSettings(Settings):
    """Settings of inference."""

    inference_port: Port = Field(7003, description="port of Inference and Blobs; 0 for a free one")
    inference_http_port: OptionalPort = Field(
        7004, description="port of HTTP and JSON; 0 for a free one, none for no HTTP"
    )
    coordinator_target: str = Field(
        "127.0.0.1:7001", min_length=1, description="where the coordinator answers: host:port or another gRPC name"
    )
    inference_threads: int = Field(2, ge=1, le=256, description="threads that recommend; each uses one processor core")
