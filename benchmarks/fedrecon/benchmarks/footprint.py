"""What the device SDK costs an app: its wheel in an environment with nothing else.

The wheel is built from the checkout and installed by pip into a new environment; `installed_mb` is what lies in its
site-packages without pip and setuptools (in 10^6 bytes, compiled Python included), `import_cpu_seconds` the processor
time of `import fedrecon.device_sdk` in a new process, the median of several. `resident_mb_round` is the most memory
that a process of that environment ever held when it has taken part in one round: matrix factorisation of 3,706 films,
over TLS, under a secure sum of 20; the services run in another process.

Flower's client is measured by the same functions in an environment of its own (`make bench-peers`); it brings no way to
train, so there is no round to take part in, and its memory is that of a process that has imported its client.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from fedrecon import device_sdk
from fedrecon.benchmarks.measures import Measure
from fedrecon.ops.mistakes import UserMistake
from fedrecon.v1.coordinator_pb2 import Assignment

INSTALLED_LIMIT_MB = 190.0
IMPORT_LIMIT_SECONDS = 0.3
ROUND_LIMIT_MB = 100.0
_IMPORTS = 7
_NOT_THE_SDK = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence")
# The kernel's own mark, not `getrusage`: that one begins with what the process had that started this one.
_MOST_HELD = """
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024)
"""
_ONE_ROUND = f"""
import pathlib, sys
from fedrecon.device_sdk import Device, ExampleStore
target, publisher, authority = sys.argv[1:]
examples = ExampleStore(":memory:")
examples.extend(dict(item=str(number), rating=1.0 + number % 5) for number in range(1, 201))
device = Device(target, "films", examples, trusted_plans=[publisher], authority=pathlib.Path(authority).read_bytes())
ended = device.participate()
assert ended.outcome.value == "uploaded", ended
{_MOST_HELD}"""
_TIMED_IMPORT = "import time; began = time.process_time(); import {module}; print(time.process_time() - began)"


def measure_footprint() -> list[Measure]:
    """Build, install and import the device wheel.

    Returns:
        `installed_mb`, `import_cpu_seconds`, `resident_mb_round`, and the import of numpy alone to compare with.

    Raises:
        UserMistake: There is no checkout to build from.
    """
    with tempfile.TemporaryDirectory(prefix="fedrecon-footprint-") as folder:
        python = install_device_wheel(Path(folder))
        installed, packages = _weigh(python)
        return [
            Measure("installed_mb", installed, "MB", INSTALLED_LIMIT_MB),
            Measure("packages", packages, "count"),
            Measure("import_cpu_seconds", _import_seconds(python, "fedrecon.device_sdk"), "s", IMPORT_LIMIT_SECONDS),
            Measure("import_numpy_cpu_seconds", _import_seconds(python, "numpy"), "s"),
            Measure("resident_mb_round", _resident_mb_of_a_round(python, Path(folder)), "MB", ROUND_LIMIT_MB),
        ]


def measure_peer_footprint(python: Path, module: str = "flwr.clientapp") -> list[Measure]:
    """Measure another client as ours is measured.

    Args:
        python: Of an environment that has nothing but it.
        module: What an app imports of it.

    Raises:
        UserMistake: It cannot be imported there.
    """
    installed, packages = _weigh(python)
    try:
        resident = subprocess.run(
            [str(python), "-c", f"import {module}\n{_MOST_HELD}"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    except subprocess.CalledProcessError as error:
        raise UserMistake(f"{module} cannot be imported by {python}.", "Run `make bench-peers`.") from error
    return [
        Measure("flower.installed_mb", installed, "MB"),
        Measure("flower.packages", packages, "count"),
        Measure("flower.import_cpu_seconds", _import_seconds(python, module), "s"),
        Measure("flower.resident_mb_imported", float(resident) / 1e6, "MB"),
    ]


def _weigh(python: Path) -> tuple[float, int]:
    """Return megabytes and number of the packages of an environment, but for pip's own."""
    kept = [path for path in _site_packages_of(python).iterdir() if not path.name.startswith(_NOT_THE_SDK)]
    return sum(_size_of(path) for path in kept) / 1e6, sum(path.suffix == ".dist-info" for path in kept)


def _resident_mb_of_a_round(python: Path, folder: Path) -> float:
    """Let a process of the environment take part in one round over TLS, and return the most memory that it held."""
    import grpc

    from fedrecon.benchmarks.movielens_round import make_plan
    from fedrecon.device_sdk.testing import FakeServices
    from fedrecon.device_sdk.testing.server import serve
    from fedrecon.ops.certificates import LOCAL_NAMES, keep_certificates

    services = FakeServices(make_plan(folder / "plan"))
    files = keep_certificates(folder / "certificates", LOCAL_NAMES)
    credentials = grpc.ssl_server_credentials([(files.key.read_bytes(), files.certificate.read_bytes())])
    with serve(services, credentials=credentials) as target:

        def here(assignment: Assignment) -> None:
            assignment.blobs = assignment.aggregator = target

        services.change = here
        command = [str(python), "-c", _ONE_ROUND, target, services.publisher, str(files.authority)]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout) / 1e6


def install_device_wheel(folder: Path) -> Path:
    """Build the device wheel and install it into a new environment below `folder`.

    Returns:
        The environment's Python.
    """
    project = _device_project()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(project)], check=True, stdout=sys.stderr
    )
    (wheel,) = folder.glob("fedrecon_device-*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "bare")], check=True)
    python = folder / "bare" / "bin" / "python"
    bare_pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*bare_pip, "install", str(wheel)], check=True, stdout=sys.stderr)
    return python


def _device_project() -> Path:
    project = Path(device_sdk.__file__).resolve().parent.parent.parent
    if not (project / "hatch_build.py").exists():
        raise UserMistake(
            "The footprint is measured from a checkout: there is none around this installation.",
            "Clone the repository, run `make setup`, then `.venv/bin/fedrecon bench footprint`.",
        )
    return project


def _site_packages_of(python: Path) -> Path:
    root = python.parent.parent
    return Path(sysconfig.get_path("purelib", vars={"base": str(root)}))


def _size_of(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


def _import_seconds(python: Path, module: str) -> float:
    command = [str(python), "-c", _TIMED_IMPORT.format(module=module)]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(_IMPORTS)]
    return statistics.median(float(seconds) for seconds in runs)
