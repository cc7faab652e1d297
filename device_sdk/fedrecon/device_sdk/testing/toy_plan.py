"""A plan of six films and two factors whose steps are sums, so that a test can redo them by hand.

- reconstruct: user + sum over steps and examples of 0.25 x rating x the item's vector, from 0.5 in both factors
- update: the same with the user in place of the item, for the items; the ratings' sum for a bias
- evaluate: the squared errors of item . user; predict: item . user

Items are named `film-0` to `film-5`; ratings go from 0.5 to 5. The graphs are in `toy_plan.json`, which the tests of
fedrecon write and check: the SDK itself has no library that writes ONNX.
"""

from __future__ import annotations

import base64
import functools
import importlib.resources
import json
from dataclasses import dataclass

from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.plan_pb2 import Manifest, PlanSignature
from fedrecon.wire import manifests
from fedrecon.wire.digests import digest_of

FILE = "toy_plan.json"


@dataclass(frozen=True, slots=True)
class ToyPlan:
    """A plan with all that a round needs of it.

    Attributes:
        manifest: what it says of itself.
        content: its `manifest.json`.
        blobs: everything it names and itself, by digest.
        signature: its publisher's.
    """

    manifest: Manifest
    content: bytes
    blobs: dict[bytes, bytes]
    signature: PlanSignature

    @property
    def publisher(self) -> str:
        """The key that signed it, for `trusted_plans`."""
        return self.signature.publisher_key.hex()

    def reference(self, digest: bytes) -> BlobReference:
        """Returns what names one of its blobs."""
        return BlobReference(digest=digest, size=len(self.blobs[digest]))


@functools.cache
def toy_plan() -> ToyPlan:
    """Returns the plan, always the same."""
    kept = json.loads(importlib.resources.files(__package__).joinpath(FILE).read_bytes())
    contents = [base64.b64decode(text) for text in kept["blobs"]]
    content = base64.b64decode(kept["manifest"])
    signature = PlanSignature.FromString(base64.b64decode(kept["signature"]))
    blobs = {digest_of(blob): blob for blob in (content, *contents)}
    return ToyPlan(manifests.read_manifest(content), content, blobs, signature)


def toy_plan_file(content: bytes, blobs: list[bytes], signature: PlanSignature) -> bytes:
    """Returns what the file must hold for a plan.

    Args:
        content: its manifest.
        blobs: what the manifest names.
        signature: its publisher's.
    """
    kept = {
        "manifest": base64.b64encode(content).decode(),
        "signature": base64.b64encode(signature.SerializeToString(deterministic=True)).decode(),
        "blobs": [base64.b64encode(blob).decode() for blob in sorted(blobs)],
    }
    return (json.dumps(kept, indent=1) + "\n").encode()
