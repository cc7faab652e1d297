import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedrecon.datasets import MalformedFile, Names, UnknownDataset, generate, load, load_csv, write_csv

ROWS = [("3", "10", 4, 100), ("1", "10", 5, 90), ("1", "9", 1, 95), ("12", "9", 3, 80)]


def as_dat(folder: Path) -> None:
    (folder / "ratings.dat").write_text("".join("::".join(map(str, row)) + "\n" for row in ROWS))
    (folder / "movies.dat").write_bytes("9::Café Ashen (1950)::Drama\n10::B::A\x85C\n11::Unrated::\n".encode("latin-1"))


def as_tabs(folder: Path) -> None:
    (folder / "u.data").write_text("".join("\t".join(map(str, row)) + "\n" for row in ROWS))
    (folder / "u.item").write_bytes("9|Café Ashen (1950)|1-1-1950||0\n10|B|x\n".encode("latin-1"))


def as_csv(folder: Path) -> None:
    lines = ["userId,movieId,rating,timestamp", *(f"{u},{i},{r}.0,{t}" for u, i, r, t in ROWS)]
    (folder / "ratings.csv").write_text("\r\n".join(lines) + "\r\n")
    (folder / "movies.csv").write_text('movieId,title,genres\n9,Café Ashen (1950),Drama\n10,"B",x\n', encoding="utf-8")


@pytest.mark.parametrize("write", [as_dat, as_tabs, as_csv])
def test_every_spelling_of_movielens_gives_the_same_ratings(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    ratings = load(tmp_path)
    assert ratings.user_keys == ("1", "3", "12")
    assert ratings.item_keys == ("9", "10")
    assert ratings.titles == ("Café Ashen (1950)", "B")
    assert ratings.users.tolist() == [1, 0, 0, 2]
    assert ratings.items.tolist() == [1, 1, 0, 0]
    assert ratings.ratings.tolist() == [4, 5, 1, 3]
    assert ratings.timestamps.tolist() == [100, 90, 95, 80]
    assert ratings.scale == (1, 5)


@pytest.mark.parametrize(("write", "name"), [(as_dat, "ratings.dat"), (as_tabs, "u.data"), (as_csv, "ratings.csv")])
def test_a_file_under_another_name_is_recognised(write: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    write(tmp_path)
    renamed = (tmp_path / name).rename(tmp_path / "mine.txt")
    assert load(renamed).ratings.tolist() == [4, 5, 1, 3]


def test_quoted_titles_keep_their_commas(tmp_path: Path) -> None:
    as_csv(tmp_path)
    (tmp_path / "movies.csv").write_text('movieId,title,genres\n9,"Kettle, The ""Last"" (1950)",x\n10,B,x\n')
    assert load(tmp_path).titles[0] == 'Kettle, The "Last" (1950)'


def test_an_item_without_a_title_is_called_by_its_key(tmp_path: Path) -> None:
    as_dat(tmp_path)
    (tmp_path / "movies.dat").write_text("9::A::x\n")
    assert load(tmp_path).titles == ("A", "10")


def test_half_stars_widen_the_scale(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,0.5,1\n1,2,5.0,2\n")
    assert load(tmp_path).scale == (0.5, 5)


def test_named_columns_of_any_text_are_read(tmp_path: Path) -> None:
    path = tmp_path / "beers.csv"
    path.write_text('who;what;called;stars;extra\nzoë;ipa;"Hop; strong";7.5;x\nadam;ipa;other;2;x\n', encoding="utf-8")
    names = Names(user="who", item="what", rating="stars", title="called")
    ratings = load_csv(path, names, separator=";", scale=(0, 10))
    assert ratings.user_keys == ("adam", "zoë")
    assert ratings.users.tolist() == [1, 0]
    assert ratings.titles == ("Hop; strong",)
    assert ratings.scale == (0, 10)
    assert ratings.timestamps.tolist() == [0, 0]


def test_a_csv_with_plain_names_needs_no_further_word(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("rating,item,user,timestamp\n3,b,a,17\n")
    ratings = load(path)
    assert (ratings.user_keys, ratings.item_keys, ratings.timestamps.tolist()) == (("a",), ("b",), [17])


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("1::1::3::5\n1::2::3\n", 2, "wrong number of columns: 3 instead of 4"),
        ("1::1::3::5\n\n1::2::3::5\n", 2, "wrong number of columns: 1 instead of 4"),
        ("1::1::3::5\n1::2::three::5\n", 2, "the rating 'three' is not a number"),
        ("1::1::3::5\n1::2::nan::5\n", 2, "the rating 'nan' is not a finite number"),
        ("1::1::3::5\n1::2::6::5\n", 2, "the rating 6 lies outside the scale 0.5 to 5"),
        ("1::1::3::5\n1::2::0::5\n", 2, "the rating 0 lies outside the scale 0.5 to 5"),
        ("1::1::3::5\nx::2::3::5\n", 2, "the user 'x' is not a whole number"),
        ("1::1::3::5\n1::2.5::3::5\n", 2, "the item '2.5' is not a whole number"),
        ("1::1::3::5\n1::2::3::-5\n", 2, "the timestamp '-5' is not a whole number"),
        ("1::1::3::5\n2::1::3::5\n1::1::4::6\n", 3, "user 1 has rated item 1 already, in line 1"),
        ("1::1::3::5\n1::2::1.2.3::5\n", 2, "the rating '1.2.3' is not a number"),
        ("1::1::3::5\n1::2::.::5\n", 2, "the rating '.' is not a number"),
        ("", None, "the file is empty"),
        ("\n\n", None, "the file is empty"),
    ],
)
def test_a_malformed_row_is_named_with_its_reason(content: str, line: int | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "ratings.dat"
    path.write_text(content)
    with pytest.raises(MalformedFile) as caught:
        load(tmp_path)
    assert caught.value.path == path
    assert caught.value.line == line
    assert caught.value.reason.startswith(reason)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b"user,movie,rating,timestamp\n1,1,3,5\n", 1, "the first line must be"),
        (b"userId,movieId,rating,timestamp\n", None, "the file is empty: it holds no rating"),
        (b"userId,movieId,rating,timestamp\n1,1,3,5\n1,2,9,5\n", 3, "the rating 9 lies outside"),
        (b"userId,movieId,rating,timestamp\n1,1,3,5\n1,2,3,5,6\n", 3, "wrong number of columns: 5"),
        (b'userId,movieId,rating,timestamp\n1,1,3,5\n1,2,"3,5\n', 3, "not CSV"),
        (b"userId,movieId,rating,timestamp\n1,1,3,5\n1,\xe92,3,5\n", 3, "unknown encoding: byte 0xe9 is not utf-8"),
        ("userId,movieId,rating,timestamp\n1,1,3,5\n".encode("utf-16"), 1, "unknown encoding: this looks like utf-16"),
    ],
)
def test_a_malformed_csv_is_named_with_its_reason(
    content: bytes, line: int | None, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "ratings.csv").write_bytes(content)
    with pytest.raises(MalformedFile) as caught:
        load(tmp_path)
    assert caught.value.line == line
    assert caught.value.reason.startswith(reason)


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [("9::A::x\n10\n", 2, "wrong number"), ("x::A::\n", 1, "the item 'x'"), ("9::A::\n9::B::\n", 2, "item 9 has")],
)
def test_malformed_titles_are_named_with_their_reason(content: str, line: int, reason: str, tmp_path: Path) -> None:
    as_dat(tmp_path)
    (tmp_path / "movies.dat").write_text(content)
    with pytest.raises(MalformedFile) as caught:
        load(tmp_path)
    assert (caught.value.path.name, caught.value.line) == ("movies.dat", line)
    assert caught.value.reason.startswith(reason)


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(MalformedFile, match="no column is named user or item; the first line names a, b"):
        load_csv(path, Names(rating="b"))


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_a_path_without_ratings_is_told_what_was_looked_for(place: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownDataset) as caught:
        load(tmp_path / place)
    assert all(name in str(caught.value) for name in ("ratings.dat", "u.data", "ratings.csv"))


def test_a_file_of_another_kind_is_told_what_was_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("hello, world\n")
    with pytest.raises(UnknownDataset, match=r"looked for four fields separated by '::'.*'hello, world'"):
        load(path)


def test_what_was_written_is_loaded_again(tmp_path: Path) -> None:
    ratings = generate(users=40, items=60, seed=3)
    write_csv(ratings, tmp_path / "made")
    again = load(tmp_path / "made")
    for name in ("users", "items", "ratings", "timestamps"):
        assert np.array_equal(getattr(again, name), getattr(ratings, name))
    for name in ("user_keys", "item_keys", "titles", "scale"):
        assert getattr(again, name) == getattr(ratings, name)


def test_keys_that_the_format_does_not_know_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("user,item,rating\na,b,3\n")
    with pytest.raises(ValueError, match="the key 'a' is not a whole number"):
        write_csv(load(path), tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.data
def test_movielens_1m_is_whole() -> None:
    folder = os.environ.get("FEDRECON_DATA")
    if not folder:
        pytest.skip("FEDRECON_DATA does not name a folder that holds ml-1m/")
    ratings = load(Path(folder) / "ml-1m")
    assert len(ratings) == 1_000_209
    assert len(ratings.user_keys) == 6_040
    assert len(ratings.item_keys) == 3_706
    assert float(ratings.ratings.mean(dtype=np.float64)) == pytest.approx(3.581564, abs=5e-7)
    assert ratings.titles[0] == "Toy Story (1995)"
    assert int(ratings.ratings_per_user().min()) == 20
