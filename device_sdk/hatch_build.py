"""Build hook: compiles the protos and puts the contract into the device wheel.

The contract (`fedrecon.v1`, `fedrecon.wire`) lies in `protos/`, beside this folder, because it belongs to
every room. An editable install finds it there through `dev-mode-dirs`; a wheel gets a copy.
"""

from __future__ import annotations

import importlib.resources
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROTOS = Path(__file__).resolve().parent.parent / "protos"


def compile_protos() -> list[Path]:
    """Compiles every `.proto` of the contract beside its source and returns what was written."""
    sources = sorted(PROTOS.glob("fedrecon/v1/*.proto"))
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    outputs = ("--python_out", "--grpc_python_out", "--mypy_out", "--mypy_grpc_out")
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"-I{well_known}"]
    command += [f"{option}={PROTOS}" for option in outputs]
    command += [str(source.relative_to(PROTOS)) for source in sources]
    subprocess.run(command, check=True, cwd=PROTOS)
    return sorted(path for path in PROTOS.glob("fedrecon/v1/*_pb2*") if path.suffix in {".py", ".pyi"})


class ContractBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs before every build or install of the device wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles the protos; a standard wheel also gets the contract's files."""
        generated = compile_protos()
        if version == "editable":
            return
        shipped = [*generated, *PROTOS.glob("fedrecon/v1/*.proto"), *PROTOS.glob("fedrecon/wire/*.py")]
        shipped += PROTOS.glob("fedrecon/*/py.typed")
        for path in shipped:
            build_data["force_include"][str(path)] = str(path.relative_to(PROTOS))
