"""From a PyTorch model to a signed plan on disk, in one call.

Inspect, translate, compare with torch, write. Nothing is written unless every graph agrees with torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.learning.model import FederatedModel
from fedrecon.learning.planning.bundle import Bundle, read_bundle, refuse_existing, write_bundle
from fedrecon.learning.planning.graphs import compile_graphs
from fedrecon.learning.planning.inspection import inspect
from fedrecon.learning.planning.manifest import Blobs, build_manifest
from fedrecon.learning.planning.values import PlanError
from fedrecon.learning.planning.verification import Arrays, compare, levels, open_graph, verify
from fedrecon.v1 import plan_pb2
from fedrecon.wire.digests import digest_of
from fedrecon.wire.manifests import role_names, sign_plan, write_manifest
from fedrecon.wire.tensors import read_safetensors


@dataclass(frozen=True, slots=True)
class CompiledPlan:
    """A plan that was just written.

    Attributes:
        digest: its name: the SHA-256 of `manifest.json`.
        manifest: what it holds.
        path: its folder.
        largest_difference: of any graph from torch, relative to the largest expected number.
    """

    digest: bytes
    manifest: plan_pb2.Manifest
    path: Path
    largest_difference: float


def compile_plan(
    model: FederatedModel,
    vocabularies: Mapping[str, plan_pb2.Vocabulary],
    key: Ed25519PrivateKey,
    directory: Path,
    seed: int = 0,
) -> CompiledPlan:
    """Compiles a model into a plan, verifies it, signs it, and writes it.

    The same model, vocabularies and seed give the same digest, on the same versions of the tools.

    Args:
        model: what to compile; its present global parameters become the initial checkpoint.
        vocabularies: entries of the rows of row-sparse parameters, by name.
        key: the publisher's.
        directory: where to write the plan; must not exist.
        seed: of the random inputs that the graphs are verified with, of which some are recorded in the plan.

    Raises:
        PlanError: the model cannot become a plan, a graph differs from torch, or the folder exists.
    """
    refuse_existing(directory)
    inspect(model)
    graphs = compile_graphs(model)
    answers, largest = verify(model, graphs, seed)
    blobs = Blobs()
    manifest = build_manifest(model, graphs, vocabularies, answers, blobs)
    content = write_manifest(manifest)
    digest = digest_of(content)
    write_bundle(directory, content, sign_plan(digest, key), blobs.contents)
    return CompiledPlan(digest, manifest, directory, largest)


@dataclass(frozen=True, slots=True)
class Verification:
    """What running a plan's recorded answers showed.

    Attributes:
        bundle: the plan, its digests and signature checked.
        answers: recorded answers that were compared, each at both optimisation levels.
        largest_difference: relative to the largest recorded number.
    """

    bundle: Bundle
    answers: int
    largest_difference: float


def verify_plan(directory: Path) -> Verification:
    """Checks digests and signature of a plan, and runs its recorded answers through ONNX Runtime.

    Raises:
        PlanError: a file is damaged, the signature is wrong, or a graph differs from what was recorded.
    """
    bundle = read_bundle(directory)
    recorded = read_safetensors(bundle.blobs[bundle.manifest.recorded_answers.digest])
    cases: dict[tuple[str, str], tuple[Arrays, Arrays]] = {}
    for path, array in recorded.items():
        case, graph_name, kind, name = path.split("/", 3)
        inputs, outputs = cases.setdefault((case, graph_name), ({}, {}))
        (inputs if kind == "input" else outputs)[name] = array
    graphs = {role_names[graph.role]: bundle.blobs[graph.blob.digest] for graph in bundle.manifest.graphs}
    missing = set(graphs) - {graph_name for _, graph_name in cases}
    if missing:
        raise PlanError(f"the plan records no answers for {', '.join(sorted(missing))}")
    largest = 0.0
    for level_name, level in levels:
        runs = {name: open_graph(name, content, level) for name, content in graphs.items()}
        for (case, graph_name), (inputs, outputs) in cases.items():
            where = f"graph {graph_name}, case {case}, {level_name} optimisation"
            largest = max(largest, compare(where, runs[graph_name](where, inputs), outputs))
    return Verification(bundle, len(cases), largest)
