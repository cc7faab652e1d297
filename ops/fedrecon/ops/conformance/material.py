"""What devices under test are asked to run: a plan of seven kilobytes, and one user's examples of it.

The plan is a matrix factorisation of six films whose steps are plain sums, in ONNX's own operators. It starts from
constants and splits without chance, so that every device must report the same numbers, but for their rounding. Its
manifest holds a field that no version knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from fedrecon.device_sdk import material as sdk
from fedrecon.device_sdk.material import Report
from fedrecon.device_sdk.plans import load_plan, read_checkpoint
from fedrecon.device_sdk.runtime import Seeds
from fedrecon.ops.plan_folders import blob_file, blobs_folder, manifest_file, signature_file
from fedrecon.v1.coordinator_pb2 import Assignment
from fedrecon.v1.plan_pb2 import Manifest, PlanSignature
from fedrecon.wire.digests import digest_of
from fedrecon.wire.keystream import SEED_BYTES
from fedrecon.wire.manifests import read_manifest, read_signature
from fedrecon.wire.row_sets import read_row_set
from fedrecon.wire.vocabularies import read_vocabulary

POPULATION = "conformance"
EXAMPLES: Mapping[str, list[Any]] = {
    "item": ["film-4", "film-1", "film-9", "film-0", "film-1", "film-2", "film-4", "film-5", "film-0"],
    "rating": [5.0, 1.0, 2.0, 3.0, 4.0, 0.5, 1.5, 4.5, 2.5],
}
"""One user's ratings, oldest first; no model knows `film-9`."""


@dataclass(frozen=True, slots=True)
class Material:
    """The plan that devices run.

    Attributes:
        content: the bytes of its manifest.
        manifest: the manifest.
        signature: its publisher's word.
        blobs: what it names, and itself, by digest.
    """

    content: bytes
    manifest: Manifest
    signature: PlanSignature
    blobs: Mapping[bytes, bytes]

    def report(self, assignment: Assignment, blobs: Mapping[bytes, bytes]) -> Report:
        """Returns what a device must report, rounded somehow.

        Args:
            assignment: what it was asked for.
            blobs: what services have, by digest.
        """
        named = {**self.manifest.vocabularies, **assignment.vocabularies}
        ready = sdk.Material(
            load_plan(self.content, blobs.__getitem__),
            read_checkpoint(blobs[assignment.checkpoint.digest], self.manifest),
            {name: read_vocabulary(blobs[each.digest]) for name, each in named.items()},
            {each.digest: read_row_set(blobs[each.digest]) for each in assignment.row_sets.values()},
        )
        columns = {name: np.array(values) for name, values in EXAMPLES.items()}
        seed = bytes(SEED_BYTES)
        return sdk.make_report(assignment, ready, columns, Seeds(seed, seed, seed))


@cache
def conformance_material() -> Material:
    """Returns the plan that lies beside this module."""
    with resources.as_file(resources.files("fedrecon.ops.conformance") / "plan") as folder:
        return read_material(folder)


def read_material(folder: Path) -> Material:
    """Returns the plan of a folder."""
    content = manifest_file(folder).read_bytes()
    manifest = read_manifest(content)
    digests = [bytes.fromhex(path.name) for path in blobs_folder(folder).iterdir()]
    blobs = {digest: blob_file(folder, digest).read_bytes() for digest in digests}
    return Material(
        content,
        manifest,
        read_signature(signature_file(folder).read_bytes()),
        {**blobs, digest_of(content): content},
    )
