"""A release is what its commit says, to the byte."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import shutil
import subprocess
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def release() -> ModuleType:
    specification = importlib.util.spec_from_file_location("release_build", ROOT / "ops" / "release" / "build.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_digests_are_read_by_the_usual_tool(release: ModuleType, tmp_path: Path) -> None:
    for name in ("one.whl", "two.json"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / release.SUMS).write_text(release.sums_of(sorted(tmp_path.iterdir())))
    command = [shutil.which("sha256sum") or "sha256sum", "--check", "--strict", release.SUMS]
    subprocess.run(command, cwd=tmp_path, check=True)
    (tmp_path / "two.json").write_bytes(b"something else")
    answer = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True)
    assert answer.returncode != 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_wheels_that_are_built_twice_are_the_same_bytes(release: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("build", reason="a part of the extra dev")
    digests = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        exported = folder / "exported"
        exported.mkdir(parents=True)
        archive = subprocess.run(
            [shutil.which("git") or "git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(exported, filter="data")
        wheels = release.build_wheels(exported, folder / "dist", "1700000000")
        assert [path.name.split("-")[0] for path in wheels] == ["fedrecon_device", "fedrecon"]
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in wheels])
    assert digests[0] == digests[1]
