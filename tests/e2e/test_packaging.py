"""The two wheels, installed as their users install them."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FORBIDDEN_ON_DEVICES = ("torch", "redis", "pydantic", "structlog", "onnx", "typer", "rich")
NAMES_OF_OTHERS = ("ops", "datasets", "inference")


def pip(python: str | Path, *arguments: str) -> None:
    subprocess.run([str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("wheels")
    for project in (ROOT / "device_sdk", ROOT):
        pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", str(folder), str(project))
    return {path.name.split("-")[0]: path for path in folder.glob("*.whl")}


def files_of(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_two_wheels_share_no_file_and_own_nothing_but_the_namespace(wheels: dict[str, Path]) -> None:
    device, rest = files_of(wheels["fedrecon_device"]), files_of(wheels["fedrecon"])
    assert not device & rest
    roots = {name.split("/")[0] for name in device | rest if ".dist-info" not in name}
    assert roots == {"fedrecon"}
    assert "fedrecon/__init__.py" not in device | rest
    assert {"fedrecon/v1/coordinator_pb2.py", "fedrecon/v1/coordinator.proto", "fedrecon/wire/fixed_point.py"} <= device
    assert {"fedrecon/ops/console/web/index.html", "fedrecon/ops/console/web/console.js"} <= rest


def test_a_bare_environment_imports_the_device_sdk_and_nothing_of_the_servers(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "bare")], check=True)
    python = tmp_path / "bare" / "bin" / "python"
    pip(python, "install", str(wheels["fedrecon_device"]))
    script = (
        "import importlib.util, json, sys\n"
        "import fedrecon.device_sdk\n"
        "from fedrecon.device_sdk.testing import FakeTransport\n"
        f"found = [name for name in {FORBIDDEN_ON_DEVICES!r} if importlib.util.find_spec(name)]\n"
        "publisher = FakeTransport().publisher\n"
        "names = sorted(fedrecon.device_sdk.__all__)\n"
        "print(json.dumps({'found': found, 'names': names, 'publisher': publisher}))\n"
    )
    printed = subprocess.run([str(python), "-c", script], check=True, capture_output=True, text=True).stdout
    answer = json.loads(printed)
    assert answer["found"] == []
    assert "Device" in answer["names"]
    assert len(answer["publisher"]) == 64, "the toy plan is in the wheel"


def test_packages_of_the_same_bare_names_stay_whole_beside_ours(wheels: dict[str, Path], tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip(sys.executable, "install", "--no-deps", "--target", str(site), *NAMES_OF_OTHERS)
    before = {path: path.read_bytes() for path in site.rglob("*.py")}
    assert all((site / name).exists() or (site / f"{name}.py").exists() for name in NAMES_OF_OTHERS)
    pip(sys.executable, "install", "--no-deps", "--target", str(site), *map(str, wheels.values()))
    assert {path: path.read_bytes() for path in before} == before
    script = (
        "import importlib.util, json, sys\n"
        f"sys.path.insert(0, {str(site)!r})\n"
        f"names = [*{NAMES_OF_OTHERS!r}, *(f'fedrecon.{{name}}' for name in {NAMES_OF_OTHERS!r})]\n"
        "print(json.dumps({name: importlib.util.find_spec(name).origin for name in names}))\n"
    )
    printed = subprocess.run([sys.executable, "-I", "-c", script], check=True, capture_output=True, text=True).stdout
    origins = json.loads(printed)
    for name in NAMES_OF_OTHERS:
        assert Path(origins[name]).is_relative_to(site / name) or Path(origins[name]) == site / f"{name}.py"
        assert Path(origins[f"fedrecon.{name}"]).is_relative_to(site / "fedrecon" / name)
