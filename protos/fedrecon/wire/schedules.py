"""Which examples support, which are queried, and in which batches: the same on every device and in simulation.

Support set and query set are disjoint for every rule but `NONE`, however many epochs are run over them: a split gives
positions once, and a schedule only repeats them (a published tutorial shuffles between the two halves and so leaks
support into query).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrecon.v1 import task_pb2
from fedrecon.v1.plan_pb2 import Schedule
from fedrecon.v1.task_pb2 import SplitRule
from fedrecon.wire import keystream

Positions = NDArray[np.int64]

LARGEST_ORDER = 1 << 24
"""Places of all batches together, padding too: 192 MiB. The numbers of a schedule come from the network."""


def split(
    examples: int, rule: SplitRule.ValueType, *, batch_size: int, support_fraction: float = 0.5, seed: bytes = bytes(32)
) -> tuple[Positions, Positions]:
    """Returns the positions of support set and query set, each in ascending order.

    Args:
        examples: how many there are; they are in the order of the example store, oldest first.
        rule: how to split.
        batch_size: examples in a batch, for `ALTERNATE_BATCHES`.
        support_fraction: share of the support set, for `BY_TIME` and `BY_FRACTION`, between 0 and 1.
        seed: 32 bytes, for `BY_FRACTION`.

    Raises:
        ValueError: the rule is not stated, or a number is out of range.

    Example:
        >>> support, query = split(12, task_pb2.SPLIT_RULE_ALTERNATE_BATCHES, batch_size=5)
        >>> support.tolist(), query.tolist()
        ([0, 1, 2, 3, 4, 10, 11], [5, 6, 7, 8, 9])
    """
    if examples < 0 or batch_size < 1 or not 0.0 <= support_fraction <= 1.0:
        raise ValueError(f"cannot split {examples} examples by batches of {batch_size}, fraction {support_fraction}")
    everything = np.arange(examples, dtype=np.int64)
    match rule:
        case task_pb2.SPLIT_RULE_ALTERNATE_BATCHES:
            in_support = everything // batch_size % 2 == 0
        case task_pb2.SPLIT_RULE_ALTERNATE_EXAMPLES:
            in_support = everything % 2 == 0
        case task_pb2.SPLIT_RULE_BY_TIME:
            in_support = everything < round(examples * support_fraction)
        case task_pb2.SPLIT_RULE_BY_FRACTION:
            drawn = np.argsort(keystream.words(seed, "split", 0, examples), kind="stable")
            in_support = np.zeros(examples, dtype=bool)
            in_support[drawn[: round(examples * support_fraction)]] = True
        case task_pb2.SPLIT_RULE_NONE:
            return everything, everything
        case _:
            raise ValueError(f"split rule {rule} is not known; state one of {SplitRule.keys()[1:]}")
    return everything[in_support], everything[~in_support]


def order(positions: Positions, schedule: Schedule) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Returns the batches of a schedule over `positions`.

    Args:
        positions: examples to run over, `[n]`.
        schedule: batch size, epochs, step limit.

    Returns:
        order: positions of each step, `[steps, batch] int64`, padded with 0.
        mask: 1 where the order is real, 0 where it is padding, `[steps, batch] float32`.

    Raises:
        ValueError: the batch size is 0, or all batches together have more than `LARGEST_ORDER` places.
    """
    size = schedule.batch_size
    if size < 1:
        raise ValueError("a schedule needs a batch size of at least 1")
    batches = -(-positions.size // size)
    steps = batches * schedule.epochs
    if schedule.maximum_steps:
        steps = min(steps, schedule.maximum_steps)
    if max(batches, steps) * size > LARGEST_ORDER:
        raise ValueError(
            f"{steps} steps of {size} examples are more than {LARGEST_ORDER} places: "
            "lower the schedule's epochs or batch size, or set maximum_steps"
        )
    padded = np.zeros(batches * size, dtype=np.int64)
    padded[: positions.size] = positions
    real = (np.arange(batches * size) < positions.size).astype(np.float32)
    which = np.arange(steps) % max(batches, 1)
    return padded.reshape(batches, size)[which], real.reshape(batches, size)[which]
