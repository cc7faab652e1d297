"""One device's round on a model of MovieLens 1M's size: the plan, a user's examples, and services in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf import json_format
from numpy.typing import NDArray

from fedrecon.device_sdk.testing import FakeServices, ToyPlan
from fedrecon.learning.models.matrix_factorization import ITEMS, matrix_factorization
from fedrecon.learning.planning import compile_plan
from fedrecon.learning.planning.bundle import read_bundle
from fedrecon.ops.plan_folders import manifest_file, signature_file
from fedrecon.v1.coordinator_pb2 import Assignment
from fedrecon.v1.plan_pb2 import PlanSignature, Vocabulary
from fedrecon.wire.digests import digest_of
from fedrecon.wire.tensors import read_safetensors, write_safetensors

FILMS, FACTORS = 3706, 50
TITLE_LETTERS = 24
"""As many as titles of MovieLens 1M have on average."""
RING_BITS_16 = 16


def make_plan(folder: Path) -> ToyPlan:
    """Compile the paper's matrix factorisation for as many films as MovieLens 1M has, titles as long as its own.

    Args:
        folder: Where the plan is written; must not exist.
    """
    keys = [str(number + 1) for number in range(FILMS)]
    titles = [f"A film of number {key} (1999)"[:TITLE_LETTERS].ljust(TITLE_LETTERS, ".") for key in keys]
    vocabulary = Vocabulary(name=ITEMS, version=1, keys=keys, titles=titles)
    compile_plan(matrix_factorization(FILMS, FACTORS), {ITEMS: vocabulary}, Ed25519PrivateKey.generate(), folder)
    bundle, content = read_bundle(folder), manifest_file(folder).read_bytes()
    signature = json_format.Parse(signature_file(folder).read_text(), PlanSignature())
    return ToyPlan(bundle.manifest, content, {**bundle.blobs, digest_of(content): content}, signature)


def ratings_of_a_user(count: int) -> dict[str, NDArray[np.generic]]:
    """Return so many ratings of as many films, the same each time."""
    source = np.random.default_rng(count)
    keys = np.array([str(row + 1) for row in source.permutation(FILMS)[:count]])
    return {"item": keys, "rating": source.integers(1, 6, count).astype(np.float64)}


def send_16_bits(services: FakeServices) -> None:
    """Let services assign a copy of the checkpoint with 16-bit numbers, and sums in a ring of 16 bits."""
    reference = services.plan.manifest.initial_checkpoint
    tensors = read_safetensors(services.blobs[reference.digest])
    copy = write_safetensors({name: tensor.astype(np.float16) for name, tensor in tensors.items()})
    services.blobs[digest_of(copy)] = copy

    def change(assignment: Assignment) -> None:
        assignment.checkpoint.digest, assignment.checkpoint.size = digest_of(copy), len(copy)
        assignment.secure_sum.ring_bits = RING_BITS_16

    services.change = change
