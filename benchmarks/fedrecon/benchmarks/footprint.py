"""What the device SDK costs an app: its wheel in an environment with nothing else.

The wheel is built from the checkout and installed by pip into a new environment; `installed_mb` is what lies in its
site-packages without pip and setuptools (in 10^6 bytes, compiled Python included), `import_cpu_seconds` the processor
time of `import fedrecon.device_sdk` in a new process, the median of several.
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

INSTALLED_LIMIT_MB = 190.0
IMPORT_LIMIT_SECONDS = 0.3
_IMPORTS = 7
_NOT_THE_SDK = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence")
_TIMED_IMPORT = "import time; began = time.process_time(); import {module}; print(time.process_time() - began)"


def measure_footprint() -> list[Measure]:
    """Build, install and import the device wheel.

    Returns:
        `installed_mb`, `import_cpu_seconds`, and the import of numpy alone to compare with.

    Raises:
        UserMistake: There is no checkout to build from.
    """
    with tempfile.TemporaryDirectory(prefix="fedrecon-footprint-") as folder:
        python = install_device_wheel(Path(folder))
        site_packages = _site_packages_of(python)
        kept = [path for path in site_packages.iterdir() if not path.name.startswith(_NOT_THE_SDK)]
        installed = sum(_size_of(path) for path in kept)
        return [
            Measure("installed_mb", installed / 1e6, "MB", INSTALLED_LIMIT_MB),
            Measure("packages", sum(path.suffix == ".dist-info" for path in kept), "count"),
            Measure("import_cpu_seconds", _import_seconds(python, "fedrecon.device_sdk"), "s", IMPORT_LIMIT_SECONDS),
            Measure("import_numpy_cpu_seconds", _import_seconds(python, "numpy"), "s"),
        ]


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
