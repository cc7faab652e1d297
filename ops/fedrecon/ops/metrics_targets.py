"""Tells a Prometheus on this machine where the services of a stack tell their metrics.

The file is of the form that Prometheus reads for itself (`file_sd_configs`), and reads again when it changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fedrecon.ops.durable_files import write_durably

TARGETS_FILE = "metrics_targets.json"


def write_metrics_targets(home: Path, addresses: Mapping[str, str]) -> None:
    """Write where metrics are told, in place of what was written before.

    Args:
        home: Folder of the stack.
        addresses: `host:port` by role; those without one are left out.
    """
    targets = [{"targets": [address], "labels": {"role": role}} for role, address in addresses.items() if address]
    write_durably(home / TARGETS_FILE, [json.dumps(targets, indent=2).encode()])
