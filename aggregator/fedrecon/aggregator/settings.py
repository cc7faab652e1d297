"""Settings of the aggregator, beside those that all services share."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from fedrecon.ops.settings import Port, Settings


class AggregatorSettings(Settings):
    """What an aggregator needs to know.

    Example:
        >>> AggregatorSettings(aggregator_port=7002).aggregator_port
        7002
    """

    aggregator_port: Port = Field(7002, description="port of the aggregator; 0 for a free one")
    aggregator_advertised: str = Field(
        "", description="host:port that devices are told, where it differs from the address that is opened"
    )
    aggregator_folder: Path | None = Field(
        None,
        description="folder of one aggregator alone, with its name in the journal; by default `aggregator` in home",
    )
    aggregator_sums_url: str = Field(
        "",
        description="folder or object store of the sealed running sums, which all aggregators can reach; by default "
        "`sums` beside the blobs",
    )
    aggregator_staging_bytes: int = Field(
        256 << 20, ge=1 << 20, description="most bytes that uploads on their way hold in memory together"
    )
    aggregator_keep_hours: float = Field(
        1.0, gt=0, description="how long answers are kept after an attempt has expired; its sums go at once"
    )

    @property
    def folder(self) -> Path:
        """The aggregator's own."""
        return self.aggregator_folder or self.home / "aggregator"

    @property
    def sums_place(self) -> str:
        """Where running sums lie."""
        return self.aggregator_sums_url or f"{str(self.blobs_place).rstrip('/')}/sums"
