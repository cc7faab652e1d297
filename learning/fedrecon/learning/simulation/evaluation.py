"""How well a model serves: reconstruct on the support set, measure on the query set, client by client.

RECON EVAL of the paper is `evaluate` on clients never trained on. STANDARD EVAL is `evaluate` with local parameters
given: nothing is reconstructed and every example counts.

Rules: sums are kept by client, so that whoever reads them can pool, bootstrap or compare pairs; a split is always
made, whatever training did (support that is queried would praise memory).

Source: Singhal et al. 2021 (arXiv 2102.03448), sections 4.3 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vmap

from fedrecon.learning.model import Tensors
from fedrecon.learning.simulation.batches import Half
from fedrecon.learning.simulation.cohorts import Simulator
from fedrecon.learning.simulation.examples import ClientExamples, Positions, ragged
from fedrecon.learning.simulation.steps import Named
from fedrecon.v1 import task_pb2
from fedrecon.v1.plan_pb2 import Schedule

CHUNK_ELEMENTS = 1 << 22
"""Of the parameters that clients of a chunk have for themselves, and of their padded examples times 64."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Metric sums of clients.

    Attributes:
        sums: by metric, `[clients] float64`.
        examples: query examples, `[clients] int64`.
    """

    sums: Mapping[str, NDArray[np.float64]]
    examples: Positions

    def mean(self, metric: str, over: str | None = None) -> float:
        """Returns a metric pooled over all clients.

        Args:
            metric: whose sum is divided.
            over: metric by whose sum; the number of examples where it is not given.
        """
        divisor = float(self.examples.sum() if over is None else self.sums[over].sum())
        return float(self.sums[metric].sum()) / max(divisor, 1.0)


@dataclass(frozen=True, slots=True)
class FineTuning:
    """Steps of SGD on the support set over all parameters, after reconstruction: every client gets a model of its own.

    Attributes:
        schedule: batches, epochs, step limit.
        rate: of all steps.
    """

    schedule: Schedule
    rate: float


def evaluate(
    simulator: Simulator,
    global_parameters: Tensors,
    clients: ClientExamples,
    seed: int = 0,
    *,
    local_parameters: Tensors | None = None,
    fine_tuning: FineTuning | None = None,
) -> Evaluation:
    """Evaluates a checkpoint on clients.

    Args:
        simulator: the model, and how a device works; its split must leave support and query disjoint.
        global_parameters: the checkpoint, by name.
        clients: whom to ask.
        seed: of initial local parameters, and of splits that are drawn.
        local_parameters: `[clients, ...]` by name: nothing is reconstructed, and all examples are scored.
        fine_tuning: what follows the reconstruction, if anything.

    Raises:
        ValueError: the split is `NONE`, so that what was fitted would be measured.
    """
    everyone = np.arange(len(clients))
    if local_parameters is not None:
        whole = Half(ragged(clients.offsets[:-1], clients.counts), clients.offsets)
        return measure(simulator, global_parameters, local_parameters, clients, whole)
    if simulator.work.split == task_pb2.SPLIT_RULE_NONE:
        raise ValueError("evaluation needs a split: with none, what was fitted would be measured")
    generator = np.random.Generator(np.random.Philox(seed))
    support, query = simulator.halves(clients, everyone, generator)
    starts = simulator.initial_locals(global_parameters, len(clients), generator)
    found = simulator.reconstruct(global_parameters, starts, clients, support)
    if fine_tuning is None:
        return measure(simulator, global_parameters, found, clients, query)
    return _measure_tuned(simulator, global_parameters, found, clients, support, query, fine_tuning)


def measure(
    simulator: Simulator,
    global_parameters: Tensors,
    local_parameters: Tensors,
    clients: ClientExamples,
    query: Half,
) -> Evaluation:
    """Returns metric sums over the query sets, with local parameters `[clients, ...]`."""
    sums = {name: np.zeros(len(clients)) for name in simulator.model.metrics}
    for chunk in _chunks(query, 0):
        rows = torch.from_numpy(chunk)
        own = {name: value[rows] for name, value in local_parameters.items()}
        for name, values in _sums(simulator, dict(global_parameters), own, clients, query, chunk).items():
            sums[name][chunk] = values
    return Evaluation(sums, query.counts)


def _measure_tuned(
    simulator: Simulator,
    global_parameters: Tensors,
    local_parameters: Named,
    clients: ClientExamples,
    support: Half,
    query: Half,
    tuning: FineTuning,
) -> Evaluation:
    sums = {name: np.zeros(len(clients)) for name in simulator.model.metrics}
    for chunk in _chunks(query, sum(value.numel() for value in global_parameters.values())):
        own = simulator.fine_tune(
            global_parameters, local_parameters, clients, support, chunk, tuning.schedule, tuning.rate
        )
        for name, values in _sums(simulator, {}, own, clients, query, chunk).items():
            sums[name][chunk] = values
    return Evaluation(sums, query.counts)


def _sums(
    simulator: Simulator, shared: Named, own: Named, clients: ClientExamples, query: Half, chunk: Positions
) -> dict[str, NDArray[np.float64]]:
    """Returns metric sums of the clients of a chunk."""
    model = simulator.model
    padded, mask = query.padded(chunk)
    positions = torch.from_numpy(padded).to(simulator.device)
    fields = {name: column[positions] for name, column in clients.fields.items()}
    used = torch.from_numpy(mask).to(simulator.device)

    def one(own: Named, fields: Named, used: Tensor) -> Named:
        prediction = model.predict({**shared, **own}, fields)
        targets = model.only_targets(fields)
        return {name: (each.function(prediction, targets) * used).sum() for name, each in model.metrics.items()}

    with torch.no_grad():
        found = vmap(one, in_dims=(0 if own else None, 0, 0))(own, fields, used)
    return {name: value.double().cpu().numpy() for name, value in found.items()}


def _chunks(query: Half, parameters: int) -> list[Positions]:
    """Returns clients in order of their examples, as many at a time as fit side by side."""
    order = np.argsort(query.counts, kind="stable")
    chunks: list[Positions] = []
    begin = 0
    while begin < len(order):
        end = begin + 1
        while end < len(order):
            most = int(query.counts[order[end]])
            if (end + 1 - begin) * (parameters + 64 * most) > CHUNK_ELEMENTS:
                break
            end += 1
        chunks.append(order[begin:end])
        begin = end
    return chunks
