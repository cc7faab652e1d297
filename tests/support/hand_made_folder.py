"""The hand-made plan as a compiled plan's folder, and ratings of its items: rounds that cost next to nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from google.protobuf import json_format

from fedrecon.ops.fleet.people import ITEM, RATING, Person
from fedrecon.ops.plan_folders import blob_file, blobs_folder, manifest_file, signature_file
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.wire import manifests
from fedrecon.wire.digests import digest_of
from fedrecon.wire.tensors import write_safetensors
from support.device_bundle import KEYS, PUBLISHER, make_plan

_EXAMPLES = 12


def write_hand_made_plan(folder: Path) -> Path:
    """Writes the plan into a folder, and returns it."""
    plan = make_plan()
    manifest, answers = plan.manifest, write_safetensors({})
    manifest.recorded_answers.CopyFrom(BlobReference(digest=digest_of(answers), size=len(answers)))
    content = manifests.write_manifest(manifest)
    blobs_folder(folder).mkdir(parents=True)
    for blob in (*plan.blobs.values(), answers):
        blob_file(folder, digest_of(blob)).write_bytes(blob)
    manifest_file(folder).write_bytes(content)
    signature = manifests.sign_plan(digest_of(content), PUBLISHER)
    signature_file(folder).write_text(json_format.MessageToJson(signature, preserving_proto_field_name=True))
    return folder


def people_with_films(count: int, seed: int) -> list[Person]:
    """Returns people who rated the plan's six films, some twice."""
    source = np.random.default_rng(seed)
    keys = np.array(KEYS, dtype=object)
    return [
        Person(
            str(number),
            {
                ITEM: keys[source.integers(0, len(KEYS), _EXAMPLES)],
                RATING: source.integers(1, 6, _EXAMPLES).astype(np.float64),
            },
        )
        for number in range(count)
    ]
