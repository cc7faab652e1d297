"""A lighter recommender is the full one with rounded numbers, and says what that loses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from fedrecon.device_sdk import Recommender
from fedrecon.inference.judging import Rater
from fedrecon.inference.lightening import Precision, lighten
from fedrecon.inference.stepwise import open_session
from fedrecon.ops.command import main
from fedrecon.wire.vocabularies import Items, read_vocabulary
from support.inference_sample import make_sample

VECTORS = Path(__file__).parent.parent.parent / "protos" / "vectors"
PRECISIONS: list[Precision] = ["float16", "int8"]


@pytest.fixture(scope="module")
def films() -> tuple[bytes, Items]:
    file = VECTORS / "films-ridge.onnx"
    return file.read_bytes(), read_vocabulary(file.with_suffix(".items").read_bytes())


def table_of(content: bytes, name: str) -> NDArray[np.float32]:
    (found,) = [each for each in onnx.load_from_string(content).graph.initializer if each.name == name]
    return numpy_helper.to_array(found)


@pytest.mark.parametrize(("precision", "largest"), [("float16", 2**-11), ("int8", 0.5 / 127)])
def test_a_table_is_rounded_row_by_row_and_widened_in_the_graph(
    films: tuple[bytes, Items], precision: Precision, largest: float
) -> None:
    full, items = films
    light = lighten(full, items, precision).recommender
    names = {each.name: each.data_type for each in onnx.load_from_string(light).graph.initializer}
    assert "linear/design" not in names
    kept = table_of(light, f"linear/design/{precision}").astype(np.float32)
    if precision == "int8":
        kept *= table_of(light, "linear/design/scales")
    values = table_of(full, "linear/design")
    assert np.abs(kept - values).max() <= largest * np.abs(values).max()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_lighter_file_recommends_on_a_device_and_says_what_it_loses(
    films: tuple[bytes, Items], precision: Precision
) -> None:
    full, items = films
    random = np.random.default_rng(1)
    users = [Rater([str(row) for row in random.permutation(30)], random.integers(1, 6, 30).astype(float))]
    users = [Rater([items.keys[int(key)] for key in each.keys], each.ratings) for each in users]
    found = lighten(full, items, precision, users)
    told = open_session(found.recommender).get_modelmeta().custom_metadata_map
    assert told["fedrecon.precision"] == precision
    assert 0 < float(told["fedrecon.precision_difference"]) < 0.01
    figures = json.loads(told["fedrecon.precision_rmse"])
    assert found.rmse == (figures["float32"], figures[precision])
    assert abs(figures["loss"]) < 0.01
    stored = (VECTORS / "films-ridge.items").read_bytes()
    columns = {"item": list(items.keys[:3]), "rating": [5.0, 1.0, 4.0]}
    ours, theirs = (Recommender(each, stored).recommend(columns, 38) for each in (found.recommender, full))
    scores = {each.key: each.score for each in theirs}
    assert [each.score for each in ours] == pytest.approx([scores[each.key] for each in ours], abs=0.02)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_file_with_its_plans_graphs_laid_in_is_lightened_too(precision: Precision) -> None:
    sample = make_sample()
    items = read_vocabulary(sample.vocabulary)
    found = lighten(sample.export(laid=True), items, precision)
    assert 0 < found.difference < 0.02
    assert table_of(found.recommender, f"global/table/{precision}").dtype == np.dtype(precision)


def test_float32_is_the_file_itself(films: tuple[bytes, Items]) -> None:
    assert lighten(*films, "float32").recommender == films[0]


def test_equal_files_are_lightened_to_equal_bytes(films: tuple[bytes, Items]) -> None:
    assert lighten(*films, "int8").recommender == lighten(*films, "int8").recommender


def test_a_command_writes_a_lighter_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "films.onnx"
    plan = ["export", "--plan", str(VECTORS / "films-ridge"), "--out", str(out)]
    assert main([*plan, "--precision", "float16"]) == 0
    assert "tables are float16" in capsys.readouterr().out
    assert table_of(out.read_bytes(), "linear/design/float16").dtype == np.float16
    assert main([*plan, "--precision", "int4"]) == 2
    assert main([*plan, "--users", str(tmp_path)]) == 2
    assert "float32 has none" in capsys.readouterr().err
