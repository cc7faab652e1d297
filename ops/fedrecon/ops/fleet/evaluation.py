"""How well a checkpoint serves users never seen: they reconstruct on half of their ratings and are scored on the rest.

RECON EVAL of Singhal et al. 2021: support and query are disjoint, metrics are pooled over all query examples.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedrecon.device_sdk.columns import map_examples, rule_of
from fedrecon.device_sdk.errors import TooFewExamplesError
from fedrecon.device_sdk.plans import Plan, read_checkpoint, rows_in_force
from fedrecon.device_sdk.runtime import Seeds, train
from fedrecon.ops.fleet.people import Person
from fedrecon.v1.coordinator_pb2 import SESSION_KIND_EVALUATE
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire.vocabularies import Items


@dataclass(frozen=True, slots=True)
class Quality:
    """Metric sums over the query examples of all users.

    Attributes:
        sums: by the plan's metric names.
        users: how many were scored.
    """

    sums: Mapping[str, float]
    users: int

    @property
    def rmse(self) -> float:
        """Root mean squared error, for plans that tell `squared_error` and `examples`."""
        return math.sqrt(self.sums["squared_error"] / self.sums["examples"])


def evaluate(
    plan: Plan,
    checkpoint_content: bytes,
    vocabularies: Mapping[str, Items],
    work: LocalWork,
    people: Sequence[Person],
) -> Quality:
    """Score a checkpoint on users who never took part.

    Args:
        plan: the plan.
        checkpoint_content: the checkpoint's safetensors file.
        vocabularies: vocabularies in force, by name.
        work: split, schedules and hyperparameters of the task.
        people: the users; those without a query half are left out.
    """
    checkpoint = read_checkpoint(checkpoint_content, plan.manifest)
    rules = [rule_of(field) for field in plan.manifest.fields]
    rows = rows_in_force(plan.manifest, checkpoint)
    totals = dict.fromkeys((metric.name for metric in plan.manifest.metrics), 0.0)
    users = 0
    for person in people:
        examples = map_examples(rules, person.columns, vocabularies, rows)
        seed = hashlib.sha256(person.key.encode()).digest()
        try:
            result = train(plan, checkpoint, examples.columns, work, Seeds(seed, seed, seed), SESSION_KIND_EVALUATE)
        except TooFewExamplesError:
            continue
        users += 1
        for name, value in zip(totals, result.metric_sums, strict=True):
            totals[name] += value
    return Quality(totals, users)
