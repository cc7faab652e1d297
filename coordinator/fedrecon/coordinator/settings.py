"""Settings of the coordinator."""

from __future__ import annotations

from pydantic import Field

from fedrecon.ops.settings import Port, Settings


class CoordinatorSettings(Settings):
    """What the coordinator needs beside what all services share."""

    coordinator_port: Port = Field(7001, description="port of the coordinator; 0 for a free one")
    coordinator_advertised: str = Field(
        "", description="host:port where other coordinators reach this one, where it differs from what is opened"
    )
    aggregator_target: str = Field(
        "127.0.0.1:7002", description="where the aggregator's Sums service answers; of several, separated by commas"
    )
    blobs_target: str = Field("", description="Blobs service that devices are told; empty is the aggregator's own")
    enrolment_token_minutes: float = Field(
        60.0, ge=1, le=1_440, description="how long an enrolment lasts; devices renew it by themselves"
    )
    attestation: str = Field(
        "", description="package.module:name of what judges a platform's word for a device; empty: any may enrol"
    )
    device_calls_per_second: float = Field(
        10.0, ge=0, description="check-ins of one device in the long run, ten seconds' worth at once; 0: any number"
    )
    idle_retry_seconds: float = Field(
        60.0, gt=0, le=86_400, description="after which a device returns that found no task; at most twice as long"
    )
    kept_rounds: int = Field(
        100, ge=1, description="newest rounds of a task whose every event is kept; older ones are kept as summaries"
    )
    kept_checkpoints: int = Field(
        20, ge=1, description="newest commits of a task that can be rolled back to: their blobs are kept"
    )

    @property
    def aggregator_targets(self) -> tuple[str, ...]:
        """All aggregators, each once."""
        named = (target.strip() for target in self.aggregator_target.split(","))
        return tuple(dict.fromkeys(target for target in named if target))
