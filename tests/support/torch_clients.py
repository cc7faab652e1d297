"""One client in plain torch and by the device's runtime, from the same seeds; how far they are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fedrecon.device_sdk.columns import map_examples, newest, rule_of
from fedrecon.device_sdk.plans import read_checkpoint, rows_in_force
from fedrecon.device_sdk.runtime import TrainingResult, train
from fedrecon.learning.model import FederatedModel
from fedrecon.learning.reference import ClientUpdate, Steps, client_update, reconstruct
from fedrecon.learning.rounds_in_process import Client, RunnablePlan
from fedrecon.v1.plan_pb2 import Schedule
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire import manifests, schedules

Arrays = Mapping[str, NDArray[Any]]


class Modelled(Protocol):
    """A model in torch, and its plan as a device holds it."""

    @property
    def model(self) -> FederatedModel: ...

    @property
    def runnable(self) -> RunnablePlan: ...


@dataclass(frozen=True, slots=True)
class Compared:
    """What both gave, and their largest absolute differences."""

    device: TrainingResult
    torch: ClientUpdate
    updates: dict[str, NDArray[np.float32]]
    local_difference: float
    update_difference: float


def compare_with_torch(modelled: Modelled, checkpoint: bytes, client: Client, work: LocalWork) -> Compared:
    manifest = modelled.runnable.plan.manifest
    parameters = read_checkpoint(checkpoint, manifest)
    rows = rows_in_force(manifest, parameters)
    rules = [rule_of(each) for each in manifest.fields]
    mapped = newest(map_examples(rules, client.examples, modelled.runnable.vocabularies, rows), work.maximum_examples)
    device = train(modelled.runnable.plan, parameters, mapped.columns, work, client.seeds)
    expected = _in_torch(modelled, parameters, mapped.columns, work, client)
    updates = {}
    for name, parameter in parameters.items():
        updates[name] = np.zeros(parameter.shape, dtype=np.float32)
        told = device.updates[name]
        updates[name][slice(None) if told.rows is None else told.rows] = told.values
    assert device.local_parameters.keys() == expected.local_parameters.keys()
    assert updates.keys() == expected.updates.keys()
    return Compared(
        device,
        expected,
        updates,
        local_difference=max(
            _difference(device.local_parameters[name], value.numpy())
            for name, value in expected.local_parameters.items()
        ),
        update_difference=max(_difference(updates[name], value.numpy()) for name, value in expected.updates.items()),
    )


def _in_torch(modelled: Modelled, parameters: Arrays, columns: Arrays, work: LocalWork, client: Client) -> ClientUpdate:
    manifest = modelled.runnable.plan.manifest
    update_schedule = manifest.update_schedule
    reconstruct_schedule = (
        manifest.reconstruct_schedule if manifest.reconstruct_schedule.batch_size else update_schedule
    )
    support, query = schedules.split(
        len(next(iter(columns.values()))),
        work.split,
        batch_size=reconstruct_schedule.batch_size,
        support_fraction=work.support_fraction,
        seed=client.seeds.split,
    )
    steps = {
        "reconstruct": _steps(support, reconstruct_schedule),
        "update": _steps(query, update_schedule),
    }
    numbers = {}
    for name, limits in manifest.hyperparameters.items():
        value = torch.tensor(work.hyperparameters.get(name, limits.default_value), dtype=torch.float32)
        numbers[name] = value.repeat(len(steps[name.partition(".")[0]].order)) if limits.per_step else value
    initial = manifests.initial_locals(manifest, parameters, client.seeds.initial)
    given = modelled.model, _tensors(parameters), _tensors(initial), _tensors(columns), steps["reconstruct"]
    # Joint training moves local parameters on, but a device keeps those that it reconstructed.
    local, _ = reconstruct(*given, numbers)
    return replace(client_update(*given, steps["update"], numbers), local_parameters=local)


def _steps(positions: schedules.Positions, schedule: Schedule) -> Steps:
    order, mask = schedules.order(positions, schedule)
    return Steps(torch.from_numpy(order), torch.from_numpy(mask))


def _tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def _difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max())
