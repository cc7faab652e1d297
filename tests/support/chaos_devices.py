"""Devices of a chaos run, in a process of their own: the device SDK over its real transport, with witnesses.

Run as `python -m support.chaos_devices`; ends when it is told to. Devices drop out as phones do, and otherwise come
back as they are told, for ever.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from numpy.typing import NDArray

from fedrecon.device_sdk import Device
from fedrecon.device_sdk.blob_cache import BlobCache
from fedrecon.device_sdk.masking import Masking
from fedrecon.device_sdk.requests import FINISH_SESSION, UPLOAD_STATUS, Call, Fetch, Upload
from fedrecon.device_sdk.transport import AsyncTransport, Transport
from fedrecon.ops.fleet.behaviour import Behaviour, Phone, Vanished
from fedrecon.ops.fleet.people import Person
from fedrecon.ops.fleet.running import VANISHED
from fedrecon.v1.aggregator_pb2 import ShareResponse, UploadRequest, UploadStatusRequest, UploadStatusResponse
from fedrecon.v1.coordinator_pb2 import FinishSessionRequest, FinishSessionResponse, ReportFate
from fedrecon.wire.digests import digest_of
from support.chaos_log import Acknowledged, DeviceLog, Note, Sent, Told, Took
from support.hand_made_folder import people_with_films

DEVICES = 60
_REST_SECONDS = 0.5
"""Rest of a device that was told no window, half of it to all of it."""


class Witness:
    """A transport that writes down what devices send and are told; see `fedrecon.device_sdk.transport.Transport`."""

    def __init__(self, line: Transport, note: Callable[[Note], None]) -> None:
        self._line = line
        self._note = note
        self._masked: dict[bytes, bytes] = {}

    def note_masked(self, masked: bytes, vector: bytes) -> None:
        """Writes down what lies under the masks of a vector, before it leaves."""
        self._masked = {digest_of(masked): vector}

    async def call(self, request: Call) -> Message:
        answer = await self._line.call(request)
        if request.method is UPLOAD_STATUS:
            assert isinstance(answer, UploadStatusResponse)
            if answer.acknowledged:
                session = UploadStatusRequest.FromString(request.body).proof.session
                self._note(Acknowledged(session, answer.digest))
        if request.method is FINISH_SESSION:
            assert isinstance(answer, FinishSessionResponse)
            session = FinishSessionRequest.FromString(request.body).session
            self._note(Told(session, ReportFate.Name(answer.fate).removeprefix("REPORT_FATE_")))
        return answer

    async def fetch(self, request: Fetch) -> None:
        await self._line.fetch(request)

    async def upload(self, request: Upload) -> Message:
        header, *chunks = (UploadRequest.FromString(part) for part in request.parts())
        session, digest = header.header.proof.session, header.header.digest
        content = b"".join(chunk.chunk.data for chunk in chunks)
        if digest in self._masked:
            self._note(Sent(session, digest, self._masked[digest], is_masked=True))
        elif len(content) == header.header.size:
            self._note(Sent(session, digest, content))
        answer = await self._line.upload(request)
        self._note(Acknowledged(session, digest))
        return answer

    async def compute(self, function: Callable[[], Any]) -> Any:
        return await self._line.compute(function)

    async def sleep(self, seconds: float) -> None:
        await self._line.sleep(seconds)


@dataclass(frozen=True, slots=True)
class _Held:
    person: Person

    def count(self) -> int:
        return self.person.examples

    def columns(self) -> Mapping[str, NDArray[Any]]:
        return self.person.columns


_WITNESS: ContextVar[Witness] = ContextVar("witness")


def witness_masks() -> None:
    """Lets the device that runs see what it masks: nobody else can tell what lies under it."""
    mask = Masking.mask

    def witnessed(self: Masking, shared: ShareResponse, vector: bytes) -> bytes:
        masked = mask(self, shared, vector)
        _WITNESS.get().note_masked(masked, vector)
        return masked

    Masking.mask = witnessed  # type: ignore[method-assign]


async def live(
    device: Device, witness: Witness, phone: Phone, behaviour: Behaviour, source: random.Random, log: DeviceLog
) -> None:
    """Lets one device come back as it is told, for ever."""
    _WITNESS.set(witness)
    await asyncio.sleep(source.random())
    while True:
        phone.begin(behaviour.draw(source))
        after: float | None = None
        try:
            participation = await device.participate_async()
        except Vanished:
            log.note(Took(VANISHED, ""))
        else:
            log.note(Took(participation.outcome.value, participation.reason))
            after = participation.retry_after_seconds
        await asyncio.sleep(after if after is not None else _REST_SECONDS * (0.5 + source.random() / 2))


async def run(
    coordinator: str, population: str, log: DeviceLog, *, dropout: float, seed: int, cache: Path, authority: bytes
) -> None:
    """Lets the devices of all people live until somebody ends the process."""
    witness_masks()
    source, line, blobs = random.Random(seed), AsyncTransport(authority), BlobCache(cache)
    behaviour = Behaviour(dropout=dropout, median_seconds=0.02)
    async with asyncio.TaskGroup() as group:
        for person in people_with_films(DEVICES, seed):
            witness = Witness(line, log.note)
            phone = Phone(witness)
            device = Device(
                coordinator,
                population,
                _Held(person),
                secure_sum="allowed",
                min_group=1,
                cache=blobs,
                transport=phone,
            )
            group.create_task(live(device, witness, phone, behaviour, random.Random(source.random()), log))


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parser = argparse.ArgumentParser()
    parser.add_argument("coordinator")
    parser.add_argument("population")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--authority", type=Path, required=True)
    parser.add_argument("--dropout", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    log = DeviceLog(given.log)
    asyncio.run(
        run(
            given.coordinator,
            given.population,
            log,
            dropout=given.dropout,
            seed=given.seed,
            cache=given.cache,
            authority=given.authority.read_bytes(),
        )
    )


if __name__ == "__main__":
    main()
