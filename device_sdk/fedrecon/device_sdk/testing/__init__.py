"""For an app's own tests: services that play rounds in memory, and a plan small enough to check by hand.

    from fedrecon.device_sdk.testing import FakeTransport

    transport = FakeTransport()
    device = Device("anywhere:1", "films", examples, transport=transport, trusted_plans=[transport.publisher])

Nothing is sent and nothing waits. The device checks, computes, masks and keeps everything as it does in production;
its neighbours in the secure sum are played, too.
"""

from fedrecon.device_sdk.testing.services import FakeServices
from fedrecon.device_sdk.testing.toy_plan import ToyPlan, toy_plan
from fedrecon.device_sdk.testing.transport import FakeTransport

__all__ = ["FakeServices", "FakeTransport", "ToyPlan", "toy_plan"]
