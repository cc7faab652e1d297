import json
from pathlib import Path

from typer.testing import CliRunner

from fedrecon.datasets.commands import data

runner = CliRunner()


def test_made_up_ratings_are_shown_as_json(tmp_path: Path) -> None:
    out = tmp_path / "made"
    made = runner.invoke(data, ["generate", "--users", "50", "--items", "80", "--seed", "4", "--out", str(out)])
    assert made.exit_code == 0, made.output
    shown = runner.invoke(data, ["show", str(out), "--json"])
    assert shown.exit_code == 0, shown.output
    summary = json.loads(shown.stdout)
    assert (summary["users"], summary["items"]) == (50, 80)
    assert summary["min_per_user"] >= 20
    assert summary["density"] == round(summary["ratings"] / 4000, 6)
    assert f"{summary['ratings']:,} ratings" in made.stdout


def test_a_summary_is_shown_as_a_table(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,3,5\n1,2,4,5\n2,1,5,5\n")
    shown = runner.invoke(data, ["show", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    words = shown.stdout.split()
    for name, value in (("users", "2"), ("ratings", "3"), ("mean", "4"), ("density", "0.75")):
        assert words[words.index(name) + 2] == value


def test_what_cannot_be_loaded_ends_with_its_reason(tmp_path: Path) -> None:
    shown = runner.invoke(data, ["show", str(tmp_path)])
    assert shown.exit_code == 2
    assert "looked for ratings.dat, u.data, ratings.csv" in shown.stderr
    assert not shown.stdout


def test_what_cannot_be_made_ends_with_its_reason(tmp_path: Path) -> None:
    made = runner.invoke(data, ["generate", "--items", "5", "--out", str(tmp_path / "made")])
    assert made.exit_code == 2
    assert "5 items are too few" in made.stderr
    assert not (tmp_path / "made").exists()
