"""The public face: small, documented, light."""

import inspect
import subprocess
import sys
from importlib import metadata

import fedrecon.device_sdk as sdk
from fedrecon.device_sdk import errors
from fedrecon.device_sdk.session import SDK_VERSION


def test_the_public_face_is_exactly_this() -> None:
    assert sdk.__all__ == [
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
    assert all(getattr(sdk, name).__doc__ for name in sdk.__all__)


def test_every_error_is_a_fedrecon_error_with_a_reason_of_its_own() -> None:
    found = [each for _, each in inspect.getmembers(errors, inspect.isclass) if each.__module__ == errors.__name__]
    ours = [each for each in found if issubclass(each, sdk.FedreconError)]
    assert ours == found
    assert len({each.reason for each in ours}) == len(ours)


def test_the_version_told_to_the_coordinator_is_that_of_the_package() -> None:
    assert metadata.version("fedrecon-device") == SDK_VERSION


def test_importing_loads_no_runtime_and_no_server_library() -> None:
    heavy = ["asyncio", "grpc", "onnx", "onnxruntime", "pydantic", "redis", "torch"]
    program = f"import sys, fedrecon.device_sdk; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
