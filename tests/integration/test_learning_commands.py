"""`fedrecon plan`, as a person types it: through the `fedrecon` command, with its exit codes."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from fedrecon.ops import command

ITEMS = 'key,title\nalien,"Alien, 1979"\nbrazil,Brazil\ncasablanca,Casablanca\n'


@pytest.fixture(autouse=True)
def only_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verb as the entry point will name it, whatever this installation registered."""
    point = EntryPoint("plan", "fedrecon.learning.commands:plan", command.ENTRY_POINT_GROUP)
    monkeypatch.setattr(command, "entry_points", lambda **_: [point])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("commands")


def say(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    assert command.main(["plan", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert command.main(["plan", *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert printed.out == ""
    return printed.err


def test_a_person_makes_a_key_compiles_shows_and_verifies(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, items, out = folder / "key.pem", folder / "items.csv", folder / "plan"
    items.write_text(ITEMS)
    public = say(capsys, "keygen", key)["publisher_key"]
    compiled = say(capsys, "compile", "--items", items, "--key", key, "--out", out, "--factors", "3")
    shown = say(capsys, "show", out)
    assert shown["digest"] == compiled["digest"]
    assert shown["publisher_key"] == public
    assert shown["manifest"]["hyperparameters"]["reconstruct.ridge"]["default_value"] == 5.0
    verified = say(capsys, "verify", out)
    assert verified["digest"] == compiled["digest"]
    assert verified["answers"] == 10
    assert verified["largest_difference"] < 1e-5
    assert command.main(["plan", "show", str(out)]) == 0
    table = capsys.readouterr().out
    assert "item_vectors.weight" in table
    assert "0.5 to 5" in table
    assert command.main(["plan", "verify", str(out)]) == 0
    assert compiled["digest"] in capsys.readouterr().out
    again = refuse(capsys, "compile", "--items", items, "--key", key, "--out", out)
    assert "plans are never overwritten" in again
    assert "a key is never overwritten" in refuse(capsys, "keygen", key)


def test_a_damaged_plan_is_a_mistake_and_not_a_crash(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = folder / "damaged"
    plan.mkdir()
    (plan / "manifest.json").write_text("{")
    assert "manifest cannot be read" in refuse(capsys, "verify", plan)
    assert "cannot read" in refuse(capsys, "show", folder / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,name\n1,Alien\n", "does not start with the header line key,title"),
        ("key,title\n", "names no item"),
        ("key,title\na,Alien\nb\n", "row 3: expected a key and a title"),
        ("key,title\na,Alien\na,Again\n", "row 3: the key 'a' is already in row 2"),
    ],
)
def test_a_list_of_items_that_cannot_be_used_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    items = tmp_path / "items.csv"
    items.write_text(content)
    said = refuse(capsys, "compile", "--items", items, "--key", tmp_path / "key", "--out", tmp_path / "plan")
    assert message in said
    assert str(items) in said


def test_a_missing_file_and_a_wrong_number_are_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items, key = tmp_path / "items.csv", tmp_path / "key.pem"
    arguments = ("--items", items, "--key", key, "--out", tmp_path / "plan")
    assert f"cannot read {items}" in refuse(capsys, "compile", *arguments)
    items.write_text(ITEMS)
    assert f"cannot read the key {key}" in refuse(capsys, "compile", *arguments)
    say(capsys, "keygen", key)
    assert "must be positive" in refuse(capsys, "compile", *arguments, "--ridge", "-1")
