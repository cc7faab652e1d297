"""`fedrecon export` and `fedrecon recommend`, as a person types them."""

from __future__ import annotations

import json
import re
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer import Typer
from typer.testing import CliRunner

from fedrecon.device_sdk import Recommender
from fedrecon.device_sdk.errors import UnusablePlanError
from fedrecon.inference.commands import recommend
from fedrecon.inference.matching import UnclearItemError, find_item
from fedrecon.ops.command import main
from fedrecon.wire.tensors import write_safetensors
from fedrecon.wire.vocabularies import read_vocabulary, write_vocabulary
from support.inference_sample import FACTORS, ITEMS, RETIRED, make_sample


@pytest.fixture(autouse=True)
def commands_are_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry points of this room, as the installed distribution names them."""
    points = [
        EntryPoint(name, f"fedrecon.inference.commands:{name}", "fedrecon.commands") for name in ("export", "recommend")
    ]
    monkeypatch.setattr("fedrecon.ops.command.entry_points", lambda **_: points)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return make_sample().write(tmp_path / "plan")


@pytest.fixture
def file(plan: Path, tmp_path: Path) -> Path:
    out = tmp_path / "films.onnx"
    assert main(["export", "--plan", str(plan), "--out", str(out)]) == 0
    return out


def test_a_plan_is_exported_with_its_items_and_used_on_a_device(file: Path) -> None:
    recommender = Recommender(file)
    assert file.with_suffix(".items").exists()
    found = recommender.recommend({"item": ["key-1", "key-2"], "rating": [5.0, 1.0]}, 100)
    assert {one.key for one in found} == {f"key-{row}" for row in range(ITEMS)} - {"key-1", "key-2"} - {
        f"key-{row}" for row in RETIRED
    }


def test_a_given_checkpoint_is_exported_instead_of_the_initial_one(plan: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "late.safetensors"
    table = np.full((ITEMS, FACTORS), 0.5, dtype=np.float32)
    checkpoint.write_bytes(write_safetensors({"table": table, "biases": np.zeros((ITEMS, 1), dtype=np.float32)}))
    out = tmp_path / "late.onnx"
    assert main(["export", "--plan", str(plan), "--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    held = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(out).graph.initializer}
    np.testing.assert_allclose(held["linear/design"][:, :FACTORS], table, rtol=1e-6)


def test_recommendations_are_those_of_the_device(file: Path) -> None:
    app = Typer()
    app.command()(recommend)
    rated = ["--rate", "film 01=5", "--rate", "key-2=1"]
    result = CliRunner().invoke(app, [str(file), *rated, "-k", "3", "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    expected = Recommender(file).recommend({"item": ["key-1", "key-2"], "rating": [5.0, 1.0]}, 3)
    assert json.loads(result.stdout)["recommendations"] == [
        {"key": one.key, "title": one.title, "score": one.score} for one in expected
    ]
    table = CliRunner().invoke(app, [str(file), *rated, "-k", "3"], catch_exceptions=False).stdout
    assert [line.split()[2] for line in table.splitlines()[1:]] == [one.title.split()[1] for one in expected]


def test_someone_without_ratings_is_recommended_to(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", str(file), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["recommendations"]) == 10


@pytest.mark.parametrize(
    ("rating", "said"),
    [
        ("Film 01=7", "7 is not on the scale of rating"),
        ("Film 01=nan", "has no number"),
        ("Film 01", "has no number"),
        ("Film 0=5", "may be any of: Film 00 (1970) (key key-0); Film 01"),
        ("Fulm 29 (1999)=5", "no item is called 'Fulm 29 (1999)'; the nearest are: Film 29 (1999) (key key-29)"),
    ],
)
def test_a_wrong_rating_is_the_persons_mistake(
    file: Path, rating: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recommend", str(file), "--rate", rating]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name either a task or a plan"),
        (["films", "--plan", "somewhere"], "Name either a task or a plan"),
        (["films", "--checkpoint", "late"], "--checkpoint belongs to --plan"),
        (["--plan", "nowhere"], "nowhere/manifest.json cannot be read"),
        (["films", "--server", "127.0.0.1:1"], "With --server it must be said where blobs are fetched"),
    ],
)
def test_a_wrong_export_is_the_persons_mistake(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_damaged_plan_writes_nothing(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blob = next(path for path in (plan / "blobs").iterdir() if b"ScatterND" not in path.read_bytes())
    blob.write_bytes(b"x" + blob.read_bytes()[1:])
    out = tmp_path / "films.onnx"
    assert main(["export", "--plan", str(plan), "--out", str(out)]) == 2
    assert re.search(r"cannot be used: .*: expected SHA-256 [0-9a-f]{64}, got", capsys.readouterr().err)
    assert not out.exists()
    assert not out.with_suffix(".items").exists()


def test_items_of_another_export_are_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.with_suffix(".items").write_bytes(write_vocabulary("items", 9, ["other"]))
    assert main(["recommend", str(file)]) == 2
    assert "do not belong together" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".onnx", ".items"])
def test_one_flipped_byte_is_never_a_wrong_list(file: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads(file.with_suffix(".bundle.json").read_text())
    assert manifest["recommender"]["size"] == file.stat().st_size
    damaged = bytearray(file.with_suffix(suffix).read_bytes())
    damaged[len(damaged) // 3] ^= 1
    file.with_suffix(suffix).write_bytes(damaged)
    with pytest.raises(UnusablePlanError, match="do not belong together, or one of them is damaged"):
        Recommender(file)
    assert main(["recommend", str(file), "--rate", "key-1=5"]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_a_manifest_that_is_none_is_told(file: Path) -> None:
    file.with_suffix(".bundle.json").write_text("[]")
    with pytest.raises(UnusablePlanError, match="no manifest"):
        Recommender(file)
    file.with_suffix(".bundle.json").unlink()
    assert Recommender(file).recommend({"item": [], "rating": []}, 3)


def items_called(*titles: str) -> Any:
    return read_vocabulary(write_vocabulary("items", 1, [str(row) for row in range(len(titles))], titles))


def test_a_whole_title_wins_over_titles_that_contain_it() -> None:
    items = items_called("Alien", "Alien 3", "Heat")
    assert find_item(items, "alien") == 0
    assert find_item(items, "3") == 1
    assert find_item(items, "2") == 2


def test_words_that_fit_many_titles_are_not_guessed() -> None:
    items = items_called(*(f"Rocky {number}" for number in range(1, 13)))
    with pytest.raises(UnclearItemError, match=r"Rocky 8 \(key 7\); and 4 more"):
        find_item(items, "rocky")
    with pytest.raises(UnclearItemError, match=r"no item is called 'zzz'$"):
        find_item(items, "zzz")
