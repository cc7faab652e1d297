"""Builds a release into `dist/`: both wheels with the browser's assets, what they are made of, and their digests.

Run by `make release`, which builds the assets first. Rules: the same commit gives the same bytes (times in the wheels
are the commit's own, SOURCE_DATE_EPOCH); a release has no change that is not committed; parts are listed by CycloneDX,
once as pip resolves them for services and devices, once as npm does for the browser.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
ASSETS = ROOT / "inference" / "fedrecon" / "inference" / "playground"
WEB = ROOT / "device_sdk" / "web"
EXTRAS = "coordinator,aggregator,inference,privacy,s3"
"""What services run on; `learning` brings torch, which is chosen for its machine."""

SUMS = "SHA256SUMS"


def main() -> int:
    """Build a release, and say what was made."""
    target = ROOT / "dist"
    changed = _ask("git", "status", "--porcelain", "--untracked-files=no")
    if changed:
        sys.stderr.write(f"Not committed:\n{changed}\nCommit or put it away: a release is a commit.\n")
        return 1
    if not (ASSETS / "fedrecon.js").exists():
        sys.stderr.write("The browser's assets are missing: `make release` builds them.\n")
        return 1
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or _ask("git", "log", "-1", "--format=%ct")
    wheels = build_wheels(ROOT, target, epoch)
    list_parts(wheels, target / "fedrecon.cdx.json")
    list_browser_parts(target / "fedrecon-web.cdx.json")
    made = sorted(path for path in target.iterdir() if path.name != SUMS)
    (target / SUMS).write_text(sums_of(made))
    sys.stdout.write((target / SUMS).read_text())
    return 0


def build_wheels(source: Path, target: Path, epoch: str) -> list[Path]:
    """Build both wheels.

    Args:
        source: The repository.
        target: Folder for them.
        epoch: Time of everything in them, Unix seconds.

    Returns:
        The wheels, the device's first.
    """
    environment = {**os.environ, "SOURCE_DATE_EPOCH": epoch, "PYTHONHASHSEED": "0"}
    for project in (source / "device_sdk", source):
        command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(target), str(project)]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return sorted(target.glob("*.whl"), key=lambda path: not path.name.startswith("fedrecon_device"))


def list_parts(wheels: Iterable[Path], target: Path) -> None:
    """Install wheels into an environment with nothing else, and list what is there, as CycloneDX.

    Args:
        wheels: The device's first.
        target: File of the list.
    """
    device, rest = wheels
    with tempfile.TemporaryDirectory(prefix="fedrecon-release-") as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", str(device), f"{rest}[{EXTRAS}]"], check=True)
        subprocess.run([*pip, "uninstall", "--yes", "pip", "setuptools"], check=True)
        command = [str(Path(sys.executable).parent / "cyclonedx-py"), "environment", python]
        options = ["--output-reproducible", "--of", "JSON", "--output-file", str(target)]
        subprocess.run([*command, *options], check=True)


def list_browser_parts(target: Path) -> None:
    """List what the browser's bundle is made of and built with, as CycloneDX: npm's lock file does not tell them apart.

    Args:
        target: File of the list.
    """
    command = ["npm", "sbom", "--sbom-format", "cyclonedx", "--package-lock-only"]
    target.write_text(subprocess.run(command, cwd=WEB, check=True, capture_output=True, text=True).stdout)


def sums_of(paths: Iterable[Path]) -> str:
    """Return the digests of files as `sha256sum --check` reads them."""
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths)


def _ask(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
