"""A cohort's part in a round: every client reconstructs and updates, and the updates are summed.

The same for every model: clients in chunks, in order of how many steps they take, each phase as `descents` runs it.
A client needs a copy of a row-sparse parameter only where its steps read a row again; then it gets the rows that it
touches. Otherwise rows are read from the checkpoint itself.

Rules: nothing is drawn here but what a generator gives that is passed in; clients with a result that is not finite
count nothing, as on a device; weights are numbers of query examples. Memory grows with the chunk, not the cohort.

Source: Algorithm 1 of Singhal et al. 2021 (arXiv 2102.03448).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedrecon.learning.client_optimizers import Sgd
from fedrecon.learning.model import FederatedModel, Tensors, Uniform
from fedrecon.learning.reconstruction import (
    RECONSTRUCT_RATE,
    RECONSTRUCT_RIDGE,
    UPDATE_LOCAL_RATE,
    UPDATE_RATE,
    GradientSteps,
)
from fedrecon.learning.simulation.batches import Half, lay_out, split
from fedrecon.learning.simulation.descents import Phase, Reader
from fedrecon.learning.simulation.examples import ClientExamples, Positions
from fedrecon.learning.simulation.ridge import Solver
from fedrecon.learning.simulation.rows import Touched, bytes_of_rows, fields_of, reads_once, touch
from fedrecon.learning.simulation.single_steps import sum_single_steps
from fedrecon.learning.simulation.steps import Descent, Mover, Named
from fedrecon.learning.simulation.vectorising import can_compile
from fedrecon.v1 import task_pb2
from fedrecon.v1.plan_pb2 import Schedule
from fedrecon.v1.task_pb2 import LocalWork

CHUNK_BYTES = 256 << 20
"""Of parameters that clients of a chunk have each for themselves, their gradients and state included."""
LATE = 1 << 31
"""Round in which epochs that grow have grown."""
LARGEST_CHUNK = 256
"""Clients side by side: more do not run faster, since their rows fall out of the processor's cache."""


@dataclass(frozen=True, slots=True, eq=False)
class CohortSum:
    """What the clients of a round made together.

    Attributes:
        updates: by global parameter: the sum over clients of weight times update, `[...] float32`.
        weight: the sum of weights: query examples of the clients that count.
        clients: how many count: those without query examples do not.
        dropped: how many do not, since a number was not finite.
        local_parameters: of every client, `[clients, ...]`, in the order of the cohort.
    """

    updates: Named
    weight: float
    clients: int
    dropped: int
    local_parameters: Named


@dataclass(slots=True, eq=False)
class Simulator:
    """Runs cohorts of one model with one way of working.

    Attributes:
        model: what is learned.
        work: what a device is told to do with its examples.
        compiled: whether to compile; without a compiler it warns and runs eagerly.
        device: where the arithmetic happens; parameters and examples are there.
    """

    model: FederatedModel
    work: LocalWork
    compiled: bool = True
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _phases: list[Phase] = field(default_factory=list)
    _fixed: dict[Any, tuple[Half, Half]] = field(default_factory=dict)
    _readers: dict[tuple[Half, bytes, int], Reader] = field(default_factory=dict)
    _distinct: dict[ClientExamples, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.compiled = self.compiled and can_compile(self.device)
        unknown = set(self.work.hyperparameters) - set(self.model.hyperparameters)
        if unknown:
            raise ValueError(
                f"unknown hyperparameters {sorted(unknown)}; there are {sorted(self.model.hyperparameters)}"
            )

    @property
    def reconstruct_schedule(self) -> Schedule:
        """The work's schedule of the reconstruction, or the model's; without a batch size after ridge."""
        if self.work.HasField("reconstruct_schedule"):
            return self.work.reconstruct_schedule
        if isinstance(self.model.reconstruction, GradientSteps):
            its = self.model.reconstruction.schedule
            return Schedule(batch_size=its.batch_size, epochs=its.epochs, maximum_steps=its.maximum_steps)
        return Schedule()

    @property
    def update_schedule(self) -> Schedule:
        """The work's schedule of the update, or the model's."""
        if self.work.HasField("update_schedule"):
            return self.work.update_schedule
        its = self.model.update_schedule
        return Schedule(batch_size=its.batch_size, epochs=its.epochs, maximum_steps=its.maximum_steps)

    def halves(self, examples: ClientExamples, clients: Positions, generator: np.random.Generator) -> tuple[Half, Half]:
        """Returns support sets and query sets of some clients."""
        return split(examples.offsets, clients, self.work, self._batch_size, generator)

    @property
    def _batch_size(self) -> int:
        # Ridge has no batches of its own: those of the update count, as on a device.
        return self.reconstruct_schedule.batch_size or self.update_schedule.batch_size

    def initial_locals(self, global_parameters: Tensors, clients: int, generator: np.random.Generator) -> Named:
        """Returns the local parameters that clients start from, `[clients, ...]`.

        The same distributions as on a device, from another generator: one draw for the cohort.
        """
        starts: Named = {}
        at_default = self.model.at_default(global_parameters)
        for name, value in self.model.local_parameters.items():
            match self.model.local[name]:
                case Uniform(bound=bound):
                    drawn = generator.random((clients, *value.shape), dtype=np.float32) * (2 * bound) - bound
                    starts[name] = torch.from_numpy(drawn).to(self.device)
                case _:
                    starts[name] = at_default[name].to(self.device).expand(clients, *value.shape).contiguous()
        return starts

    def run(
        self,
        global_parameters: Tensors,
        examples: ClientExamples,
        clients: Positions,
        round_number: int,
        generator: np.random.Generator,
        initial_locals: Tensors | None = None,
    ) -> CohortSum:
        """Runs a cohort's part in a round.

        Args:
            global_parameters: the checkpoint, by name.
            examples: of all clients.
            clients: the cohort, `[cohort]`.
            round_number: from 1.
            generator: draws initial local parameters and random splits.
            initial_locals: local parameters to start from, `[cohort, ...]`; drawn where not given.
        """
        members = clients
        if self.work.split == task_pb2.SPLIT_RULE_BY_FRACTION:
            support, query = self.halves(examples, clients, generator)
            members = np.arange(len(clients))
        else:
            key = examples, self.work.split, self.work.support_fraction, self._batch_size
            if key not in self._fixed:
                self._fixed[key] = self.halves(examples, np.arange(len(examples)), generator)
            support, query = self._fixed[key]
        starts = self.initial_locals(global_parameters, len(clients), generator)
        starts |= dict(initial_locals or {})
        with torch.no_grad():
            locals_ = self._reconstruct(global_parameters, starts, examples, support, members, round_number)
            return self._update(global_parameters, locals_, examples, query, members, round_number)

    def reconstruct(
        self, global_parameters: Tensors, initial_locals: Tensors, examples: ClientExamples, support: Half
    ) -> Named:
        """Returns the local parameters of the clients of `support`, `[clients, ...]`, as in a late round."""
        with torch.no_grad():
            members = np.arange(len(support.counts))
            return self._reconstruct(global_parameters, dict(initial_locals), examples, support, members, LATE)

    def fine_tune(
        self,
        global_parameters: Tensors,
        local_parameters: Tensors,
        examples: ClientExamples,
        support: Half,
        clients: Positions,
        schedule: Schedule,
        rate: float,
    ) -> Named:
        """Returns all parameters of some clients, `[clients, ...]`, after SGD on their support sets: each its own.

        Args:
            global_parameters: the checkpoint, by name.
            local_parameters: `[all clients of support, ...]`, by name.
            examples: of all clients.
            support: what is fitted.
            clients: rows of `support` and of `local_parameters`.
            schedule: batches, epochs, step limit.
            rate: of all steps.
        """
        batches = lay_out(support, schedule, LATE)
        order = clients[np.argsort(-batches.steps[clients], kind="stable")]
        back = torch.from_numpy(np.argsort(np.argsort(-batches.steps[clients], kind="stable"), kind="stable"))
        moving = {name: value.expand(len(order), *value.shape) for name, value in global_parameters.items()}
        moving |= {name: value[torch.from_numpy(order)] for name, value in local_parameters.items()}
        phase = self._phase(Descent(self.model, (Mover(tuple(moving), Sgd(), UPDATE_RATE),)))
        weights = torch.ones(len(order), device=self.device)
        with torch.no_grad():
            reader = Reader.of(examples.fields, batches)
            found = phase.run(moving, {}, {}, reader, order, weights, {UPDATE_RATE: rate})
        return {name: value[back] for name, value in found.moving.items()}

    def _phase(self, descent: Descent) -> Phase:
        """Returns the phase of a descent, with what it has compiled."""
        for phase in self._phases:
            if phase.descent == descent:
                return phase
        self._phases.append(Phase(descent, self.compiled))
        return self._phases[-1]

    def _reader(self, examples: ClientExamples, half: Half, schedule: Schedule, round_number: int) -> Reader:
        """Returns a schedule's batches, read once where halves stay the same from round to round."""
        if not any(half in halves for halves in self._fixed.values()):
            return Reader.of(examples.fields, lay_out(half, schedule, round_number))
        key = half, schedule.SerializeToString(), min(round_number, schedule.epochs) if schedule.epochs_grow else 0
        if key not in self._readers:
            self._readers[key] = Reader.of(examples.fields, lay_out(half, schedule, round_number))
        return self._readers[key]

    def _number(self, name: str) -> float:
        return self.work.hyperparameters.get(name, self.model.hyperparameters[name].default)

    def _reconstruct(
        self,
        global_parameters: Tensors,
        starts: Named,
        examples: ClientExamples,
        support: Half,
        members: Positions,
        round_number: int,
    ) -> Named:
        if not starts:
            return {}
        if not isinstance(self.model.reconstruction, GradientSteps):
            ridge = self._number(RECONSTRUCT_RIDGE)
            return Solver(self.model).solve(global_parameters, starts, examples, support, members, ridge)
        reader = self._reader(examples, support, self.reconstruct_schedule, round_number)
        mover = Mover(tuple(starts), self.model.reconstruction.optimizer, RECONSTRUCT_RATE)
        phase = self._phase(Descent(self.model, (mover,)))
        rates = {RECONSTRUCT_RATE: self._number(RECONSTRUCT_RATE)}
        found = {name: value.clone() for name, value in starts.items()}
        for chunk in _chunks(reader.batches.steps[members], _bytes(starts.values()) // max(len(members), 1)):
            rows = torch.from_numpy(chunk)
            moving = {name: value[rows] for name, value in starts.items()}
            weights = torch.ones(len(chunk), device=self.device)
            shared = dict(global_parameters)
            after = phase.run(moving, {}, shared, reader, members[chunk], weights, rates).moving
            for name, value in after.items():
                found[name][rows] = value
        return found

    def _update(
        self,
        global_parameters: Tensors,
        locals_: Named,
        examples: ClientExamples,
        query: Half,
        members: Positions,
        round_number: int,
    ) -> CohortSum:
        reader = self._reader(examples, query, self.update_schedule, round_number)
        counts = query.counts[members]
        movers = [Mover(tuple(global_parameters), self.model.update_optimizer, UPDATE_RATE)]
        rates = {UPDATE_RATE: self._number(UPDATE_RATE)}
        joint = self.model.joint_rate is not None and bool(locals_)
        if joint:
            movers.append(Mover(tuple(locals_), self.model.joint_optimizer, UPDATE_LOCAL_RATE))
            rates[UPDATE_LOCAL_RATE] = self._number(UPDATE_LOCAL_RATE)
        once = not reader.batches.repeats and self.model.update_optimizer == Sgd() and self._reads_once(examples)
        read_once = {name: fields_of(self.model, its) for name, its in self.model.row_sparse.items() if once}
        phase = self._phase(Descent(self.model, tuple(movers), read_once, learns_default=bool(self.model.defaults)))
        shared = {name: global_parameters[name] for name in read_once}
        if len(movers) == 1 and (whole := self._step_once(phase, global_parameters, locals_, reader, members, counts)):
            return whole
        sums = {name: torch.zeros_like(value) for name, value in global_parameters.items()}
        dense = {name: value for name, value in global_parameters.items() if name not in self.model.row_sparse}
        finite = np.ones(len(members), dtype=bool)
        kept = {name: value.clone() for name, value in locals_.items()}
        per_client = _bytes(dense.values()) + _bytes(locals_.values()) // max(len(finite), 1)
        per_client += 0 if once else bytes_of_rows(self.model, query)
        for chunk in _chunks(reader.batches.steps[members], per_client):
            mine = {name: value[torch.from_numpy(chunk)] for name, value in locals_.items()}
            before = {name: value.expand(len(chunk), *value.shape) for name, value in dense.items()}
            its, numbers, touched = reader, members[chunk], Touched(examples.fields, {})
            if self.model.vocabularies and not once:
                touched = touch(self.model, examples, query, numbers)
                its = Reader.of(touched.columns, lay_out(query.select(numbers), self.update_schedule, round_number))
                numbers = np.arange(len(chunk))
            before |= touched.of(self.model, global_parameters)
            weights = torch.from_numpy(counts[chunk].astype(np.float32)).to(self.device)
            moving, frozen = ({**before, **mine}, {}) if joint else (before, mine)
            after = phase.run(moving, frozen, shared, its, numbers, weights, rates)
            for name in locals_ if joint else ():
                kept[name][torch.from_numpy(chunk)] = after.moving[name]
            good = after.finite
            for value in mine.values():
                good = good & value.isfinite().reshape(len(chunk), -1).all(1)
            finite[chunk] = good.cpu().numpy()
            for name, summed in sums.items():
                if name in after.rows:
                    after.rows[name].add_to(summed, good)
                elif name in after.moving:
                    change = after.moving[name] - before[name]
                    rows = touched.rows.get(self.model.row_sparse.get(name, ""))
                    _add_weighted(summed, change, torch.where(good, weights, 0.0), rows)
        weight = float(counts[finite].sum())
        return CohortSum(sums, weight, int((finite & (counts > 0)).sum()), int((~finite).sum()), kept)

    def _step_once(
        self,
        phase: Phase,
        global_parameters: Tensors,
        locals_: Named,
        reader: Reader,
        members: Positions,
        counts: Positions,
    ) -> CohortSum | None:
        """Returns the sum of updates of one step of SGD of a model with a background; None of any others."""
        if self.model.background is None or self.model.update_optimizer != Sgd():
            return None
        if int(reader.batches.steps[members].max(initial=0)) > 1:
            return None
        weights = torch.from_numpy(counts.astype(np.float32)).to(self.device)
        rate = self._number(UPDATE_RATE)
        sums = sum_single_steps(phase.descent, global_parameters, locals_, reader, members, weights, rate)
        return None if sums is None else CohortSum(sums, float(counts.sum()), len(members), 0, locals_)

    def _reads_once(self, examples: ClientExamples) -> bool:
        if examples not in self._distinct:
            self._distinct[examples] = reads_once(self.model, examples)
        return self._distinct[examples]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


def _add_weighted(total: Tensor, changes: Tensor, weights: Tensor, rows: Tensor | None) -> None:
    """Adds weight times change of all clients to a sum; of no client whose weight is 0, whatever its change.

    Args:
        total: the sum, in the parameter's shape.
        changes: `[clients, ...]`, or `[clients, rows, ...]` of the rows that each client touches.
        weights: `[clients]`.
        rows: their numbers, `[clients, rows]`; None where a change is of the whole parameter.
    """
    by_client = weights.reshape(-1, *[1] * (changes.dim() - 1))
    weighted = torch.where(by_client > 0, changes * by_client, 0.0)
    if rows is None:
        total += weighted.sum(0)
    else:
        total.index_add_(0, rows.flatten(), weighted.flatten(0, 1))


def _chunks(steps: Positions, bytes_per_client: int) -> Iterator[Positions]:
    """Yields clients in order of their steps, the longest first, as many at a time as fit."""
    order = np.argsort(-steps, kind="stable")
    # Parameters, gradients, moves, and what is being written.
    size = max(1, min(LARGEST_CHUNK, CHUNK_BYTES // max(4 * bytes_per_client, 1)))
    for begin in range(0, len(order), size):
        yield order[begin : begin + size]
