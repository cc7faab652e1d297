"""What the simulation is compared with: eager torch written for one model, and one client after the other.

Peers do the same arithmetic on the same clients; they are written as one would write them without the simulation, and
live here because nothing else needs them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fedrecon.learning.reconstruction import RECONSTRUCT_RATE, UPDATE_RATE
from fedrecon.learning.reference import Steps, client_update
from fedrecon.learning.simulation import ClientExamples, Simulator
from fedrecon.v1.plan_pb2 import Schedule
from fedrecon.wire import schedules


def eager_round(simulator: Simulator, clients: ClientExamples, cohort_size: int) -> Callable[[], Tensor]:
    """Returns a round of matrix factorisation as eager torch, the gradient written by hand, padded over the cohort.

    Steps of all clients are batched matrix products (`baddbmm`); clients that have ended do steps of rate 0. The table
    of items is updated by SGD of rate 1.

    Args:
        simulator: of plain matrix factorisation by gradient steps.
        clients: who may take part.
        cohort_size: how many do.
    """
    generator = np.random.default_rng(0)
    table = simulator.model.global_parameters["item_vectors.weight"].clone()
    support_rate = simulator.model.hyperparameters[RECONSTRUCT_RATE].default
    query_rate = simulator.model.hyperparameters[UPDATE_RATE].default

    def batches(support: bool, cohort: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns items, ratings and mask `[cohort, steps, batch]`."""
        schedule = simulator.reconstruct_schedule if support else simulator.update_schedule
        rows = []
        for client in cohort:
            half = schedules.split(int(clients.counts[client]), simulator.work.split, batch_size=schedule.batch_size)
            order, mask = schedules.order(half[0 if support else 1], schedule)
            rows.append((order + clients.offsets[client], mask))
        longest = max(len(order) for order, _ in rows)
        order = np.stack([np.pad(each, ((0, longest - len(each)), (0, 0))) for each, _ in rows])
        mask = np.stack([np.pad(each, ((0, longest - len(each)), (0, 0))) for _, each in rows])
        positions = torch.from_numpy(order)
        return clients.fields["item"][positions], clients.fields["rating"][positions], torch.from_numpy(mask)

    # Made once, which the simulation does as well: the halves of a client never change here.
    cohort = generator.choice(len(clients), cohort_size, replace=False).tolist()
    support, query = batches(True, cohort), batches(False, cohort)
    counts = [len(schedules.split(int(clients.counts[each]), simulator.work.split, batch_size=5)[1]) for each in cohort]
    weights = torch.tensor(counts, dtype=torch.float32)

    def run() -> Tensor:
        users = torch.rand(cohort_size, table.shape[1], 1) * 0.1 - 0.05
        items, ratings, mask = support
        for step in range(items.shape[1]):
            vectors = table[items[:, step]]
            errors = (torch.bmm(vectors, users).squeeze(2) - ratings[:, step]) * mask[:, step]
            scaled = errors * (2.0 * support_rate / mask[:, step].sum(1, keepdim=True).clamp(min=1.0))
            users = torch.baddbmm(users, vectors.mT, scaled.unsqueeze(2), alpha=-1.0)
        items, ratings, mask = query
        vectors = table[items.flatten(1)]
        errors = (torch.bmm(vectors, users).squeeze(2).reshape(ratings.shape) - ratings) * mask
        scaled = errors * (2.0 * query_rate / mask.sum(2, keepdim=True).clamp(min=1.0))
        moves = -scaled.flatten(1).unsqueeze(2) * users.mT * weights[:, None, None]
        mean = torch.zeros_like(table).index_add_(0, items.flatten(), moves.flatten(0, 1)) / weights.sum()
        return table.add_(mean)

    return run


def loop_seconds_per_client(simulator: Simulator, clients: ClientExamples, count: int) -> float:
    """Returns the seconds of one client in a plain loop of eager torch.

    Args:
        simulator: any model reconstructed by gradient steps, under a split that is not drawn.
        clients: who may take part.
        count: how many are timed.
    """
    model = simulator.model
    generator = np.random.default_rng(1)
    chosen = generator.choice(len(clients), count, replace=False)
    starts = simulator.initial_locals(model.global_parameters, count, generator)
    began = time.perf_counter()
    for number, client in enumerate(chosen):
        fields = clients.select([client]).fields
        size = simulator.reconstruct_schedule.batch_size
        support, query = schedules.split(
            int(clients.counts[client]),
            simulator.work.split,
            batch_size=size,
            support_fraction=simulator.work.support_fraction,
        )
        laid_out = _steps(support, simulator.reconstruct_schedule), _steps(query, simulator.update_schedule)
        rates = {
            name: torch.full((len(steps.order),), model.hyperparameters[name].default)
            for name, steps in zip((RECONSTRUCT_RATE, UPDATE_RATE), laid_out, strict=True)
        }
        own = {name: value[number] for name, value in starts.items()}
        client_update(model, model.global_parameters, own, fields, *laid_out, rates)
    return (time.perf_counter() - began) / count


def _steps(half: schedules.Positions, schedule: Schedule) -> Steps:
    order, mask = schedules.order(half, schedule)
    return Steps(torch.from_numpy(order), torch.from_numpy(mask))
