"""What a recommender takes, as its file says in its metadata. Loads neither ONNX nor its runtime."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

FIELDS_KEY = "fedrecon.fields"


@dataclass(frozen=True, slots=True)
class TakenField:
    """A field of the examples, as the recommender's file describes it.

    Attributes:
        name: its name.
        vocabulary: name of its vocabulary; empty for a number.
        minimum: smallest number allowed; None for no limit.
        maximum: largest number allowed; None for no limit.
        role: `input`, or `target` for what the model predicts.
    """

    name: str
    vocabulary: str
    minimum: float | None
    maximum: float | None
    role: str

    def allows(self, number: float) -> bool:
        """Whether a number lies within the limits."""
        return self.minimum is None or self.maximum is None or self.minimum <= number <= self.maximum


def write_fields(fields: Iterable[TakenField]) -> str:
    """Returns the metadata that describe the fields."""
    return json.dumps([asdict(field) for field in fields])


def read_fields(text: str) -> tuple[TakenField, ...]:
    """Returns the fields that the metadata describe."""
    return tuple(TakenField(**described) for described in json.loads(text))
