"""Recommendations for all users of a file, one after the other into a file: for evaluation and back-fill.

A line for each user and recommendation (CSV: `user,rank,item,score`), or one for each user (JSON lines). Nothing
leaves this machine.

Rules: a run that was stopped goes on where it was, and gives the file that it would have given. Beside the output a
note says how far it is and of what; it is written after what it tells of is on disk, and goes when all is done. An
output without such a note, or with one of other inputs, is never touched. A user whose examples are refused has a
line that says so: nobody is left out silently.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedrecon.datasets import Ratings
from fedrecon.inference.batching import Answer, recommend_many
from fedrecon.inference.judging import CHOSEN, fields_of_ratings, takes_stars
from fedrecon.inference.recommending import Asked, KeysOrNumbers, OpenRecommender, Ranking
from fedrecon.ops.durable_files import write_durably
from fedrecon.ops.mistakes import UserMistake

CSV_SUFFIX, LINES_SUFFIX = ".csv", ".jsonl"
NOTE_SUFFIX = ".progress"
_HEADER = ("user", "rank", "item", "score")
_USERS_A_NOTE = 500
"""Users between two notes: a second or less is done again after a stop."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for: of equal ones the output is equal.

    Attributes:
        recommender: SHA-256 of the file, hexadecimal.
        users: SHA-256 of the users' ratings, hexadecimal.
        count: recommendations for each.
    """

    recommender: str
    users: str
    count: int


def digest_of_ratings(ratings: Ratings) -> str:
    """Returns the SHA-256 of who rated what, hexadecimal."""
    digest = hashlib.sha256()
    for keys in (ratings.user_keys, ratings.item_keys):
        digest.update("\n".join(keys).encode())
    for values in (ratings.users, ratings.items, ratings.ratings, ratings.timestamps):
        digest.update(values.tobytes())
    return digest.hexdigest()


def asked_of(recommender: OpenRecommender, ratings: Ratings, count: int) -> Iterator[tuple[str, Asked]]:
    """Yields name and examples of every user of some ratings, oldest first; users without ratings, too.

    Args:
        recommender: what will be asked.
        ratings: all of them.
        count: recommendations for each.

    Raises:
        UnjudgeableError: the model takes other fields than an item and a number.
    """
    item, number = fields_of_ratings(recommender.fields)
    stars = takes_stars(number, float(ratings.ratings.max(initial=0.0)))
    for name, own in zip(ratings.user_keys, ratings.by_user(), strict=True):
        by_time = own[np.argsort(ratings.timestamps[own], kind="stable")]
        values = ratings.ratings[by_time] if stars else np.full(len(by_time), CHOSEN)
        columns = {
            item.name: KeysOrNumbers(keys=[ratings.item_keys[each] for each in ratings.items[by_time].tolist()]),
            number.name: KeysOrNumbers(numbers=values.tolist()),
        }
        yield name, Asked(columns, count)


def back_fill(
    recommender: OpenRecommender,
    users: Iterable[tuple[str, Asked]],
    out: Path,
    request: Request,
    advance: Callable[[int], None] = lambda _: None,
) -> int:
    """Writes what every user gets.

    Args:
        recommender: the file, opened.
        users: name and examples of each, in the same order for the same request.
        out: where to; `.csv`, or JSON lines.
        request: what is asked for.
        advance: called with the number of users that were done, also before.

    Returns:
        How many users were refused.

    Raises:
        UserMistake: the output is there already, or belongs to another request.
        OSError: it cannot be written.
    """
    note = out.with_name(out.name + NOTE_SUFFIX)
    done, length, refused = _begin(out, note, request)
    write = _csv_lines if out.suffix == CSV_SUFFIX else _json_lines
    advance(done)
    with out.open("r+b") as file:
        file.truncate(length)
        file.seek(length)
        waiting = itertools.islice(users, done, None)
        while batch := list(itertools.islice(waiting, _USERS_A_NOTE)):
            answers = list(recommend_many(recommender, (asked for _, asked in batch)))
            for (user, _), answer in zip(batch, answers, strict=True):
                file.write(write(user, answer, recommender.items.keys).encode())
                refused += not isinstance(answer, Ranking)
            file.flush()
            os.fsync(file.fileno())
            done += len(batch)
            _keep(note, request, done, file.tell(), refused)
            advance(len(batch))
    note.unlink(missing_ok=True)
    return refused


def _begin(out: Path, note: Path, request: Request) -> tuple[int, int, int]:
    """Returns users done, bytes that hold them, and how many of them were refused; makes the file if there is none."""
    if note.exists():
        try:
            told = json.loads(note.read_text())
        except ValueError as error:
            raise UserMistake(f"{note} is damaged: {error}.", f"Remove {out} and it, and begin anew.") from error
        if told["request"] != asdict(request):
            raise UserMistake(
                f"{out} was begun with another file, other users or another count.",
                f"Choose another --out, or remove {out} and {note}.",
            )
        if out.exists():
            return int(told["users"]), int(told["bytes"]), int(told["refused"])
    elif out.exists():
        raise UserMistake(f"{out} is there already.", "Choose another --out, or remove it.")
    header = ",".join(_HEADER) + "\n" if out.suffix == CSV_SUFFIX else ""
    # The note comes first: an output that nobody knows of would have to be removed by hand.
    _keep(note, request, 0, len(header), 0)
    write_durably(out, [header.encode()])
    return 0, len(header), 0


def _keep(note: Path, request: Request, users: int, length: int, refused: int) -> None:
    told = {"request": asdict(request), "users": users, "bytes": length, "refused": refused}
    write_durably(note, [json.dumps(told).encode()])


def _csv_lines(user: str, answer: Answer, keys: tuple[str, ...]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if isinstance(answer, Ranking):
        for rank, (key, score) in enumerate(_shown(answer, keys), start=1):
            writer.writerow((user, rank, key, f"{score:.6g}"))
    else:
        writer.writerow((user, 0, "", f"refused: {answer}"))
    return text.getvalue()


def _json_lines(user: str, answer: Answer, keys: tuple[str, ...]) -> str:
    line: Mapping[str, Any] = {"user": user, "refused": str(answer)}
    if isinstance(answer, Ranking):
        shown = [{"item": key, "score": score} for key, score in _shown(answer, keys)]
        line = {"user": user, "recommendations": shown}
        if answer.unknown_keys:
            line["unknown_items"] = list(answer.unknown_keys)
    return json.dumps(line, ensure_ascii=False) + "\n"


def _shown(answer: Ranking, keys: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    return ((keys[row], score) for row, score in zip(answer.rows.tolist(), answer.scores.tolist(), strict=True))
