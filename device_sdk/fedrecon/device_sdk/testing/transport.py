"""A transport that reaches services in memory: nothing is sent, and waits take no time."""

from __future__ import annotations

from google.protobuf.message import Message

from fedrecon.device_sdk.errors import CallFailedError
from fedrecon.device_sdk.requests import Call, Fetch, Upload
from fedrecon.device_sdk.testing.services import FakeServices
from fedrecon.device_sdk.transport import BlockingTransport


class FakeTransport(BlockingTransport):
    """Serves a `Device` from memory: `participate`, `participate_async` and all the rest.

    Args:
        services: what answers; services of the toy plan if not given.

    Attributes:
        services: what answers.
        is_reachable: whether anybody answers at all.
        losing: names of calls whose next answer is lost, for example `["Upload"]`: the service has acted, and the
            device tries again.
        waited_seconds: how long the device would have waited.

    Example:
        >>> from fedrecon.device_sdk import Device, ExampleStore
        >>> transport = FakeTransport()
        >>> examples = ExampleStore(":memory:")
        >>> examples.extend([{"item": "film-1", "rating": 4.0}, {"item": "film-2", "rating": 1.0}])
        >>> Device("anywhere:1", "films", examples, transport=transport).participate().outcome
        <Outcome.UPLOADED: 'uploaded'>
        >>> len(transport.services.reports)
        1
    """

    def __init__(self, services: FakeServices | None = None) -> None:
        super().__init__()
        self.services = services or FakeServices()
        self.is_reachable = True
        self.losing: list[str] = []
        self.waited_seconds = 0.0

    @property
    def publisher(self) -> str:
        """The key that signed the plan, for `trusted_plans`."""
        return self.services.publisher

    async def call(self, request: Call) -> Message:
        """Returns the answer of a unary call."""
        self._reach()
        answer = self.services.answer(request.method.path, request.body)
        self._lose(request.method.name)
        return answer

    async def fetch(self, request: Fetch) -> None:
        """Gives every chunk of a blob to `request.take`."""
        self._reach()
        for chunk in self.services.fetch(request.body):
            self._lose("Fetch")
            request.take(chunk)

    async def upload(self, request: Upload) -> Message:
        """Takes the parts and returns the answer."""
        self._reach()
        answer = self.services.upload(request.parts())
        self._lose("Upload")
        return answer

    async def sleep(self, seconds: float) -> None:
        """Notes how long it would have waited."""
        self.waited_seconds += seconds

    def _reach(self) -> None:
        if not self.is_reachable:
            raise CallFailedError("nobody answers", code="UNAVAILABLE")

    def _lose(self, name: str) -> None:
        if name in self.losing:
            self.losing.remove(name)
            raise CallFailedError("the answer was lost", code="UNAVAILABLE")
