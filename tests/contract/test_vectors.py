"""The known answers of whole files: Python is held to them like every other language."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from fedrecon.device_sdk import Recommender
from fedrecon.device_sdk.columns import map_examples, newest, rule_of
from fedrecon.device_sdk.plans import Plan, load_plan, read_checkpoint, rows_in_force
from fedrecon.device_sdk.runtime import Seeds, train
from fedrecon.ops.plan_folders import blob_file, manifest_file, signature_file
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire import chunks, manifests
from fedrecon.wire.digests import digest_of
from fedrecon.wire.row_sets import read_row_set, write_row_set
from fedrecon.wire.tensors import read_safetensors
from fedrecon.wire.vocabularies import read_vocabulary

VECTORS = Path(__file__).parents[2] / "protos" / "vectors"
TOLERANCE = 1e-5
PLANS = ("films-gradient", "films-ridge")


def cases(file: str, key: str = "cases") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((VECTORS / f"{file}.json").read_text())[key]
    assert found, f"{file}.json has no {key}"
    return found


def close(found: Any, expected: Any) -> bool:
    right = np.array(expected, dtype=np.float64)
    scale = max(1.0, float(np.abs(right).max(initial=0.0)))
    return bool(np.allclose(np.asarray(found).ravel(), right, rtol=0, atol=TOLERANCE * scale))


def test_recommenders_give_their_published_answers() -> None:
    opened = {name: Recommender(VECTORS / f"{name}.onnx") for name in PLANS}
    for case in cases("recommendations"):
        recommender, examples = opened[case["file"]], case["examples"]
        assert list(recommender.unknown_keys(examples)) == case["unknown_keys"]
        local = recommender.reconstruct(examples)
        assert local.keys() == case["local"].keys()
        assert all(close(local[name], values) for name, values in case["local"].items())
        keys = recommender.items.keys
        scores = {each.key: each.score for each in recommender.recommend(examples, len(keys), exclude_seen=False)}
        expected = {key: score for key, score in zip(keys, case["scores"], strict=True) if score is not None}
        assert scores.keys() == expected.keys()
        assert close([scores[key] for key in expected], list(expected.values()))
        best = recommender.recommend(examples, len(case["best"]), exclude=case["exclude"])
        assert [(each.key, each.title) for each in best] == [(each["key"], each["title"]) for each in case["best"]]


def open_plan(folder: Path) -> Plan:
    return load_plan(manifest_file(folder).read_bytes(), lambda digest: blob_file(folder, digest).read_bytes())


def test_plans_train_as_published() -> None:
    for case in cases("training"):
        folder = VECTORS / case["plan"]
        plan = open_plan(folder)
        manifest = plan.manifest
        checkpoint = read_checkpoint(blob_file(folder, manifest.initial_checkpoint.digest).read_bytes(), manifest)
        items = {
            name: read_vocabulary(blob_file(folder, each.digest).read_bytes())
            for name, each in manifest.vocabularies.items()
        }
        work = json_format.ParseDict(case["work"], LocalWork())
        columns = {name: np.array(values) for name, values in case["examples"].items()}
        rules = [rule_of(field) for field in manifest.fields]
        mapped = newest(map_examples(rules, columns, items, rows_in_force(manifest, checkpoint)), work.maximum_examples)
        seeds = Seeds(bytes.fromhex(case["initial_seed"]), bytes.fromhex(case["split_seed"]), bytes(32))
        result = train(plan, checkpoint, mapped.columns, work, seeds)
        assert result.examples == case["query_examples"]
        assert all(close(result.local_parameters[name], values) for name, values in case["local"].items())
        assert close(result.metric_sums, case["metric_sums"])
        assert result.updates.keys() == case["updates"].keys()
        for name, expected in case["updates"].items():
            rows = result.updates[name].rows
            assert (None if rows is None else rows.tolist()) == expected["rows"]
            assert close(result.updates[name].values, expected["values"])


@pytest.mark.parametrize("name", PLANS)
def test_every_part_of_a_published_plan_is_what_its_name_says(name: str) -> None:
    content = manifest_file(VECTORS / name).read_bytes()
    manifests.verify_plan(digest_of(content), manifests.read_signature(signature_file(VECTORS / name).read_bytes()))
    for what, blob in manifests.blobs_of(manifests.read_manifest(content)):
        assert digest_of(blob_file(VECTORS / name, blob.digest).read_bytes()) == blob.digest, what


def test_safetensors_files_are_read_as_their_library_wrote_them() -> None:
    for case in cases("formats", "tensors"):
        found = read_safetensors(bytes.fromhex(case["file"]))
        assert found.keys() == case["tensors"].keys()
        for name, expected in case["tensors"].items():
            assert (str(found[name].dtype), list(found[name].shape)) == (expected["type"], expected["shape"])
            assert found[name].ravel().tolist() == expected["values"]


def test_vocabularies_and_row_sets_are_read_as_they_were_written() -> None:
    for case in cases("formats", "vocabularies"):
        items = read_vocabulary(bytes.fromhex(case["content"]))
        assert (items.name, items.version) == (case["name"], case["version"])
        assert list(items.keys) == case["keys"]
        assert list(items.titles) == case["titles"]
        assert list(items.retired) == case["retired_rows"]
    for case in cases("formats", "row_sets"):
        content = bytes.fromhex(case["content"])
        row_set = read_row_set(content)
        assert digest_of(content).hex() == case["digest"]
        assert row_set.rows.tolist() == case["rows"]
        assert (row_set.contributors, row_set.cohort_size) == (case["contributors"], case["cohort_size"])
        assert write_row_set(row_set.rows, row_set.contributors, row_set.cohort_size) == content


def test_content_is_cut_into_the_published_chunks() -> None:
    for case in cases("formats", "chunks"):
        content = (bytes(range(256)) * (case["size"] // 256 + 1))[: case["size"]]
        assert digest_of(content).hex() == case["digest"]
        cut = list(chunks.cut(content, case["offset"]))
        found = [{"offset": one.offset, "size": len(one.data), "digest": one.digest.hex()} for one in cut]
        assert found == case["chunks"]
