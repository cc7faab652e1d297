"""All subjects of fuzzing together, and what of the contract they leave out."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from fedrecon.device_sdk import requests
from fedrecon.v1 import admin_pb2, aggregator_pb2, blobs_pb2, coordinator_pb2, enrolment_pb2, inference_pb2
from support import fuzz_aggregator, fuzz_coordinator, fuzz_devices, fuzz_others
from support.fuzz_loop import in_this_thread
from support.fuzz_subjects import Subject

_FILES = (admin_pb2, aggregator_pb2, blobs_pb2, coordinator_pb2, enrolment_pb2, inference_pb2)
FILES_OF_DEVICES = frozenset({"manifest", "vocabulary", "row set", "checkpoint", "ErrorInfo"})
"""What a device reads that is no answer of a call."""


@contextlib.asynccontextmanager
async def all_subjects(folder: Path) -> AsyncIterator[list[Subject]]:
    """Opens services in this process, and returns everything that is fuzzed.

    Args:
        folder: for their files; empty.
    """
    with in_this_thread():
        aggregators, made = await fuzz_aggregator.build_all(folder)
        coordinators, more = await fuzz_coordinator.build_all(folder)
        try:
            yield [*made, *more, *fuzz_others.build_all(folder / "public"), *fuzz_devices.build_all()]
        finally:
            for coordinator in coordinators:
                await coordinator.stop()
            for aggregator in aggregators:
                await aggregator.stop()


def left_out(subjects: Iterable[Subject]) -> set[str]:
    """Returns the methods and the answers to devices that no subject stands for."""
    services = [service for file in _FILES for service in file.DESCRIPTOR.services_by_name.values()]
    wanted = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    methods = [each for each in vars(requests).values() if isinstance(each, requests.Method)]
    wanted |= {method.answer.__name__ for method in methods} | FILES_OF_DEVICES
    return wanted - {name for subject in subjects for name in subject.covers}
