"""A plan with the parts that inference needs, read from wherever its blobs lie.

Rules: every part is checked against the digest that names it. What a task may choose (schedule, hyperparameters,
vocabulary) is not part of the plan, but is given where it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from fedrecon.v1 import plan_pb2
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.plan_pb2 import Field, Graph, GraphRole, Manifest, Parameter, Schedule
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire.checkpoints import MismatchedCheckpointError, global_parameters
from fedrecon.wire.digests import digest_of, verify_digest
from fedrecon.wire.manifests import MalformedPlanError, graph_of, read_manifest
from fedrecon.wire.tensors import read_safetensors
from fedrecon.wire.vocabularies import Items, read_vocabulary

Arrays = Mapping[str, NDArray[Any]]
Fetch = Callable[[BlobReference], bytes]

NEEDED_ROLES = (plan_pb2.GRAPH_ROLE_TOUCH, plan_pb2.GRAPH_ROLE_RECONSTRUCT, plan_pb2.GRAPH_ROLE_PREDICT)


class NotExportableError(ValueError):
    """A plan, checkpoint or vocabulary cannot become a recommender; the message says why."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A plan, ready to be exported.

    Attributes:
        digest: SHA-256 of the manifest's bytes.
        manifest: what the plan says.
        graphs: the ONNX files that inference needs, by role.
        recorded_answers: inputs and torch's own answers, `CASE/GRAPH/input|output/NAME`; empty if there are none.
    """

    digest: bytes
    manifest: Manifest
    graphs: Mapping[GraphRole.ValueType, bytes]
    recorded_answers: Arrays

    def parameter(self, name: str) -> Parameter:
        """Returns a parameter.

        Raises:
            NotExportableError: the plan has none of this name.
        """
        for parameter in self.manifest.parameters:
            if parameter.name == name:
                return parameter
        raise NotExportableError(f"plan {self.manifest.name!r}: a graph reads the unknown parameter {name!r}")

    def field(self, name: str) -> Field:
        """Returns a field of the examples.

        Raises:
            NotExportableError: the plan has none of this name.
        """
        for field in self.manifest.fields:
            if field.name == name:
                return field
        raise NotExportableError(f"plan {self.manifest.name!r}: a graph reads the unknown field {name!r}")

    def graph(self, role: GraphRole.ValueType) -> Graph:
        """Returns what the manifest says of a graph.

        Raises:
            NotExportableError: the plan has none in this role.
        """
        try:
            return graph_of(self.manifest, role)
        except MalformedPlanError as error:
            raise NotExportableError(str(error)) from error

    def item_field(self) -> Field:
        """Returns the one input field, whose vocabulary holds what is recommended.

        Raises:
            NotExportableError: there is not exactly one, or predictions need more than the item.
        """
        inputs = [field for field in self.manifest.fields if field.role == plan_pb2.FIELD_ROLE_INPUT]
        items = [field for field in inputs if field.vocabulary]
        names = ", ".join(field.name for field in inputs) or "none"
        if len(items) != 1:
            raise NotExportableError(
                f"plan {self.manifest.name!r} has {len(items)} input fields with a vocabulary, but a recommender ranks "
                f"the entries of exactly one (its input fields: {names})"
            )
        if len(inputs) > 1 or items[0].shape:
            raise NotExportableError(
                f"plan {self.manifest.name!r} predicts from {names}; a recommender knows of an item only its row, "
                "one for each example"
            )
        return items[0]

    def vocabulary(self, newer: Mapping[str, BlobReference]) -> BlobReference:
        """Returns the vocabulary of what is recommended: the task's newer one, or the plan's.

        Args:
            newer: vocabularies that the task carries, by name.

        Raises:
            NotExportableError: the plan recommends nothing, or neither names the vocabulary.
        """
        name = self.item_field().vocabulary
        for vocabularies in (newer, self.manifest.vocabularies):
            if name in vocabularies:
                return vocabularies[name]
        raise NotExportableError(f"neither the task nor plan {self.manifest.name!r} has a vocabulary {name!r}")


def read_bundle(manifest_bytes: bytes, fetch: Fetch) -> Bundle:
    """Returns a plan whose parts are fetched by digest.

    Args:
        manifest_bytes: the exact bytes of `manifest.json`.
        fetch: gives the bytes of a blob; it raises what it likes if it has none.

    Raises:
        MalformedPlanError: the manifest cannot be read.
        DigestMismatchError: a part is not what the manifest names.
    """
    manifest = read_manifest(manifest_bytes)
    graphs = {
        graph.role: fetch_verified(graph.blob, f"{GraphRole.Name(graph.role)} of plan {manifest.name!r}", fetch)
        for graph in manifest.graphs
        if graph.role in NEEDED_ROLES
    }
    answers: Arrays = {}
    if manifest.recorded_answers.digest:
        answers = read_safetensors(fetch_verified(manifest.recorded_answers, "recorded answers", fetch))
    return Bundle(digest_of(manifest_bytes), manifest, graphs, answers)


def fetch_verified(blob: BlobReference, what: str, fetch: Fetch) -> bytes:
    """Returns the bytes of a blob.

    Raises:
        DigestMismatchError: they are not what its digest says.
    """
    content = fetch(blob)
    verify_digest(content, blob.digest, what)
    return content


def read_checkpoint(bundle: Bundle, content: bytes) -> dict[str, NDArray[Any]]:
    """Returns the global parameters of a checkpoint, in the types of the plan.

    Raises:
        MalformedTensorsError: it is no safetensors file.
        NotExportableError: a global parameter is missing, has another shape, or is not finite.
    """
    tensors = read_safetensors(content)
    try:
        return global_parameters(bundle.manifest, tensors)
    except MismatchedCheckpointError as error:
        raise NotExportableError(str(error)) from error


def read_items(bundle: Bundle, content: bytes) -> Items:
    """Returns the vocabulary of what is recommended.

    Raises:
        MalformedVocabularyError: the bytes are damaged.
        NotExportableError: it is another vocabulary than the plan's, or empty.
    """
    items = read_vocabulary(content)
    name = bundle.item_field().vocabulary
    if items.name != name or not items.keys:
        raise NotExportableError(
            f"the plan recommends entries of {name!r}, but the vocabulary given is {items.name!r} "
            f"with {len(items.keys)} entries"
        )
    return items


def schedule_of(bundle: Bundle, work: LocalWork) -> Schedule:
    """Returns the schedule of the reconstruction: the task's own, or the plan's."""
    return work.reconstruct_schedule if work.HasField("reconstruct_schedule") else bundle.manifest.reconstruct_schedule


def hyperparameter_of(bundle: Bundle, work: LocalWork, name: str) -> float:
    """Returns the value of a hyperparameter: the task's own, or the plan's default.

    Raises:
        NotExportableError: the plan has no such hyperparameter.
    """
    if name in work.hyperparameters:
        return work.hyperparameters[name]
    if name not in bundle.manifest.hyperparameters:
        raise NotExportableError(f"plan {bundle.manifest.name!r}: a graph reads the unknown hyperparameter {name!r}")
    return bundle.manifest.hyperparameters[name].default_value
