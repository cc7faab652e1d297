"""Writes the known answers of whole files: what the Python SDK makes of a compiled plan and of recommenders.

    PYTHONPATH=tests python tests/contract/write_vectors.py

Plan, recommenders and users come from seeds. The answers go to `protos/vectors`, where Python, node and browsers are
held to them; what each field is says the README there. The vectors of single functions (`wire.json`,
`secure_sum.json`, `identity.json`) were made by other tools and stay as they are. The plan of `fedrecon conformance`
is written, too.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf import json_format

from fedrecon.device_sdk.columns import map_examples, rule_of
from fedrecon.device_sdk.plans import load_plan, read_checkpoint, rows_in_force
from fedrecon.device_sdk.recommender import Recommender
from fedrecon.device_sdk.runtime import Seeds, train
from fedrecon.inference.collecting import export_from_folder
from fedrecon.learning.models.matrix_factorization import matrix_factorization
from fedrecon.learning.planning import compile_plan
from fedrecon.learning.reconstruction import GradientSteps, Reconstruction, Ridge
from fedrecon.ops.plan_folders import blob_file, blobs_folder, manifest_file, signature_file
from fedrecon.v1 import task_pb2
from fedrecon.v1.plan_pb2 import RowSet, Schedule, Vocabulary
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire import chunks
from fedrecon.wire.digests import digest_of
from fedrecon.wire.manifests import sign_plan
from fedrecon.wire.vocabularies import read_vocabulary
from support.device_bundle import make_plan

VECTORS = Path(__file__).parent.parent.parent / "protos" / "vectors"
CONFORMANCE_PLAN = VECTORS.parents[1] / "ops" / "fedrecon" / "ops" / "conformance" / "plan"
PUBLISHER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ITEMS, FACTORS, MEAN, TOP = 40, 4, 3.6, 10
RETIRED = (5, 31)
HISTORIES = (0, 1, 2, 7, 30)
RECONSTRUCTIONS: Mapping[str, Reconstruction] = {"gradient": GradientSteps(), "ridge": Ridge("rating")}

Case = dict[str, Any]


def main() -> None:
    """Writes all of them."""
    for name, reconstruction in RECONSTRUCTIONS.items():
        folder = VECTORS / f"films-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        compile_films(reconstruction, folder)
        exported = export_from_folder(folder, None)
        (VECTORS / f"films-{name}.onnx").write_bytes(exported.recommender)
        (VECTORS / f"films-{name}.items").write_bytes(exported.items)
    write_conformance_plan(CONFORMANCE_PLAN)
    write(
        "recommendations",
        "Known answers of recommender files: examples -> local parameters -> scores of all items -> the best ten.",
        {"cases": [case for name in RECONSTRUCTIONS for case in recommendation_cases(f"films-{name}")]},
    )
    write(
        "training",
        "Known answers of a plan's graphs: examples -> split -> local parameters, metric sums and update.",
        {"cases": [case for name in RECONSTRUCTIONS for case in training_cases(f"films-{name}")]},
    )
    write(
        "formats",
        "Known answers of files and messages, from the safetensors library, protobuf and hashlib.",
        {"tensors": tensors(), "vocabularies": vocabularies(), "row_sets": row_sets(), "chunks": cut_content()},
    )


def write(name: str, comment: str, content: Mapping[str, Sequence[Case]]) -> None:
    """Writes one file, a case on each line."""
    parts = [f' "comment": {json.dumps(comment)}']
    for key, cases in content.items():
        lines = ",\n".join(f"  {json.dumps(case)}" for case in cases)
        parts.append(f' "{key}": [\n{lines}\n ]')
    (VECTORS / f"{name}.json").write_text("{\n" + ",\n".join(parts) + "\n}\n")


def compile_films(reconstruction: Reconstruction, folder: Path) -> None:
    """Compiles a matrix factorisation whose item table is drawn wide enough that films differ."""
    model = matrix_factorization(ITEMS, FACTORS, mean=MEAN, bias=True, reconstruction=reconstruction)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in (model.module.item_vectors.weight, model.module.item_biases.weight):  # type: ignore[union-attr]
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)  # type: ignore[operator, arg-type]
    vocabulary = Vocabulary(
        name="items",
        version=3,
        keys=[f"film-{row}" for row in range(ITEMS)],
        titles=[f"Film {row:02} ({1970 + row})" for row in range(ITEMS)],
        retired_rows=RETIRED,
    )
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / folder.name
        compile_plan(model, {"items": vocabulary}, PUBLISHER, made)
        shutil.copytree(made, folder)


def write_conformance_plan(folder: Path) -> None:
    """Writes the plan that devices under test run, with a field in its manifest that no version knows."""
    plan = make_plan()
    content = json.loads(plan.content)
    content["of_a_later_version"] = {"ignored": True}
    manifest = json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"
    shutil.rmtree(folder, ignore_errors=True)
    blobs_folder(folder).mkdir(parents=True)
    for digest, blob in plan.blobs.items():
        if blob != plan.content:
            blob_file(folder, digest).write_bytes(blob)
    manifest_file(folder).write_bytes(manifest)
    signature = sign_plan(digest_of(manifest), PUBLISHER)
    signature_file(folder).write_text(json_format.MessageToJson(signature, preserving_proto_field_name=True) + "\n")


def examples_of(user: int, history: int) -> dict[str, list[Any]]:
    """Returns the ratings of a user; every third user rated a film that nobody knows."""
    if not history:
        return {}
    random = np.random.default_rng(user)
    keys = [f"film-{row}" for row in random.choice(ITEMS, history, replace=False)]
    ratings = (random.integers(1, 11, history) / 2).tolist()
    if user % 3 == 0:
        keys, ratings = [*keys, "film-unknown"], [*ratings, 2.5]
    return {"item": keys, "rating": ratings}


def recommendation_cases(name: str) -> list[Case]:
    """Returns what a recommender file gives some users."""
    recommender = Recommender(VECTORS / f"{name}.onnx")
    cases = []
    for user, history in enumerate(HISTORIES):
        examples = examples_of(user, history)
        exclude = ["film-2", "film-2", "film-nowhere"] if user % 2 else []
        everything = {each.key: each.score for each in recommender.recommend(examples, ITEMS, exclude_seen=False)}
        best = recommender.recommend(examples, TOP, exclude=exclude)
        cases.append(
            {
                "file": name,
                "examples": examples,
                "unknown_keys": list(recommender.unknown_keys(examples)),
                "local": {key: value.ravel().tolist() for key, value in recommender.reconstruct(examples).items()},
                "scores": [everything.get(key) for key in recommender.items.keys],
                "exclude": exclude,
                "best": [{"key": each.key, "title": each.title, "score": each.score} for each in best],
            }
        )
    return cases


def work_of(case: int) -> LocalWork:
    """Returns what a task asks of examples, different in every case."""
    works = (
        LocalWork(split=task_pb2.SPLIT_RULE_ALTERNATE_BATCHES),
        LocalWork(
            split=task_pb2.SPLIT_RULE_BY_FRACTION,
            support_fraction=0.4,
            update_schedule=Schedule(batch_size=3, epochs=2, maximum_steps=5),
            hyperparameters={"update.rate": 0.25},
        ),
        LocalWork(split=task_pb2.SPLIT_RULE_BY_TIME, support_fraction=0.5, maximum_examples=20),
    )
    return works[case]


def training_cases(name: str) -> list[Case]:
    """Returns what a plan's graphs make of some users' examples."""
    folder = VECTORS / name
    content = manifest_file(folder).read_bytes()
    plan = load_plan(content, lambda digest: blob_file(folder, digest).read_bytes())
    manifest = plan.manifest
    checkpoint = read_checkpoint(blob_file(folder, manifest.initial_checkpoint.digest).read_bytes(), manifest)
    stored = {key: blob_file(folder, each.digest).read_bytes() for key, each in manifest.vocabularies.items()}
    items = {key: read_vocabulary(content) for key, content in stored.items()}
    cases = []
    for number in range(3):
        examples, work = examples_of(number, 30), work_of(number)
        rules = [rule_of(field) for field in manifest.fields]
        columns = {key: np.array(values) for key, values in examples.items()}
        mapped = map_examples(rules, columns, items, rows_in_force(manifest, checkpoint))
        newest = {key: values[-(work.maximum_examples or len(values)) :] for key, values in mapped.columns.items()}
        seeds = Seeds(bytes([number + 1]) * 32, bytes([number + 2]) * 32, bytes(32))
        result = train(plan, checkpoint, newest, work, seeds)
        cases.append(
            {
                "plan": name,
                "examples": examples,
                "work": json_format.MessageToDict(work, preserving_proto_field_name=True),
                "initial_seed": seeds.initial.hex(),
                "split_seed": seeds.split.hex(),
                "query_examples": result.examples,
                "local": {key: value.ravel().tolist() for key, value in result.local_parameters.items()},
                "metric_sums": list(result.metric_sums),
                "updates": {
                    key: {
                        "rows": None if update.rows is None else update.rows.tolist(),
                        "values": update.values.ravel().tolist(),
                    }
                    for key, update in result.updates.items()
                },
            }
        )
    return cases


def tensors() -> list[Case]:
    """Returns safetensors files, as their own library writes them."""
    files: list[dict[str, np.ndarray[Any, Any]]] = [
        {"table": np.array([[0.5, -1.25], [3.0, 2**-20]], dtype=np.float32), "scalar": np.array(7, dtype=np.int64)},
        {"empty": np.zeros((0, 3), dtype=np.float32), "flags": np.array([True, False, True])},
    ]
    return [
        {
            "file": safetensors.numpy.save(arrays).hex(),
            "tensors": {
                name: {"type": str(array.dtype), "shape": list(array.shape), "values": array.ravel().tolist()}
                for name, array in arrays.items()
            },
        }
        for arrays in files
    ]


def vocabularies() -> list[Case]:
    """Returns stored vocabularies."""
    messages = [
        Vocabulary(name="items", version=3, keys=["a", "ü", "7"], titles=["Alpha", "Über", "Seven"], retired_rows=[1]),
        Vocabulary(name="tags", version=300, keys=["one"]),
    ]
    return [
        {
            "content": message.SerializeToString(deterministic=True).hex(),
            "name": message.name,
            "version": message.version,
            "keys": list(message.keys),
            "titles": list(message.titles),
            "retired_rows": list(message.retired_rows),
        }
        for message in messages
    ]


def row_sets() -> list[Case]:
    """Returns stored row sets."""
    message = RowSet(rows=[0, 3, 129, 70_000], contributors=5, cohort_size=400)
    content = message.SerializeToString(deterministic=True)
    return [
        {
            "content": content.hex(),
            "digest": hashlib.sha256(content).hexdigest(),
            "rows": list(message.rows),
            "contributors": message.contributors,
            "cohort_size": message.cohort_size,
        }
    ]


def cut_content() -> list[Case]:
    """Returns the chunks of some content, by hashlib alone; those of 1 MiB by their digests."""
    content = bytes(range(256)) * (3 * chunks.CHUNK_BYTES // 256 // 2)
    starts = range(1000, len(content), chunks.CHUNK_BYTES)
    pieces = [content[start : start + chunks.CHUNK_BYTES] for start in starts]
    return [
        {
            "content": "the bytes 0 to 255, again and again",
            "size": len(content),
            "digest": hashlib.sha256(content).hexdigest(),
            "offset": 1000,
            "chunks": [
                {"offset": start, "size": len(piece), "digest": hashlib.sha256(piece).hexdigest()}
                for start, piece in zip(starts, pieces, strict=True)
            ],
        }
    ]


if __name__ == "__main__":
    main()
