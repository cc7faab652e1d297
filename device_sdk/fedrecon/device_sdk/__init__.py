"""The device SDK of fedrecon: take part in training, reconstruct, recommend. Personal parameters stay here.

    from fedrecon.device_sdk import Device, ExampleStore

The names in `__all__` are the public face; they import in a moment, and ONNX Runtime and gRPC are loaded when they
are first needed.
"""

from fedrecon.device_sdk.background import BackgroundJob
from fedrecon.device_sdk.conditions import Conditions
from fedrecon.device_sdk.device import Device
from fedrecon.device_sdk.errors import FedreconError
from fedrecon.device_sdk.examples import ExampleStore
from fedrecon.device_sdk.participation import Outcome, Participation
from fedrecon.device_sdk.receipts import Receipt
from fedrecon.device_sdk.recommender import Recommendation, Recommender

__all__ = [
    "BackgroundJob",
    "Conditions",
    "Device",
    "ExampleStore",
    "FedreconError",
    "Outcome",
    "Participation",
    "Receipt",
    "Recommendation",
    "Recommender",
]
