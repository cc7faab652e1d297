"""The contract breaks nobody who speaks what was released: `make check` asks buf, and buf would say so."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BUF = Path(sys.executable).parent / "buf"


@pytest.mark.parametrize(
    ("before", "after", "is_broken"),
    [
        ("service Coordinator {", "service Coordinator {", False),
        (
            "message CheckInRequest {",
            "message CheckInRequest {\n  // Something new.\n  bytes something_new = 999;",
            False,
        ),
        ("message CheckInRequest {", "message CheckInAsk {", True),
        ("rpc CheckIn(", "rpc ComeIn(", True),
    ],
)
def test_what_would_break_a_device_is_refused(tmp_path: Path, before: str, after: str, is_broken: bool) -> None:
    protos = tmp_path / "protos"
    shutil.copytree(ROOT / "protos" / "fedrecon" / "v1", protos / "fedrecon" / "v1")
    shutil.copy(ROOT / "protos" / "buf.yaml", protos)
    changed = protos / "fedrecon" / "v1" / "coordinator.proto"
    text = changed.read_text()
    assert before in text
    changed.write_text(
        text.replace("CheckInRequest", "CheckInAsk") if "CheckInAsk" in after else text.replace(before, after)
    )
    command = [str(BUF), "breaking", str(protos), "--against", str(ROOT / "protos" / "baseline.binpb")]
    answer = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (answer.returncode != 0) == is_broken, answer.stdout + answer.stderr
