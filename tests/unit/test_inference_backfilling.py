"""What all users of a file get: whole whatever stops it, the same whether it was stopped, and nobody left out."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedrecon.datasets import Ratings, generate
from fedrecon.inference import backfilling
from fedrecon.inference.backfilling import Request, asked_of, back_fill, digest_of_ratings
from fedrecon.inference.recommending import Asked, OpenRecommender
from fedrecon.ops.command import main
from fedrecon.ops.mistakes import UserMistake
from fedrecon.wire.vocabularies import read_vocabulary
from support.inference_sample import Sample, make_sample

USERS, COUNT = 23, 4


@pytest.fixture(scope="module")
def sample() -> Sample:
    return make_sample()


@pytest.fixture(scope="module")
def recommender(sample: Sample) -> OpenRecommender:
    return OpenRecommender.open(sample.export(), read_vocabulary(sample.vocabulary))


@pytest.fixture(scope="module")
def ratings() -> Ratings:
    made = generate(users=USERS, items=40, seed=5)
    keys = tuple(f"key-{row}" for row in range(40))  # ten of them are unknown to the recommender
    return Ratings(made.users, made.items, made.ratings, made.timestamps, made.user_keys, keys, (), made.scale)


@pytest.fixture(autouse=True)
def few_users_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfilling, "_USERS_A_NOTE", 5)


def request_of(ratings: Ratings) -> Request:
    return Request("recommender", digest_of_ratings(ratings), COUNT)


def fill(recommender: OpenRecommender, ratings: Ratings, out: Path) -> int:
    return back_fill(recommender, asked_of(recommender, ratings, COUNT), out, request_of(ratings))


def test_every_user_gets_what_a_run_of_the_file_gives(
    recommender: OpenRecommender, ratings: Ratings, tmp_path: Path
) -> None:
    out = tmp_path / "all.jsonl"
    assert fill(recommender, ratings, out) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["user"] for line in lines] == list(ratings.user_keys)
    for line, (_, asked) in zip(lines, asked_of(recommender, ratings, COUNT), strict=True):
        ranking = recommender.recommend(asked)
        keys = [recommender.items.keys[row] for row in ranking.rows.tolist()]
        assert [one["item"] for one in line["recommendations"]] == keys
        assert [one["score"] for one in line["recommendations"]] == pytest.approx(ranking.scores.tolist())
        assert tuple(line.get("unknown_items", ())) == ranking.unknown_keys
    assert any("unknown_items" in line for line in lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.jsonl"]


class StoppedError(Exception):
    """The power fails."""


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("after", [0, 3, 5, 12, 22])
def test_what_was_stopped_goes_on_and_gives_the_same_file(
    recommender: OpenRecommender, ratings: Ratings, tmp_path: Path, suffix: str, after: int
) -> None:
    def stopping() -> Iterator[tuple[str, Asked]]:
        for place, one in enumerate(asked_of(recommender, ratings, COUNT)):
            if place == after:
                raise StoppedError
            yield one

    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"stopped{suffix}"
    fill(recommender, ratings, whole)
    with pytest.raises(StoppedError):
        back_fill(recommender, stopping(), out, request_of(ratings))
    with out.open("ab") as file:  # of the batch under way a part may be on disk
        file.write(b"half a li")
    done: list[int] = []
    back_fill(recommender, asked_of(recommender, ratings, COUNT), out, request_of(ratings), done.append)
    assert out.read_bytes() == whole.read_bytes()
    assert done[0] == after // 5 * 5
    assert sum(done) == USERS


def test_an_output_of_something_else_is_never_touched(
    recommender: OpenRecommender, ratings: Ratings, tmp_path: Path
) -> None:
    out = tmp_path / "all.jsonl"
    out.write_text("years of work\n")
    with pytest.raises(UserMistake, match="there already"):
        fill(recommender, ratings, out)
    assert out.read_text() == "years of work\n"
    out.unlink()

    def stopped() -> Iterator[tuple[str, Asked]]:
        raise StoppedError
        yield

    with pytest.raises(StoppedError):
        back_fill(recommender, stopped(), out, request_of(ratings))
    other = Request("another file", digest_of_ratings(ratings), COUNT)
    with pytest.raises(UserMistake, match="begun with another file"):
        back_fill(recommender, asked_of(recommender, ratings, COUNT), out, other)


def test_the_command_writes_csv_and_names_bad_rows_by_their_line(
    sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "films.onnx"
    file.write_bytes(sample.export())
    file.with_suffix(".items").write_bytes(sample.vocabulary)
    users = tmp_path / "users.csv"
    users.write_text("user,item,rating\nann,key-1,5\nann,key-2,1\nbob,key-9,4\n")
    out = tmp_path / "recommended.csv"
    command = ["recommend", str(file), "--users", str(users), "--out", str(out), "-k", "3"]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(out), "users": 2, "refused": 0}
    with out.open(newline="") as text:
        rows = list(csv.DictReader(text))
    places = [(name, rank) for name in ("ann", "bob") for rank in ("1", "2", "3")]
    assert [(row["user"], row["rank"]) for row in rows] == places
    assert not {row["item"] for row in rows[:3]} & {"key-1", "key-2"}
    assert all(np.isfinite(float(row["score"])) for row in rows)
    users.write_text("user,item,rating\nann,key-1,5\nann,key-2,good\n")
    assert main([*command[:5], str(tmp_path / "other.csv")]) == 2
    assert "users.csv, line 3: the rating 'good' is not a number" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--users", "u.csv"], ["--out", "o.csv"], ["--users", "u.csv", "--out", "o.csv", "--rate", "a=5"]]
)
def test_half_a_wish_is_a_mistake(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "films.onnx", *arguments]) == 2
    assert "--users and --out belong together" in capsys.readouterr().err
