import json
from pathlib import Path

from typer.testing import CliRunner

from fedrecon.datasets.commands import data
from fedrecon.wire.row_sets import read_row_set
from fedrecon.wire.vocabularies import write_vocabulary

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


def write_ratings(folder: Path, raters: dict[str, int], users: int) -> None:
    """Writes ratings in which so many users rated each item, and every user some other one."""
    lines = [f"{user},{item},3,5" for item, count in raters.items() for user in range(count)]
    lines += [f"{user},{1_000 + user},3,5" for user in range(users)]
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "\n".join(lines) + "\n")


def test_a_row_set_has_the_items_with_enough_contributors_expected(tmp_path: Path) -> None:
    write_ratings(tmp_path, {"1": 9, "2": 10, "3": 20}, users=40)
    asked = ["rows", "--ratings", str(tmp_path), "--cohort", "40", "--contributors", "5", "--out"]
    made = runner.invoke(data, [*asked, str(tmp_path / "half")])
    assert made.exit_code == 0, made.output
    assert "2 of 43 items, with 38.0% of all ratings" in " ".join(made.stdout.split())
    row_set = read_row_set((tmp_path / "half").read_bytes())
    assert row_set.rows.tolist() == [1, 2]  # of 40 devices 20 x 0.5 and 10 x 0.5 update them
    assert (row_set.contributors, row_set.cohort_size) == (5, 40)
    assert runner.invoke(data, [*asked, str(tmp_path / "all"), "--updated", "1"]).exit_code == 0
    assert read_row_set((tmp_path / "all").read_bytes()).rows.tolist() == [0, 1, 2]


def test_rows_are_numbered_by_the_vocabulary_that_is_named(tmp_path: Path) -> None:
    write_ratings(tmp_path, {"1": 20, "2": 20, "3": 20}, users=40)
    vocabulary = tmp_path / "items"
    vocabulary.write_bytes(write_vocabulary("items", 1, ["3", "x", "1"]))
    asked = ["rows", "--ratings", str(tmp_path), "--cohort", "40", "--contributors", "5"]
    made = runner.invoke(data, [*asked, "--vocabulary", str(vocabulary), "--out", str(tmp_path / "rows")])
    assert made.exit_code == 0, made.output
    assert read_row_set((tmp_path / "rows").read_bytes()).rows.tolist() == [0, 2]


def test_a_row_set_without_rows_is_not_made(tmp_path: Path) -> None:
    write_ratings(tmp_path, {"1": 1}, users=40)
    out = tmp_path / "rows"
    asked = ["rows", "--ratings", str(tmp_path), "--cohort", "40", "--contributors", "5", "--out", str(out)]
    made = runner.invoke(data, asked)
    assert made.exit_code == 2
    assert "no rows" in made.stderr
    assert not out.exists()
