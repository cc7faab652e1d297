"""What an app may tell of the kind of a device: in three steps each, how well equipped it is, and how active its user.

Devices that drop out are often the slow ones, or those with much to do, and then the model is made for the others. Only
outcomes by kind show that. Nothing is told unless the app says so; then it goes with the end of a session, in a few
words that thousands of devices share, and services count them and keep nothing.

Source: Bonawitz et al. 2019, "Towards Federated Learning at Scale", section 7.1, on bias by drop-out.
"""

from __future__ import annotations

from typing import Literal

from google.protobuf.message import Message

from fedrecon.v1 import coordinator_pb2
from fedrecon.v1.coordinator_pb2 import Activity, DeviceClass, DeviceKind, FinishSessionRequest

ClassName = Literal["low", "middle", "high"]

_SOME, _MANY = 20, 100
"""Examples from which a user counts as active, and as very active: `Activity` in the contract."""


def kind_of(device_class: ClassName, examples: int) -> DeviceKind:
    """Returns what is told of a device.

    Args:
        device_class: how well equipped it is, as the app says.
        examples: how many it has.

    Example:
        >>> kind_of("low", 50).activity == coordinator_pb2.ACTIVITY_SOME
        True
    """
    activity: Activity.ValueType
    if examples < _SOME:
        activity = coordinator_pb2.ACTIVITY_FEW
    else:
        activity = coordinator_pb2.ACTIVITY_SOME if examples < _MANY else coordinator_pb2.ACTIVITY_MANY
    return DeviceKind(device_class=DeviceClass.Value(f"DEVICE_CLASS_{device_class.upper()}"), activity=activity)


def reveals_of(request: Message) -> str:
    """Returns what a message reveals that tells a kind; empty if it tells none."""
    if not (isinstance(request, FinishSessionRequest) and request.HasField("kind")):
        return ""
    device_class = DeviceClass.Name(request.kind.device_class).removeprefix("DEVICE_CLASS_").lower()
    activity = Activity.Name(request.kind.activity).removeprefix("ACTIVITY_").lower()
    return (
        "how the session ended and which steps it went through; that this device is of the app's class "
        f"{device_class}, and has {activity} examples (fewer than {_SOME} are few, {_MANY} and more many)"
    )
