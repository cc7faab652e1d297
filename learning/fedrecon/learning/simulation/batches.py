"""Which examples support, which are queried, and in which batches, for many clients at once.

The same rules as `fedrecon.wire.schedules`, which devices follow one by one; a property test holds the two together.

Rules: a half (support set or query set) is made once and only repeated by a schedule, so that support and query stay
disjoint across epochs and shuffles for every split but `NONE`; a batch is a run of its half, the last may be short.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrecon.learning.simulation.examples import Positions, ragged
from fedrecon.v1 import task_pb2
from fedrecon.v1.plan_pb2 import Schedule
from fedrecon.v1.task_pb2 import LocalWork


@dataclass(frozen=True, slots=True, eq=False)
class Half:
    """The support sets, or the query sets, of many clients.

    Attributes:
        positions: `[examples] int64`, one client's after the other's, ascending.
        offsets: `[clients + 1] int64`, where each client's begin.
    """

    positions: Positions
    offsets: Positions

    @property
    def counts(self) -> Positions:
        """Examples of every client, `[clients] int64`."""
        return np.diff(self.offsets)

    def select(self, clients: Positions) -> Half:
        """Returns the halves of some clients, in the order given."""
        counts = self.counts[clients]
        return Half(self.positions[ragged(self.offsets[clients], counts)], _offsets(counts))

    def padded(self, clients: Positions) -> tuple[Positions, NDArray[np.float32]]:
        """Returns positions and mask of some clients, each `[clients, longest]`, padded with 0."""
        counts = self.counts[clients]
        places = np.arange(max(int(counts.max(initial=0)), 1))
        real = places < counts[:, None]
        numbers = np.where(real, self.offsets[clients][:, None] + places, 0)
        positions = self.positions[numbers] if self.positions.size else numbers
        return np.where(real, positions, 0), real.astype(np.float32)


def split(
    offsets: Positions, clients: Positions, work: LocalWork, batch_size: int, generator: np.random.Generator
) -> tuple[Half, Half]:
    """Returns the support sets and query sets of some clients.

    Args:
        offsets: `[all clients + 1]`, where each client's examples begin.
        clients: which of them, `[clients]`.
        work: its `split` and `support_fraction`.
        batch_size: examples in a batch, for `ALTERNATE_BATCHES`.
        generator: draws `BY_FRACTION`.

    Raises:
        ValueError: the rule is not known.
    """
    counts = offsets[clients + 1] - offsets[clients]
    positions = ragged(offsets[clients], counts)
    within = ragged(np.zeros_like(counts), counts)
    match work.split:
        case task_pb2.SPLIT_RULE_ALTERNATE_BATCHES:
            in_support = within // batch_size % 2 == 0
        case task_pb2.SPLIT_RULE_ALTERNATE_EXAMPLES:
            in_support = within % 2 == 0
        case task_pb2.SPLIT_RULE_BY_TIME:
            in_support = within < np.repeat(np.rint(counts * work.support_fraction), counts)
        case task_pb2.SPLIT_RULE_BY_FRACTION:
            owner = np.repeat(np.arange(len(counts)), counts)
            drawn = np.lexsort((generator.random(len(positions)), owner))
            in_support = np.zeros(len(positions), dtype=bool)
            in_support[drawn] = within < np.repeat(np.rint(counts * work.support_fraction), counts)
        case task_pb2.SPLIT_RULE_NONE:
            whole = Half(positions, _offsets(counts))
            return whole, whole
        case _:
            raise ValueError(f"split rule {work.split} is not known; state one of {task_pb2.SplitRule.keys()[1:]}")
    owner = np.repeat(np.arange(len(counts)), counts)
    supported = np.bincount(owner[in_support], minlength=len(counts))
    return Half(positions[in_support], _offsets(supported)), Half(positions[~in_support], _offsets(counts - supported))


def _offsets(counts: Positions) -> Positions:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Batches:
    """The batches of a schedule over the halves of many clients.

    Attributes:
        positions: `[batches, batch] int64`, every client's batches once, one client's after the other's; padded with
            the batch's first position.
        mask: `[batches, batch] float32`, 1 for a real position and 0 for padding.
        first: `[clients + 1] int64`, where each client's batches begin.
        steps: `[clients] int64`, steps that each client takes: its batches again and again.
    """

    positions: Positions
    mask: NDArray[np.float32]
    first: Positions
    steps: Positions

    @property
    def repeats(self) -> bool:
        """Whether some client takes a batch more than once."""
        return bool((self.steps > np.diff(self.first)).any())

    def numbers(self, clients: Positions, steps: int) -> tuple[Positions, NDArray[np.bool_]]:
        """Returns the batch that each client takes in each of the first steps.

        Args:
            clients: which, `[clients]`.
            steps: how many.

        Returns:
            `[clients, steps] int64`, any batch where a client has ended; `[clients, steps]`, whether it has not.
        """
        step = np.arange(steps)
        count = np.maximum(np.diff(self.first)[clients], 1)
        number = self.first[clients][:, None] + step % count[:, None]
        running = step < self.steps[clients][:, None]
        return np.where(running, number, 0), running


def lay_out(half: Half, schedule: Schedule, round_number: int) -> Batches:
    """Returns the batches of a schedule.

    Args:
        half: support sets or query sets.
        schedule: batch size, epochs, step limit.
        round_number: from 1; epochs that grow are at most this.

    Raises:
        ValueError: the batch size is 0.
    """
    size = schedule.batch_size
    if size < 1:
        raise ValueError("a schedule needs a batch size of at least 1")
    counts = half.counts
    batches = -(-counts // size)
    epochs = min(schedule.epochs, round_number) if schedule.epochs_grow else schedule.epochs
    steps = batches * epochs
    if schedule.maximum_steps:
        steps = np.minimum(steps, schedule.maximum_steps)
    owner = np.repeat(np.arange(len(counts)), batches)
    begins = half.offsets[owner] + ragged(np.zeros_like(batches), batches) * size
    numbers = begins[:, None] + np.arange(size)
    real = numbers < half.offsets[owner + 1][:, None]
    positions = half.positions[np.where(real, numbers, begins[:, None])]
    return Batches(positions.reshape(-1, size), real.astype(np.float32).reshape(-1, size), _offsets(batches), steps)
